"""Answers to messages that nobody vouches for: signed by the site, about nothing, and sparing with its record."""

from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from fedretrain.membership import Kit
from fedretrain.messages import record
from fedretrain.seal import LIMIT, RECORD, Claims

LIFE_S = 600
QUIET_S = 60.0


def claims_of_refusal(content: RecordDict, kit: Kit, message_type: str, now: float) -> Claims:
    """Claims of a refusal. Run, round and nonce are what the message says, whoever wrote it.

    All that such a claim can be used for is to say no, which whoever could write it can do by saying nothing.
    """
    asked = _said(content)
    return Claims(
        kind="reply",
        federation=kit.federation,
        message_type=message_type,
        run=asked.run if asked else "",
        round=asked.round if asked else 0,
        site=kit.site,
        nonce=asked.nonce if asked else "0" * 32,
        issued=int(now),
        expires=int(now) + LIFE_S,
    )


class Quiet:
    """Lets one of many like messages through to the record every ``QUIET_S`` seconds, with a count of the others."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}

    def like_it(self, kind: str, now: float) -> int | None:
        """How many were left out before this one, or None where this one is left out too; there are few ``kind``s."""
        last, left_out = self._last.get(kind, (-QUIET_S, 0))
        if 0 <= now - last < QUIET_S:
            self._last[kind] = (last, left_out + 1)
            return None
        self._last[kind] = (now, 0)
        return left_out


def _said(content: RecordDict) -> Claims | None:
    found = record(content, RECORD, ConfigRecord)
    text = found.get("json") if found is not None else None
    try:
        return Claims.model_validate_json(text) if isinstance(text, str) and len(text) <= LIMIT else None
    except ValidationError:
        return None
