"""The site's executor: ``python -m client.executor --home DIR``. Carries messages from SuperNode to trainer and back.

Invariants: it never installs, imports or runs the bundle that comes with a task, and passes on nothing from a bundle
the site does not accept; it imports neither TensorFlow nor what reads data; it has no key, so what it says itself
counts for nothing: refusals are signed by the trainer, which is asked for a signature instead of training. A large
message passes through it piece by piece, and an answer waits on the disk until all of it is there.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from fedretrain.errors import ConfigurationError, FedretrainError, MachineError
from fedretrain.membership import Kit
from fedretrain.messages import Declined, pack
from fedretrain.processes import QUIET_FLOWER, die_with_parent, return_memory

from . import flowerside, runfiles, wire
from .bulk import Bulk
from .home import Home
from .policy import Policy, bundle_accepted
from .sitefile import load_site
from .supernode import home_argument

if TYPE_CHECKING:
    from .flowerside.runtime import Incoming, Runtime, Task

log = logging.getLogger(__name__)

RETRY_S = 0.3  # between two attempts to reach a SuperNode that is away
Answer = tuple[RecordDict, Bulk | None]  # as ``flowerside.runtime.Task.reply`` takes it
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
        started = time.monotonic()
        task.reply(*self._answer(message, task.bundle))
        log.info("%s answered in %.2f s", message.metadata.message_type, time.monotonic() - started)

    def _answer(self, message: "Incoming", bundle: str) -> Answer:
        """The trainer's answer, or a refusal."""
        if not bundle_accepted(self._policy(), self._kit.bundle, bundle):
            log.error("refused a task of the app bundle %s; accepted: the kit's, %s", bundle, self._kit.bundle)
            decline = wire.Decline(code="policy", where="bundles", expected="the kit's app bundle")
            return self._refused(message, decline)
        for attempt in (1, 2):
            try:
                return self._ask(message, _seconds_left(message))
            except wire.TrainerLost as lost:
                log.warning("%s, attempt %d: %s", message.metadata.message_type, attempt, lost)
                if lost.late:
                    break
        return self._refused(message, wire.Decline(code="trainer-failure", expected="see the site's log"))

    def _refused(self, message: "Incoming", decline: wire.Decline) -> Answer:
        """A refusal signed by the trainer; unsigned, which the server will not believe, where there is none."""
        try:
            return self._ask(message, REFUSAL_S, decline)
        except MachineError as error:
            log.warning("the trainer does not sign the refusal: %s", error)
            return pack(Declined(run="", site=self._kit.site, **decline.model_dump())), None

    def _ask(self, message: "Incoming", seconds: float, decline: wire.Decline | None = None) -> Answer:
        """What the trainer says; a refusal is about the records alone, so no arrays go along."""
        about, records = message.metadata, flowerside.to_bytes(message.records)
        size, parts = (message.size, message.parts()) if decline is None else (0, iter(()))
        header = wire.Question(
            size=len(records), bulk=size, id=about.message_id, message_type=about.message_type, decline=decline
        )
        letter = wire.ask(self._home.socket, wire.pieces(header, records, parts), seconds, self._home.run)
        return flowerside.from_bytes(letter.records), letter.bulk

    def _policy(self) -> Policy:
        """As site.toml has it at the moment; the trainer says what is wrong with one that cannot be read."""
        try:
            return load_site(self._home.site).policy
        except ConfigurationError:
            return Policy()


def _seconds_left(message: "Incoming") -> float:
    """Until whoever asked stops waiting."""
    about = message.metadata
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
    return_memory()
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
