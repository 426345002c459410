"""A worker process of the local engine: answers one message after another, for any site, with one warm trainer.

Invariants:

- A worker ends when its parent does, however the parent ends: at the end of its input, and on Linux by the kernel.
- Whatever happens while a message is served becomes an answer; only the death of the process leaves one open.
- Nothing crosses the process boundary but JSON headers and records in Flower's own protobuf serialisation.
- Standard output belongs to the frames below. What libraries print goes to standard error, with the log.

A frame, in both directions::

    uint32 le   length of the header
    uint64 le   length of the body
    header      JSON object; its "kind" says what the frame is
    body        a RecordDict as protobuf bytes; empty where there are no records

    to the worker     {"kind": "setup", ...}                        the fields of ``Sites``, before the first request
                      {"kind": "request", "site", "message_type"}   body: the message's records
    from the worker   {"kind": "ready"}                             once, when everything slow is imported
                      {"kind": "reply"}                             body: the answer's records
                      {"kind": "failed", "reason"}                  the class of an exception, never its text

Use: ``python -m simulations.worker PARENT_PID module:callable``; the callable returns a ``Handler``.
"""

import importlib
import json
import logging
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedretrain.errors import ConfigurationError
from fedretrain.simsites import SiteSource

from .poison import check_kind, poisoned

HANDLER = "simulations.worker:SiteHandler"
_SITES_READY = 256  # sites whose data a worker holds in memory
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PREFIX = struct.Struct("<IQ")

if TYPE_CHECKING:
    from client.site import Site

log = logging.getLogger(__name__)
Frame = tuple[dict[str, Any], bytes]


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


class SiteHandler:
    """The real handler: the sites of ``client``, one trainer for all of them, kept warm for the process's life."""

    def __init__(self) -> None:
        from client.trainer import Trainer, configure_process

        configure_process()
        import keras  # noqa: F401  # seconds now, while nobody waits

        self._trainer = Trainer()

    def configure(self, sites: Sites) -> None:
        """Serve the sites of this run; each site's data are read when it is first asked."""
        self._of = sites
        self._ready: dict[str, Site] = {}

    def handle(self, site: str, message_type: str, content: RecordDict) -> RecordDict:
        """The site's answer, spoilt where the run poisons this site."""
        reply = self._site(site).handle(message_type, content)
        kind = self._of.poison.get(site)
        return poisoned(kind, reply) if kind else reply

    def _site(self, name: str) -> "Site":
        if name not in self._ready:
            from client.site import Site
            from client.store import SiteStore

            if len(self._ready) >= _SITES_READY:
                del self._ready[next(iter(self._ready))]
            source, store = self._of.sources[name], SiteStore(self._of.store)
            self._ready[name] = Site(name, source.load, store, self._trainer, self._of.allow_modules)
        return self._ready[name]


def write_frame(stream: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Send one frame; raises OSError where the other side is gone."""
    encoded = json.dumps(header).encode()
    stream.write(_PREFIX.pack(len(encoded), len(body)) + encoded)
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """The next frame, or None at the end of the stream, also in the middle of a frame."""
    prefix = stream.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    header_size, body_size = _PREFIX.unpack(prefix)
    header, body = stream.read(header_size), stream.read(body_size)
    if len(header) < header_size or len(body) < body_size:
        return None
    return json.loads(header), body


def encode(content: RecordDict) -> bytes:
    """Records as bytes; raises ValueError above protobuf's 2 GiB."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def decode(body: bytes) -> RecordDict:
    """Records from bytes; whatever is wrong with them raises, as what it is."""
    return recorddict_from_proto(ProtoRecordDict.FromString(body))


def load(reference: str) -> Any:
    """The object that ``module:attribute`` names; raises ConfigurationError where there is none."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{reference}: expected module:attribute that can be imported: {error}") from None


def serve(handler: Handler, inbox: "queue.SimpleQueue[Frame]", answers: IO[bytes]) -> None:
    """Answer the frames of ``inbox``, in order, without end."""
    while True:
        header, body = inbox.get()
        if header["kind"] == "setup":
            handler.configure(Sites.from_header(header))
            continue
        try:
            reply = encode(handler.handle(header["site"], header["message_type"], decode(body)))
        except Exception as error:
            what = (header["site"], header["message_type"], type(error).__name__)
            log.error("site %s, %s: failed with %s", *what)  # noqa: TRY400  # the text may quote data
            log.debug("its text", exc_info=error)
            write_frame(answers, {"kind": "failed", "reason": type(error).__name__})
        else:
            write_frame(answers, {"kind": "reply"}, reply)


def main(parent: int, handler: str) -> None:
    """Run a worker whose parent has process id ``parent``; returns never."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us, when it has tidied up
    _end_with(parent)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, inbox), daemon=True).start()
    serving: Handler = load(handler)()
    write_frame(answers, {"kind": "ready"})
    serve(serving, inbox, answers)


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
        main(int(sys.argv[1]), sys.argv[2])
    except BaseException:
        log.exception("the worker ends")
    os._exit(1)  # at once: the thread that reads would be in the way of an orderly end
