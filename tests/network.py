"""Machines on one wire: network namespaces with an address each, whose links can be cut and slowed down.

Needs root and Linux; ``reason_against`` says why it cannot be had here. Everything made is removed again.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_SUBNET = "10.77.0"


def reason_against() -> str | None:
    """Why there can be no such network here, None where there can."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs ip and root to make network namespaces"
    probe = f"fr{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not to be had: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


class Network:
    """Namespaces by machine name; the first one is known to all others as ``host``."""

    def __init__(self, machines: Sequence[str], host: str) -> None:
        self._spaces = {name: f"fr{os.getpid()}-{i}" for i, name in enumerate(machines)}
        self._wires = {name: f"fr{os.getpid()}w{i}"[-15:] for i, name in enumerate(machines)}
        self.addresses = {name: f"{_SUBNET}.{i + 10}" for i, name in enumerate(machines)}
        self._switch = f"fr{os.getpid()}-switch"
        self._host = host

    def __enter__(self) -> "Network":
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def inside(self, machine: str) -> list[str]:
        """What to put in front of a command so that it runs on a machine."""
        return ["ip", "netns", "exec", self._spaces[machine]]

    def cut(self, machine: str) -> None:
        """Pull the machine's cable out."""
        _ip("-n", self._switch, "link", "set", self._wires[machine], "down")

    def restore(self, machine: str) -> None:
        """Put it back in."""
        _ip("-n", self._switch, "link", "set", self._wires[machine], "up")

    def slow(self, machine: str, kbit: int) -> None:
        """Let no more than so many kilobits a second through to the machine and from it."""
        shape = ["root", "tbf", "rate", f"{kbit}kbit", "burst", "32kbit", "latency", "400ms"]
        _run(["tc", "-n", self._switch, "qdisc", "replace", "dev", self._wires[machine], *shape])
        _run(["tc", "-n", self._spaces[machine], "qdisc", "replace", "dev", "eth0", *shape])

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        first = next(iter(self.addresses.values()))
        for name, space in self._spaces.items():
            _ip("netns", "add", space)
            wire = self._wires[name]
            _ip("-n", self._switch, "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", self._switch, "link", "set", wire, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            hosts = Path("/etc/netns") / space / "hosts"
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{first} {self._host}\n")

    def _remove(self) -> None:
        for space in (*self._spaces.values(), self._switch):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
