"""What a reply or an exception means: whether it was sent, billed, and may be sent again.

Exceptions are told by the names in their chain of causes, so that this file needs neither the
client nor a network.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from augment.prompts import without_surrogates
from augment.redact import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from augment.wire import Reply

Billed = Literal["yes", "no", "unknown"]
_UNSENT = frozenset(
    ["ConnectError", "ConnectTimeout", "PoolTimeout", "ConnectionRefusedError", "gaierror"]
)
_MAYBE_SENT = frozenset(
    [
        "ReadTimeout",
        "ReadError",
        "WriteTimeout",
        "WriteError",
        "RemoteProtocolError",
        "DecodingError",
        "TimeoutError",
        "CancelledError",
        "ConnectionResetError",
    ]
)
_TIMEOUTS = {
    "ReadTimeout": "no byte came within `provider.read_timeout_s`",
    "TimeoutError": "no whole reply came within `provider.timeout_s`",
}
_UNUSABLE = frozenset(["UnsupportedProtocol", "InvalidURL", "LocalProtocolError"])
_QUOTA = frozenset(["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"])
_AUTH = frozenset(["invalid_api_key", "model_not_found", "DeploymentNotFound"])
_FILTER = frozenset(["content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"])
_NUMBER = re.compile(r"\d{1,12}(\.\d{1,12})?", re.ASCII)
_LONGEST_PAUSE = 7 * 86_400.0  # seconds; a longer one is a mistake
_SERVER = frozenset([408, 409, 425, 499])
_REFUSED_INPUT = frozenset([400, 413, 414, 422, 431])


class Outcome(StrEnum):
    """How a call ended."""

    ok = "ok"
    not_sent = "not_sent"
    rate_limited = "rate_limited"
    quota = "quota"
    auth = "auth"
    refused_input = "refused_input"
    refused = "refused"
    server = "server"
    ambiguous = "ambiguous"


@dataclass(frozen=True, slots=True)
class Classified:
    """A reply, understood.

    Attributes:
        outcome: how it ended.
        billed: whether it costs money.
        retry_after_s: pause that the server asked for, None if it named none that makes sense.
        code: short name for tables.
        message: one sentence for people, without keys.
    """

    outcome: Outcome
    billed: Billed
    retry_after_s: float | None
    code: str
    message: str

    @property
    def sentence(self) -> str:
        """The message with a full stop, so that a remedy may follow."""
        return self.message if self.message.endswith((".", "!", "?")) else f"{self.message}."


def classify(reply: Reply) -> Classified:
    """Return what a reply means."""
    if reply.status is None or (200 <= reply.status < 300 and reply.body is None):
        return _failed(reply)
    if 200 <= reply.status < 300:
        return Classified(Outcome.ok, "yes", None, "ok", "")
    codes, text, is_json = _error_of(reply.body or b"")
    outcome, billed = _by_status(reply.status, codes, is_json=is_json)
    message = f"HTTP {reply.status}: {text or 'no message'}"
    if 300 <= reply.status < 400:
        where = reply.headers.get("location", "another address")
        message = f"HTTP {reply.status}: a redirect to {where} is not followed."
    name = "refused" if outcome == Outcome.refused else f"http_{reply.status}"
    return Classified(outcome, billed, retry_after(reply.headers), name, _one_line(message))


def _by_status(status: int, codes: frozenset[str], *, is_json: bool) -> tuple[Outcome, Billed]:
    if status >= 500 or status in _SERVER:
        # A gateway's page says nothing of what the model behind it did.
        return Outcome.server, "no" if is_json and status != 499 else "unknown"
    if status == 402 or codes & _QUOTA:
        return Outcome.quota, "no"
    if status == 429:
        return Outcome.rate_limited, "no"
    if codes & _FILTER:
        return Outcome.refused, "no"
    if status in _REFUSED_INPUT and not codes & _AUTH:
        return Outcome.refused_input, "no"
    if status < 200:
        return Outcome.ambiguous, "unknown"
    return Outcome.auth, "no"  # whatever else is refused will be refused again


def _failed(reply: Reply) -> Classified:
    chain = list(_chain(reply.error))
    names = [type(error).__name__ for error in chain]
    known = (name for name in names if name in _UNSENT | _MAYBE_SENT | _UNUSABLE)
    first = next(known, names[0] if names else "no reply")
    words = [str(error) for error in chain if str(error)]
    # The text of an unusable header holds the header.
    text = f"{first}: {words[-1]}" if words and first not in _UNUSABLE else first
    text = _TIMEOUTS.get(first, text)
    # aiohttp calls a connection that breaks after the request a ConnectTimeout.
    other = any(type(error).__module__.partition(".")[0] == "aiohttp" for error in chain)
    if reply.status is None and not other:
        if first in _UNSENT or "SSLCertVerificationError" in names:
            return Classified(Outcome.not_sent, "no", None, "not_sent", _one_line(text))
        if first in _UNUSABLE:
            return Classified(Outcome.auth, "no", None, "unusable", _one_line(text))
    code = "timeout" if first in _TIMEOUTS else "ambiguous"
    return Classified(Outcome.ambiguous, "unknown", None, code, _one_line(text))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _error_of(body: bytes) -> tuple[frozenset[str], str, bool]:
    """Return the codes, the message and whether it is an error in JSON."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return frozenset(), body[:300].decode(errors="replace"), False
    if not isinstance(content, dict):
        return frozenset(), str(content)[:300], False
    error = content.get("error", content)
    if not isinstance(error, dict):
        return frozenset(), str(error)[:300], True
    inner = error.get("innererror")
    found = [error.get("code"), error.get("type")]
    found.append(inner.get("code") if isinstance(inner, dict) else None)
    message = error.get("message") or error.get("detail") or ""
    return frozenset(code for code in found if isinstance(code, str)), str(message), True


def _one_line(text: str) -> str:
    return " ".join(redact(without_surrogates(text)).split())[:500]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause a server asks for, in seconds; None if it names none that makes sense.

    A date is held against the server's own `Date`, so that a wrong clock here does no harm.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if _NUMBER.fullmatch(text) and (seconds := _sensible(float(text) / unit)) is not None:
            return seconds
    until, now = (_date(headers.get(name)) for name in ("retry-after", "date"))
    if until is None:
        return None
    return _sensible((until - (now or dt.datetime.now(dt.UTC))).total_seconds())


def _sensible(seconds: float) -> float | None:
    return seconds if 0 < seconds <= _LONGEST_PAUSE else None


def _date(text: str | None) -> dt.datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=dt.UTC)
