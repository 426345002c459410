"""The ClientApp for Flower's own simulation runtime: a site of the run's job, trained in this process.

Invariants: as ``client.site``; and one warm trainer for the life of the process, whichever sites it stands in for.

The run's folder is the run configuration's ``run``; which site a node is, its ``partition-id``: a position among the
job's simulated sites in the order of their names.
"""

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedretrain.job import Job
from fedretrain.messages import Declined, pack
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import SiteSource, simulated_sites

from .site import Site
from .store import SiteStore

if TYPE_CHECKING:
    from .trainer import Trainer

log = logging.getLogger(__name__)

app = ClientApp()


@app.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    """Answer ``query.prepare``."""
    return _answer(message, context)


@app.query("base")
def base(message: Message, context: Context) -> Message:
    """Answer ``query.base``."""
    return _answer(message, context)


@app.query("companion")
def companion(message: Message, context: Context) -> Message:
    """Answer ``query.companion``."""
    return _answer(message, context)


@app.query("sum")
def sum_(message: Message, context: Context) -> Message:
    """Answer ``query.sum``."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer ``train``."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    try:
        site = _site(str(context.run_config["run"]), int(context.node_config["partition-id"]))
    except Exception:  # Flower would send an exception's text to the server
        log.exception("cannot stand in for a site")
        declined = Declined(run="", site="", code="site-failure", expected="see the site's log")
        return Message(pack(declined), reply_to=message)
    return Message(site.handle(message.metadata.message_type, message.content), reply_to=message)


@functools.cache
def _trainer() -> "Trainer":
    from .trainer import Trainer, configure_process

    configure_process()
    return Trainer()


@functools.lru_cache(maxsize=4)
def _run(run: str) -> tuple[Job, SiteStore, tuple[SiteSource, ...]]:
    """What all sites of a run share."""
    folder = RunFolder.open(Path(run))
    job = folder.load_job()
    return job, SiteStore(folder.store), tuple(simulated_sites(job).values())


@functools.lru_cache(maxsize=256)  # each holds its site's data
def _site(run: str, partition: int) -> Site:
    job, store, sources = _run(run)
    source = sources[partition]
    return Site(source.name, source.load, store, _trainer(), job.model.allow_modules, names_files=True)
