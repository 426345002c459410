"""What the log says of an unexpected error: where it arose and its class, for its text may quote data."""

import logging
import traceback

from fedretrain.errors import FedretrainError

log = logging.getLogger(__name__)


def log_without_text(doing: str, error: Exception) -> None:
    """Class and place of an error, and the text where it is ours; TensorFlow's texts, for one, quote labels."""
    frames = [f"{f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    text = f": {error}" if isinstance(error, FedretrainError) else " (its text at level DEBUG)"
    log.error("%s: failed with %s%s\n  %s", doing, type(error).__name__, text, "\n  ".join(frames))
    log.debug("%s", doing, exc_info=error)
