"""What goes wrong between us and the SuperLink, in our own errors; no peer's text beyond Flower's own is repeated."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from fedretrain.errors import MachineError


class Refused(MachineError):
    """The SuperLink answers, and refuses."""


@contextmanager
def calling(doing: str, *, but: Collection[int] = ()) -> Iterator[None]:
    """Turn what the SuperLink's client raises into MachineError; codes in ``but`` merely end the block."""
    import httpx
    from flwr.supercore.error import FlowerError

    try:
        yield
    except httpx.HTTPStatusError as error:
        known = FlowerError.from_json(error.response.text)
        if known is not None and known.code in but:
            return
        said = known.message if known is not None else f"HTTP status {error.response.status_code}"
        raise Refused(f"cannot {doing}: the SuperLink refuses: {said}") from None
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise MachineError(
            f"cannot {doing}: the SuperLink does not answer ({type(error).__name__}); "
            "'fedretrain server up' starts it again by itself"
        ) from None
