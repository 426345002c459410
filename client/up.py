"""``fedretrain client up``: keeps a site's SuperNode, executor and trainer running until it is told to stop.

Invariants: one ``up`` per home; what it starts ends with it, also when it is killed; a process that ends is started
again, also a SuperNode that the server does not admit yet; what keeps the site from taking part is said once, here.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from fedretrain import atomic
from fedretrain.errors import MachineError
from fedretrain.processes import Child, Supervisor, clean_environment, module_command, stop_on_signal

from . import runfiles
from .home import Home

POLL_S = 0.5
INTERRUPTED = 130
MODULES = {"trainer": "client.trainer_main", "supernode": "client.supernode", "executor": "client.executor"}


def main(home: Home) -> int:
    """Run until Ctrl-C or SIGTERM.

    Returns:
        The exit code: 130 after Ctrl-C, 0 after SIGTERM.

    Raises:
        ConfigurationError: The site has not joined, or its site.toml is wrong.
        MachineError: ``client up`` runs already with this home, or the disk does not take what must be written.
    """
    from .identity import load_node_key, load_signing_key
    from .sitefile import load_site
    from .wire import socket_path

    kit = home.load_kit()
    load_site(home.site)
    load_node_key(home)
    load_signing_key(home)
    socket_path(home.socket)
    home.make()
    with _alone(home):
        runfiles.clear(home)
        runfiles.secret(home)
        _say(f"{kit.site} takes part in {kit.federation} at {kit.address}; logs in {home.log}; Ctrl-C ends it")
        return _supervise(home)


def _supervise(home: Home) -> int:
    environment = clean_environment(FLWR_HOME=str(home.run / "flwr"))
    children = [
        Child(name, module_command(module, "--home", home.root), log=home.log / f"{name}.log", env=environment)
        for name, module in MODULES.items()
    ]
    stop, news = threading.Event(), _News(home)
    supervisor = Supervisor(children, news.changed)
    with stop_on_signal(stop) as signals:
        try:
            while not stop.is_set():
                supervisor.step()
                news.look()
                stop.wait(POLL_S)
        finally:
            supervisor.stop()
    return INTERRUPTED if signals and signals[0] == 2 else 0


class _News:
    """Says what an operator has to know, each thing once."""

    def __init__(self, home: Home, say: Callable[[str], None] | None = None) -> None:
        self._home, self._say, self._problem, self._fate = home, say or _say, "", dict[str, str]()

    def changed(self, child: Child, words: str) -> None:
        """Of the supervisor. A SuperNode that goes on being refused is started again and again, and said once."""
        if self._fate.get(child.name) == words:
            return
        again = words == "started" and child.name in self._fate
        if not again:
            self._fate[child.name] = words
            hint = "" if words in {"started", "stopped"} else f"; started again; see {child.log}"
            self._say(f"{child.name} {words}{hint}")

    def look(self) -> None:
        """Say what changed in what keeps the site from taking part."""
        problem = runfiles.read_problem(self._home)
        if problem != self._problem:
            self._problem = problem
            self._say(f"problem: {problem}" if problem else "the problem is gone: the server answers")


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Hold the lock of this home; the system gives it back when this process ends, however it does."""
    path = home.run / runfiles.LOCK
    with atomic.disk_errors(path, "lock"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 32).decode(errors="replace").strip()
            raise MachineError(
                f"{home.root}: 'client up' runs already with this home, as process {pid}; stop that one first"
            ) from None
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def _say(line: str) -> None:
    typer.echo(line)
