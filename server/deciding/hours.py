"""When a run may start: the server's hours and those of the sites, each in its time zone.

A window such as "22:00-06:00" holds from its first time on until before its second, over midnight where that is the
earlier one, in local time on every day: what summer time skips or repeats is skipped or repeated.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from fedretrain.planning import PlanSection

from .evidence import Evidence

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_DAYS = 3  # windows come every day, but for what summer time skips


@dataclass(frozen=True)
class Hours:
    """Windows in one time zone; none: always."""

    windows: tuple[str, ...]
    zone: str

    def hold(self, moment: datetime) -> bool:
        """Whether the moment lies in one of them."""
        local = f"{moment.astimezone(ZoneInfo(self.zone)):%H:%M}"
        return not self.windows or any(_within(window, local) for window in self.windows)

    def starts(self, after: datetime) -> Iterable[datetime]:
        """Their beginnings from then on, for as long as one looks ahead, in UTC."""
        zone = ZoneInfo(self.zone)
        first = after.astimezone(zone).date()
        for window in self.windows:
            clock = time.fromisoformat(window[:5])
            for day in range(_DAYS):
                start = datetime.combine(first + timedelta(days=day), clock, zone).astimezone(UTC)
                if start >= after:
                    yield start


def _within(window: str, local: str) -> bool:
    start, end = window.split("-")
    return start <= local < end if start < end else local >= start or local < end


def site_hours(evidence: Evidence, policy: PlanSection) -> dict[str, Hours]:
    """Hours of sites: as the policy has them, else as the site itself said; texts that are no hours are passed over."""
    said = {
        site: Hours(windows, policy.zone)
        for site, texts in evidence.site_hours
        if (windows := tuple(text for text in texts if _WINDOW.fullmatch(text)))
    }
    told = {site: Hours(entry.hours, entry.zone or policy.zone) for site, entry in policy.site_hours.items()}
    return said | told


def opens(now: datetime, own: Hours, sites: Mapping[str, Hours]) -> tuple[datetime, tuple[str, ...]]:
    """From when on a run may start, and which sites it then does without.

    The earliest time within three days at which most sites may take part; never outside the server's own hours.
    """
    moments = {now, *own.starts(now), *(start for hours in sites.values() for start in hours.starts(now))}
    allowed = [moment for moment in sorted(moments) if own.hold(moment)]
    if not allowed:
        return now + timedelta(days=_DAYS), ()
    absent = {m: tuple(sorted(site for site, hours in sites.items() if not hours.hold(m))) for m in allowed}
    best = min(allowed, key=lambda moment: (len(absent[moment]), moment))
    return best, absent[best]
