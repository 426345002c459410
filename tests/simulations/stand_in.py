"""A handler without TensorFlow for workers under test: the message type's action says what the site does."""

import os
import signal
import time

from flwr.app import ConfigRecord, RecordDict

from simulations.worker import Sites


class StandIn:
    said: list[str]

    def configure(self, sites: Sites) -> None:
        self.sites, self.said = sites, []

    def handle(self, site: str, message_type: str, content: RecordDict) -> RecordDict:
        action = message_type.partition(".")[2]
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "fail":
            raise ValueError("a text that must stay here")
        if action == "sleep":
            time.sleep(60)
        if action == "nap":
            time.sleep(0.3)
        if action == "note":
            self.said = ["a slow model"]
        if action == "print":
            print("this must not reach the frames")  # noqa: T201  # what a careless library does
        told = ConfigRecord({"site": site, "pid": os.getpid(), "file": str(self.sites.sources[site].file)})
        return RecordDict({**content, "told": told})

    def notes(self) -> list[str]:
        return self.said


class NeverStarts:
    def __init__(self) -> None:
        os._exit(7)
