"""Who is in the federation and how each site is: roster, gateway, deliveries and runs, read together.

Invariant: everything is read from files that others write, so it can be asked at any time, also when nothing runs; a
file that is missing or damaged leaves a gap and stops nothing.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, Final

from fedretrain import words
from fedretrain.runfolder import RunFolder
from fedretrain.standing import moment

from . import uplock
from .desired import utc
from .federation import Federation, Member
from .gateway.counters import Report, Traffic, load
from .installed import Installed, installed

ONLINE_S: Final = 15.0  # a SuperNode asks for messages every few seconds
_OURS: Final = frozenset({"superlink-down"})  # what the gateway refuses for the server's own fault
RUNS_READ: Final = 20  # the last ones, for a site's last problem


def site_rows(federation: Federation) -> list[dict[str, Any]]:
    """Every member by name, as JSON values; revoked ones too.

    ``last_seen`` is when the gateway last let it through, ``problem`` its last one: ``{"at", "code", "text", "run"}``,
    ``run`` null where the gateway refused it; ``installed`` and ``used`` are ids of releases as the site says.

    Raises:
        ConfigurationError: The roster is damaged.
    """
    report, delivered = load(federation.sites), installed(federation)
    now = time.time() if uplock.running(federation.up_lock) is not None else math.inf  # nobody is there without it
    troubles = _troubles(federation, report)
    rows = []
    for name, member in sorted(federation.members().items()):
        traffic, has = report.sites.get(name, Traffic()), delivered.get(name, Installed())
        row = _row(member, traffic, has, troubles.get(name))
        rows.append({**row, "online": member.active and _is_online(traffic, now)})
    return rows


def online(federation: Federation) -> set[str]:
    """Names of the active members that are connected."""
    now, report = time.time(), load(federation.sites)
    return {name for name in federation.active() if _is_online(report.sites.get(name, Traffic()), now)}


def _row(member: Member, traffic: Traffic, has: Installed, trouble: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "site": member.name,
        "admitted": member.admitted,
        "revoked": member.revoked,
        "last_seen": None if traffic.last_seen is None else utc(traffic.last_seen),
        "address": traffic.address or None,
        "software": member.software,
        "installed": has.installed or None,
        "used": has.used or None,
        "bytes_in": traffic.bytes_in,
        "bytes_out": traffic.bytes_out,
        "problem": trouble,
    }


def _is_online(traffic: Traffic, now: float) -> bool:
    return traffic.last_seen is not None and now - traffic.last_seen < ONLINE_S


def _troubles(federation: Federation, report: Report) -> dict[str, dict[str, Any]]:
    """The last problem of each site."""
    found: dict[str, tuple[float, dict[str, Any]]] = {}
    for site, at, trouble in (*_refusals(report), *_events(federation)):
        if at >= found.get(site, (0.0, {}))[0]:
            found[site] = (at, {"at": utc(at), **trouble})
    return {site: trouble for site, (_, trouble) in found.items()}


def _refusals(report: Report) -> Iterator[tuple[str, float, dict[str, Any]]]:
    for site, traffic in report.sites.items():
        for refusal in traffic.refusals:
            if refusal.code not in _OURS:
                yield site, refusal.at, {"code": refusal.code, "text": refusal.text, "run": None}


def _events(federation: Federation) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """What went wrong at a site in the last runs."""
    files = sorted(federation.runs.glob("*/events.jsonl"), key=lambda file: file.stat().st_mtime)
    for file in files[-RUNS_READ:]:
        folder = RunFolder(file.parent)
        for event in folder.read_events():
            tell = _TOLD.get(str(event["event"]))
            if tell is not None and "site" in event:
                trouble = {"code": str(event["code"]), "text": tell(event), "run": folder.run_id}
                yield str(event["site"]), moment(event) or 0.0, trouble


_TOLD: Final = {
    "quarantined": words.quarantined,
    "site-declined": words.declined,
    "delivery-failed": words.declined,
}
