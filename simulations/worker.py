"""A worker process of the local engine: answers one message after another, for any site, with one warm trainer.

Invariants:

- A worker ends when its parent does, however the parent ends: at the end of its input, and on Linux by the kernel.
- Whatever happens while a message is served becomes an answer; only the death of the process leaves one open.
- Standard output belongs to the frames (``simulations.frames``); what libraries print goes to standard error, with the
  log.

Use: ``python -m simulations.worker PARENT_PID module:callable MEMORY``; the callable returns a ``Handler``, and MEMORY
is the descriptor of the memory shared with the engine.
"""

import importlib
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from flwr.app import RecordDict
from pydantic import TypeAdapter

from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.messages import BASE, TRAIN, BaseReply, Declined, PrepareRequest, pack
from fedretrain.simsites import SiteSource

from .frames import Frame, decode, encode, read_frame, write_frame
from .memory import Arrays, Memory
from .poison import check_kind, poisoned
from .ready import Ready

HANDLER = "simulations.worker:SiteHandler"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

if TYPE_CHECKING:
    from client.site import Site

log = logging.getLogger(__name__)
Tell = Callable[..., None]  # sends a frame: header, body


@dataclass(frozen=True)
class Sites:
    """What a worker must know of a run to stand in for any of its sites.

    Attributes:
        sources: Where the data are, by site name.
        store: Folder for what the sites keep between messages.
        allow_modules: Modules whose layer classes the sites may build.
        poison: Kind of poison by name of the site that misbehaves (``simulations.poison``).

    Raises:
        ConfigurationError: There is no site, or a poison names no site or no kind.
    """

    sources: Mapping[str, SiteSource]
    store: Path
    allow_modules: tuple[str, ...] = ()
    poison: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigurationError("simulation.sites: expected at least one site, got none")
        for site, kind in self.poison.items():
            check_kind(kind)
            if site not in self.sources:
                raise ConfigurationError(f"poison: expected one of {', '.join(sorted(self.sources))}, got {site!r}")

    def header(self) -> dict[str, Any]:
        """The header of the frame that carries it; paths absolute."""
        return {
            "kind": "setup",
            "sources": [source.to_json() for source in self.sources.values()],
            "store": str(Path(self.store).absolute()),
            "allow_modules": list(self.allow_modules),
            "poison": dict(self.poison),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Sites":
        """The value that ``header`` gave."""
        sources = [SiteSource.from_json(value) for value in header["sources"]]
        named = {source.name: source for source in sources}
        return cls(named, Path(header["store"]), tuple(header["allow_modules"]), header["poison"])


class Handler(Protocol):
    """What serves messages in a worker."""

    def configure(self, sites: Sites) -> None:
        """Serve the sites of this run from now on."""

    def handle(self, site: str, message_type: str, content: RecordDict) -> RecordDict:
        """The site's answer."""

    def combine(self, header: dict[str, Any], memory: Memory, tell: Tell) -> None:
        """Train a group of sites and answer (``simulations.group``)."""

    def notes(self) -> Iterable[str]:
        """What the operator should know of how the sites are served; asked before each frame, each is sent once."""


class SiteHandler:
    """The real handler: the sites of ``client``, one trainer for all of them, kept warm for the process's life."""

    def __init__(self) -> None:
        from client.trainer import Trainer, configure_process

        configure_process()
        import keras  # noqa: F401  # seconds now, while nobody waits

        self._trainer = Trainer()

    def configure(self, sites: Sites) -> None:
        """Serve the sites of this run; each site's data are read when it is first asked."""
        from .shared_store import SharedStore

        self._of = sites
        self._store = SharedStore(sites.store)
        self._ready = Ready(self._make)
        self._request: tuple[str, PrepareRequest] | None = None
        self._received: tuple[str, Arrays] | None = None
        self._based: tuple[RecordDict, BaseReply] | None = None

    def handle(self, site: str, message_type: str, content: RecordDict) -> RecordDict:
        """The site's answer, spoilt where the run poisons this site."""
        if self._based is not None and content is self._based[0]:  # the sites have one store
            return pack(self._based[1].model_copy(update={"site": site}))
        with self._ready.site(site) as ready:
            reply = ready.handle(message_type, content)
        if message_type == BASE:
            self._based = _kept(content, reply)
        if message_type != TRAIN:
            self._request = None  # what the run's sites were asked to prepare may be another by now
        kind = self._of.poison.get(site)
        return poisoned(kind, reply) if kind else reply

    def combine(self, header: dict[str, Any], memory: Memory, tell: Tell) -> None:
        """See ``Handler``; raises DeclinedRequest where the run was never prepared here."""
        from .group import Group, changing_shapes

        request = self._prepared(header["run"])
        if self._received is None or self._received[0] != header["globals"]:
            values = memory.arrays(header["params_at"], changing_shapes(request))
            self._received = header["globals"], [array.copy() for array in values]
        Group(header, memory, request, self._received[1], self._ready, tell).run()

    def notes(self) -> Iterable[str]:
        """See ``Handler``."""
        return self._trainer.notes

    def _prepared(self, run: str) -> PrepareRequest:
        """The same object for as long as nothing is prepared, so that what was derived from it stays good."""
        if self._request is None or self._request[0] != run:
            request = self._store.run(run)
            if request is None:
                raise DeclinedRequest("model-missing", "run", "a request to prepare this run before")
            self._request = run, request
        return self._request[1]

    def _make(self, name: str) -> "Site":
        from client.site import Site

        source = self._of.sources[name]
        of = self._of.allow_modules
        return Site(name, source.load, self._store, self._trainer, of, names_files=True)


def _kept(content: RecordDict, reply: RecordDict) -> tuple[RecordDict, BaseReply] | None:
    """What was sent and the receipt for it, None where it is a refusal."""
    text = str(reply.config_records["body"]["json"])
    receipt = TypeAdapter[BaseReply | Declined](BaseReply | Declined).validate_json(text)
    return (content, receipt) if isinstance(receipt, BaseReply) else None


def load(reference: str) -> Any:
    """The object that ``module:attribute`` names; raises ConfigurationError where there is none."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{reference}: expected module:attribute that can be imported: {error}") from None


def serve(handler: Handler, memory: Memory, inbox: "queue.SimpleQueue[Frame]", answers: IO[bytes]) -> None:
    """Answer the frames of ``inbox``, in order, without end; each has the ``notes`` that are new."""
    noted: set[str] = set()

    def tell(header: dict[str, Any], body: bytes = b"") -> None:
        notes = [note for note in handler.notes() if note not in noted]
        noted.update(notes)
        write_frame(answers, header | ({"notes": notes} if notes else {}), body)

    while True:
        header, body = inbox.get()
        if header["kind"] == "setup":
            noted.clear()  # another run's operator has not been told
            handler.configure(Sites.from_header(header))
            continue
        try:
            _answer(handler, memory, header, body, tell)
        except Exception as error:
            what = (header["kind"], header.get("site", "several sites"), type(error).__name__)
            log.error("%s of %s: failed with %s", *what)  # noqa: TRY400  # the text may quote data
            log.debug("its text", exc_info=error)
            tell({"kind": "failed", "reason": type(error).__name__})


def _answer(handler: Handler, memory: Memory, header: dict[str, Any], body: bytes, tell: Tell) -> None:
    if header["kind"] == "combine":
        handler.combine(header, memory, tell)
    elif header["kind"] == "ask":
        content = decode(body)
        for site in header["sites"]:
            reply = handler.handle(site, header["message_type"], content)
            tell({"kind": "answer", "site": site, "text": str(reply.config_records["body"]["json"])})
        tell({"kind": "answered"})
    else:
        reply = handler.handle(header["site"], header["message_type"], decode(body))
        tell({"kind": "reply"}, encode(reply))


def main(parent: int, handler: str, memory: int) -> None:
    """Run a worker whose parent has process id ``parent`` and shares the memory ``memory``; returns never."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us, when it has tidied up
    _end_with(parent)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, inbox), daemon=True).start()
    serving: Handler = load(handler)()
    write_frame(answers, {"kind": "ready"})
    serve(serving, Memory(memory), inbox, answers)


def _read(requests: IO[bytes], inbox: "queue.SimpleQueue[Frame]") -> None:
    """Pass frames on while the main thread works; the end of the input is the end of the parent, and ours."""
    while (frame := read_frame(requests)) is not None:
        inbox.put(frame)
    os._exit(0)


def _end_with(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux only)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except BaseException:
        log.exception("the worker ends")
    os._exit(1)  # at once: the thread that reads would be in the way of an orderly end
