"""The site's trainer: ``python -m client.trainer_main --home DIR``. The only process of a site that reads its data.

Invariants: it uses no network, only its Unix socket; every request goes through ``client.gatekeeper``, out of its
parcel (``fedretrain.parcel``); what site.toml allows it of memory, threads and priority holds for the process.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from fedretrain.errors import ConfigurationError, FedretrainError
from fedretrain.processes import QUIET_FLOWER, die_with_parent

from .home import Home
from .supernode import home_argument

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedretrain.dataset import Dataset
    from fedretrain.messages import PrepareRequest

    from .sitefile import TrainerSection
    from .trainer import Arrays, Order, Result
    from .wire import Letter, Question

log = logging.getLogger(__name__)

OVERRUN = 75  # exit codes: a request took longer than its deadline,
TOO_LARGE = 76  # more memory was used than site.toml allows
_MEMORY_POLL_S = 0.25
_FIRST_TO_GO = 500  # where memory runs out, the system ends the trainer before anything else of the site


class Backend(Protocol):
    """What trains; ``[trainer] backend`` names a class with these methods and no arguments to make one.

    Its module may have ``configure_process(threads)``, called once before anything else. One without ``sum`` refuses
    the sums that some jobs ask for, and takes part in everything else; without ``answers``, checks go without what the
    model says.
    """

    def prepare(self, request: "PrepareRequest", allow_modules: tuple[str, ...] = ()) -> None:
        """As ``client.trainer.Trainer.prepare``."""

    def train(self, order: "Order", base: "Callable[[], Arrays]", received: "Arrays", data: "Dataset") -> "Result":
        """As ``client.trainer.Trainer.train``."""


def load_backend(name: str, threads: int) -> Backend:
    """The backend that site.toml names; raises ConfigurationError where there is none of that name."""
    module_name, _, class_name = name.partition(":")
    try:
        module = import_module(module_name)
        make: Callable[[], Backend] = getattr(module, class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"site.toml: [trainer] backend = {name!r}: {error}; expected module:Class of a package installed here"
        ) from None
    configure: Callable[[int], None] | None = getattr(module, "configure_process", None)
    if configure is not None:
        configure(threads)
    return make()


def run(home: Home, stop: threading.Event) -> None:
    """Answer requests until ``stop`` is set.

    Raises:
        ConfigurationError: The site has not joined, or site.toml or a key is wrong.
        MachineError: The socket cannot be made.
    """
    from .gatekeeper import Gatekeeper
    from .identity import load_signing_key
    from .refusal import Refuser
    from .service import Desk, Service
    from .sitefile import load_site

    kit, site = home.load_kit(), load_site(home.site)
    home.make()
    _limit(site.trainer)
    gatekeeper = Gatekeeper(home, kit, site, load_backend(site.trainer.backend, site.trainer.threads))
    refuser = Refuser(kit, load_signing_key(home), home.record)

    def answer(question: "Question", letter: "Letter") -> "RecordDict":
        if question.decline is not None:
            return refuser.refuse(_opened(letter, with_arrays=False), question.decline)
        return gatekeeper.handle(question.message_type, _opened(letter))

    service = Service(home.socket, site.trainer.allowed_uids, Desk(answer, _overrun), home.store)
    log.info("ready")
    stop.wait()
    service.close()


def _opened(letter: "Letter", *, with_arrays: bool = True) -> "RecordDict":
    """The message; an empty one, which is refused as unsigned, where its parcel is broken."""
    from flwr.app import RecordDict

    from fedretrain.parcel import BrokenParcel, joined

    from .flowerside import from_bytes

    head = from_bytes(letter.records)
    try:
        return joined(head, letter.bulk.view() if with_arrays else None)
    except BrokenParcel as broken:
        log.warning("a message that cannot be unpacked: %s", broken)
        return RecordDict()


def _limit(section: "TrainerSection") -> None:
    os.nice(section.nice)
    with suppress(OSError):  # another system, or a container that does not allow it
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO), encoding="ascii")
    if section.memory_mb is not None:
        limit = section.memory_mb * 1024 * 1024
        threading.Thread(target=_watch_memory, args=(limit,), name="memory", daemon=True).start()


def _watch_memory(limit: int) -> None:
    """Private memory is what the machine runs out of; address space, which could be limited, says little about it."""
    pause = threading.Event()
    while not pause.wait(_MEMORY_POLL_S):
        used = memory_bytes()
        if used > limit:
            _end(TOO_LARGE, f"used {used / 2**20:.0f} MiB; [trainer] memory_mb allows {limit / 2**20:.0f}")


def memory_bytes() -> int:
    """Resident memory of this process without pages of files, which the system drops; 0 where it does not tell."""
    try:
        resident, of_files = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3])
    except (OSError, ValueError, IndexError):
        return 0
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")


def _overrun() -> NoReturn:
    _end(OVERRUN, "a request took longer than its deadline; it is dropped so that the next one need not wait")


def _end(code: int, why: str) -> NoReturn:
    log.error("the trainer ends: %s", why)
    logging.shutdown()
    os._exit(code)  # training cannot be interrupted otherwise


def main() -> None:
    """The process."""
    die_with_parent()
    home = home_argument("client.trainer_main", "Run a site's trainer.")
    os.environ.update(QUIET_FLOWER)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    try:
        run(home, stop)
    except FedretrainError as error:
        raise SystemExit(f"trainer: {error}") from None
    logging.shutdown()
    os._exit(0)  # not after the request that is under way


if __name__ == "__main__":
    main()
