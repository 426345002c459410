"""Token buckets by the clock."""

from server.gateway.limits import Buckets


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_requests_wait_their_turn_then_are_refused() -> None:
    """2 a second, 3 at once, half a second of patience: 0, 0, 0, 0.5, no; a second later two more. By hand."""
    clock = Clock()
    buckets = Buckets(rate=2, burst=3, patience_s=0.5, clock=clock)
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0.5, None, None]
    assert (buckets.spent("a"), buckets.spent("b")) == (True, False)
    assert buckets.take("b") == 0
    clock.now += 1
    assert [buckets.take("a") for _ in range(3)] == [0, 0.5, None]
    clock.now += 1000
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_callers_are_forgotten_when_there_are_too_many() -> None:
    """A flood from made-up addresses does not fill the memory; who asks often is kept."""
    buckets = Buckets(rate=1, burst=1, patience_s=0, clock=Clock(), most=10)
    for number in range(100):
        buckets.take("often")
        buckets.take(number)
    assert buckets.take("often") is None
    assert buckets.take(0) == 0
