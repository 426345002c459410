"""What a person sees while worlds pass: what has come of each world, or of each step of one."""

from simulations.bar import Bar

from .outcome import Course, Record


class Watched(Bar):
    """A bar over all worlds, or over the steps of one."""

    def done(self, course: Course) -> Course:
        """A world is over; the same again."""
        said = f"accuracy {course.accuracy:.1%}, retrained {course.retrainings}, released {course.releases}"
        self.ended(f"{course.scenario}, seed {course.seed}, {course.policy}: {said}")
        return course

    def step(self, record: Record) -> None:
        """A step is over; for who watches one world only."""
        self.ended(told(record))


def told(record: Record) -> str:
    """One line about a step."""
    released = ", released" if record.released else ""
    why = f": {record.why}" if record.why else ""
    return f"step {record.step:2d}, to {record.at}: accuracy {record.accuracy:.1%}; {record.action}{released}{why}"
