"""What detectors at the sites said: each goes through its examples in order of time, and only its events come here."""

from datetime import UTC, datetime

from server.checking.document import Check, SiteCheck

from .question import Question, at

_DAY_S = 86_400


def ask_streams(check: Check) -> list[Question]:
    """One question for each site whose detector ran: whether it fired since the model in use was released."""
    given = [site for _, site in sorted(check.sites.items()) if "stream" not in site.withheld]
    since = datetime.fromisoformat(check.since).timestamp() // _DAY_S * _DAY_S if check.since else None
    return [_of_site(site, since) for site in given]


def _of_site(site: SiteCheck, since: float | None) -> Question:
    events = [(what, day) for what, day in site.events if since is None or day >= since]
    days = sorted({(datetime.fromtimestamp(day, UTC).date().isoformat(), what) for what, day in events})
    said = ", ".join(f"{what} on {day}" for day, what in days[-3:])
    return Question(
        kind="stream",
        subject="stream",
        site=site.site,
        statistic=float(len(events)),
        threshold=0.0,
        p=None,
        effect=float(len(events)),
        n_reference=site.reference.examples,
        n_recent=site.recent.examples,
        large=bool(events),
        unclear="",
        name=f"the course of the examples {at(site.site)}",
        numbers=f"its detector fired {len(events)} times, last: {said}" if events else "its detector did not fire",
        certain=True,
    )
