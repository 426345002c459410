"""Where a figure was measured: machine, versions and what else the machine did. No name of machine, user or folder."""

import os
import platform
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tensorflow", "keras", "flwr", "ray", "numpy", "numba")


@dataclass(frozen=True)
class Environment:
    """What a reader needs to judge a figure.

    Attributes:
        date: UTC day.
        system: Operating system and architecture.
        cpu: The processor's name.
        cores: Cores this process may use.
        memory_gib: Of the machine.
        python: Python's version.
        versions: Of the packages that matter, by name.
        commit: Git commit of the checkout; ends in "+" where files differ from it; empty outside a checkout.
        load_before: Load average of a minute when the measurement began, i.e. other work on the machine.
        load_after: When it ended, i.e. its own as well.
    """

    date: str
    system: str
    cpu: str
    cores: int
    memory_gib: float
    python: str
    versions: dict[str, str]
    commit: str
    load_before: float
    load_after: float | None = None

    @classmethod
    def now(cls) -> "Environment":
        """The environment before a measurement."""
        return cls(
            date=datetime.now(UTC).date().isoformat(),
            system=f"{platform.system()} {platform.machine()}",
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=round(_memory() / 2**30, 1),
            python=platform.python_version(),
            versions=_versions(),
            commit=_commit(),
            load_before=_load(),
        )

    def ended(self) -> "Environment":
        """The same, with the load after the measurement."""
        return replace(self, load_after=_load())

    def text(self) -> str:
        """One line for below a table; versions are in the JSON."""
        after = "" if self.load_after is None else f", {self.load_after:.1f} after"
        commit = f", commit {self.commit}" if self.commit else ""
        return f"{self.date}, {self.cpu}, {self.cores} cores{commit}; load {self.load_before:.1f} before{after}."


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return ""
    try:
        commit = _git(checkout, "rev-parse", "--short=10", "HEAD")
        return commit + ("+" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(checkout: Path, *arguments: str) -> str:
    call = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
