"""What workers run on: a core each, or a GPU each where TensorFlow can use GPUs. Found out without TensorFlow."""

import ctypes.util
import importlib.util
import os
from pathlib import Path

_DEVICES = Path("/dev")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs as ``CUDA_VISIBLE_DEVICES`` has them; none where the libraries for them are missing."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(path.name.removeprefix("nvidia") for path in _DEVICES.glob("nvidia[0-9]*"))
    if not found or not _libraries():
        return []
    return found if named is None else [name for name in named.split(",") if name not in {"", "-1"}]


def default_workers(sites: int) -> int:
    """Worker processes for so many sites: one per GPU, else one per core, but no more than there are sites."""
    return max(1, min(len(gpus()) or cores(), sites))


def seen_by(place: int) -> dict[str, str]:
    """What the environment of the worker at ``place``, from 0 on, says about GPUs: one, where there are any."""
    found = gpus()
    return {"CUDA_VISIBLE_DEVICES": found[place % len(found)]} if found else {}


def _libraries() -> bool:
    """Whether cuDNN is there, which TensorFlow cannot do without: as a package or as a library of the system."""
    try:
        packaged = importlib.util.find_spec("nvidia.cudnn") is not None
    except ModuleNotFoundError:
        packaged = False
    return packaged or ctypes.util.find_library("cudnn") is not None
