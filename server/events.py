"""What happens in a run, as it happens: one line each in the run folder's event log, and a call to whoever watches.

Format ``fedretrain.events/1``: an event is a JSON object with its kind under ``event`` and its time, UTC in ISO 8601,
under ``at``. Names of sites are sorted::

    run-started         run_id, sites [name] (known beforehand, else empty), rounds, completed, changing_bytes,
                        model_bytes; again at each resume
    site-prepared       site, train_examples, validation_examples
    site-declined       site, code, where, expected
    site-away           site (it was ready and is not connected, or was revoked; rounds go on without it)
    site-back           site
    sum                 sum (its name, ``fedretrain.sums``), sites [name], examples: what is in it
    sum-refused         sum, site, code, detail: why a site is not in it
    round-started       round, sites [name]
    reply               round, site, examples, norm, bytes, seconds, metrics {name: number}, flags [text]; in the first
                        round it may be quarantined after this
    quarantined         round, site, code, detail
    round-finished      round, sites [name], admitted [reply], quarantined [{site, code, detail}], metrics, seconds,
                        bytes_base, bytes_down, bytes_up, requests, replies
    monitored           round, loss, metrics {name: number}, seconds; of the global model after that round (0: what the
                        run starts from) on the job's [monitor] data. It comes while a later round goes on, and before
                        that one counts; ``loss`` is null where the job's loss has no finite value there
    target-reached      round, metric, value, target: the run goes on with the model after that round to the gate; again
                        at each resume
    round-abandoned     round, reason
    checkpoint          round
    checkpoint-corrupt  file, used (the round it goes on from)
    gate                the gate's report (``server.gate``)
    released            release (its id)
    rejected            reasons [text]
    segment-finished    segment (from 1), run_id, rounds, outcome, release, reasons [text]; of an online job, whose log
                        has its segments' events too (``server.online``)
    delivered           site, release
    delivery-failed     site, release, code, where, expected
    check-started       sites [name] (known beforehand, else empty), release, since, features [name]: of a check, whose
                        log has no rounds (``server.checking``)
    check-answer        site, reference, recent: examples of its two windows; withheld {section: reason}
    check-refused       site, code, detail: why a site is not in the check
    checked             sites [name], declined {site: reason}, bytes (of arrays, both ways)
    failed              reason
    warning             text
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedretrain.runfolder import RunFolder


@dataclass(frozen=True)
class EventLog:
    """Call it with a kind and its fields, from any thread; every number has to be finite."""

    folder: RunFolder
    watcher: Callable[[dict[str, Any]], None] | None = None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def __call__(self, event: str, **fields: Any) -> None:
        """Write the event down, then tell the watcher; raises MachineError on a full disk."""
        with self._one_at_a_time:
            entry = {"event": event, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
            self.folder.append_event(entry)
            if self.watcher is not None:
                self.watcher(entry)
