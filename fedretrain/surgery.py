"""A model made of another: fresh weights, a new head, further output rows; always built through the allow-list."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initializers without a seed of their own draw from this one inside, whatever this process drew before."""
    before = random.getstate()
    random.seed(seed)  # Keras draws each initializer's seed from here, when a layer is made
    try:
        yield
    finally:
        random.setstate(before)
