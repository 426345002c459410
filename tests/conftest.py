"""For all tests: TensorFlow as a site's process has it, whichever test imports it first; and Ctrl-C as at a terminal.

One thread, because sums are split by threads and bits are compared; a quiet log, because TensorFlow's quotes labels.
Whoever starts the tests in the background may have told them to ignore Ctrl-C, and what they start would inherit that.
"""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("FEDRETRAIN_ENERGY", "off")  # where codecarbon is installed it takes each process some seconds
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """No test leaves its environment to the next: a command run in this process sets what its children are to have."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flushing of the disk, which takes most of the time where no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
