"""What is known of which release each site has.

Invariant: every entry is on the disk as soon as it is known, whoever else writes; a damaged file counts as none, for
asking the sites again costs little.

``state/installed.json``, format ``fedretrain.installed/1``: a JSON object with ``format`` and, under ``sites``, for
each site that was ever asked::

    "installed"   id of the newest release it said it has, "" for none
    "used"        id of the one it said it uses; another than ``installed`` where its operator went back
    "offered"     id of the release it was last sent, or was to be sent
    "code"        why it does not have it: a code of ``DeclinedRequest`` or ``RejectedUpdate``, "" where it does
    "at"          when that was, UTC, ISO 8601
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from fedretrain import atomic

from .federation import Federation

FORMAT: Final = "fedretrain.installed/1"
AGAIN_AFTER: Final = {"release-refused": timedelta(hours=1), "policy": timedelta(hours=1), "late": timedelta(minutes=1)}
AGAIN: Final = timedelta(minutes=10)  # after any other code


@dataclass(frozen=True)
class Installed:
    """What is known of one site; see the module docstring."""

    installed: str = ""
    used: str = ""
    offered: str = ""
    code: str = ""
    at: str = ""


def installed(federation: Federation) -> dict[str, Installed]:
    """What is known of each site that was ever asked; a damaged file counts as none, for asking again costs little."""
    try:
        entries = json.loads(federation.installed.read_bytes())["sites"]
        return {name: Installed(**entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def remember(federation: Federation, site: str, entry: Installed) -> None:
    """Put one site's entry in the place of the one before; raises MachineError."""
    with atomic.locked(federation.state / ".installed.lock"):
        known = {**installed(federation), site: entry}
        value = {"format": FORMAT, "sites": {name: asdict(known[name]) for name in sorted(known)}}
        atomic.write_json(federation.installed, value)


def is_due(entry: Installed | None, admitted: str, incumbent: str, now: datetime) -> bool:
    """Whether a site, admitted at ``admitted`` (ISO 8601), lacks ``incumbent`` and was not offered it a while ago."""
    try:
        if entry is None or entry.offered != incumbent or _time(entry.at) < _time(admitted):
            return True  # what was known before it was admitted is another machine's
        return bool(entry.code) and now >= _time(entry.at) + AGAIN_AFTER.get(entry.code, AGAIN)
    except ValueError:
        return True


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
