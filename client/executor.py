"""The site's executor: ``python -m client.executor --home DIR``. Carries messages from SuperNode to trainer and back.

Invariants: it never installs, imports or runs the bundle that comes with a task, and passes on nothing from a bundle
the site does not accept; it imports neither TensorFlow nor what reads data; it has no key, so what it says itself
counts for nothing: refusals are signed by the trainer, which is asked for a signature instead of training.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flwr.app import Metadata, RecordDict

from fedretrain.errors import ConfigurationError, FedretrainError, MachineError
from fedretrain.membership import Kit
from fedretrain.messages import Declined, pack
from fedretrain.processes import QUIET_FLOWER, die_with_parent

from . import flowerside, runfiles, wire
from .home import Home
from .policy import Policy, bundle_accepted
from .sitefile import load_site
from .supernode import home_argument

if TYPE_CHECKING:
    from .flowerside.runtime import Runtime, Task

log = logging.getLogger(__name__)

RETRY_S = 0.3  # between two attempts to reach a SuperNode that is away
HEARTBEAT_S = 10.0  # Flower gives a task up after 60 s without one
REFUSAL_S = 30.0  # how long the trainer may take to sign a refusal


class Executor:
    """See the module docstring.

    Args:
        home: The site's folder.
        kit: Its kit.
    """

    def __init__(self, home: Home, kit: Kit) -> None:
        self._home, self._kit = home, kit

    def run(self) -> None:
        """Serve one SuperNode after the other, for ever; raises MachineError where the secret cannot be made."""
        from .flowerside.runtime import Runtime

        key, said = runfiles.secret(self._home), ""
        while True:
            port = runfiles.read_port(self._home)
            if port is None:
                time.sleep(RETRY_S)
                continue
            runtime = Runtime(port, key)
            try:
                self._serve(runtime)
            except MachineError as error:
                if str(error) != said:
                    log.warning("%s", error)
                said = str(error)
                time.sleep(RETRY_S)
            finally:
                runtime.close()

    def _serve(self, runtime: "Runtime") -> None:
        while True:
            task = runtime.acquire()
            if task is not None:
                with _heartbeats(task):
                    self._do(task)

    def _do(self, task: "Task") -> None:
        try:
            message = task.pull()
        except MachineError as error:
            log.warning("%s", error)
            task.give_up("no message")
            return
        started, about, content = time.monotonic(), message.metadata, flowerside.to_bytes(message.content)
        message.content = RecordDict()  # the reply needs its metadata alone, and there may be a whole model in it
        task.reply(self._answer(about, content, task.bundle))
        log.info("%s answered in %.2f s", about.message_type, time.monotonic() - started)

    def _answer(self, about: Metadata, content: bytes, bundle: str) -> RecordDict:
        """The trainer's answer, or a refusal."""
        if not bundle_accepted(self._policy(), self._kit.bundle, bundle):
            log.error("refused a task of the app bundle %s; accepted: the kit's, %s", bundle, self._kit.bundle)
            decline = wire.Decline(code="policy", where="bundles", expected="the kit's app bundle")
            return self._refused(about, content, decline)
        for attempt in (1, 2):
            try:
                return flowerside.from_bytes(self._ask(about, content, _seconds_left(about)))
            except wire.TrainerLost as lost:
                log.warning("%s, attempt %d: %s", about.message_type, attempt, lost)
                if lost.late:
                    break
        return self._refused(about, content, wire.Decline(code="trainer-failure", expected="see the site's log"))

    def _refused(self, about: Metadata, content: bytes, decline: wire.Decline) -> RecordDict:
        """A refusal signed by the trainer; unsigned, which the server will not believe, where there is none."""
        try:
            return flowerside.from_bytes(self._ask(about, content, REFUSAL_S, decline))
        except MachineError as error:
            log.warning("the trainer does not sign the refusal: %s", error)
            return pack(Declined(run="", site=self._kit.site, **decline.model_dump()))

    def _ask(
        self, about: Metadata, content: bytes, seconds: float, decline: wire.Decline | None = None
    ) -> bytes | bytearray:
        header = wire.Question(size=len(content), id=about.message_id, message_type=about.message_type, decline=decline)
        return wire.ask(self._home.socket, header, content, seconds)

    def _policy(self) -> Policy:
        """As site.toml has it at the moment; the trainer says what is wrong with one that cannot be read."""
        try:
            return load_site(self._home.site).policy
        except ConfigurationError:
            return Policy()


def _seconds_left(about: Metadata) -> float:
    """Until whoever asked stops waiting."""
    return about.created_at + about.ttl - time.time()


@contextmanager
def _heartbeats(task: "Task") -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            task.beat()

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    """The process."""
    die_with_parent()
    home = home_argument("client.executor", "Run a site's executor.")
    own = {"NO_PROXY": "*", "no_proxy": "*", "FLWR_HOME": str(home.run / "flwr")}  # all it talks to is on this machine
    os.environ.update({**QUIET_FLOWER, **own})
    try:
        kit = home.load_kit()
        home.make()
        Executor(home, kit).run()
    except FedretrainError as error:
        raise SystemExit(f"executor: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
