"""What a person sees of a comparison: what has come of each run."""

from simulations.bar import Bar

from .outcome import Refused
from .run import Found


class Watched(Bar):
    """A bar over all runs."""

    def done(self, found: Found) -> Found:
        """A run has ended; the same again."""
        way, seed, of = found
        if isinstance(of, Refused):
            told = f"refused: {of.why}"
        else:
            told = f"old {of.before.old:.1%} -> {of.after.old:.1%}, new {of.before.new:.1%} -> {of.after.new:.1%}"
            told += "" if of.released else ", not released"
        self.ended(f"{way}, seed {seed}: {told}")
        return found
