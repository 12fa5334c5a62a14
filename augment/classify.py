"""What a reply or an exception means: whether it was sent, billed, and may be sent again.

Exceptions are told by the names in their chain of causes, so that this file needs neither the
client nor a network.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from augment.redact import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from augment.wire import Reply

Billed = Literal["yes", "no", "unknown"]
_UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "gaierror"}
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_SERVER = {408, 409, 500, 502, 503, 504, 529}


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


def classify(reply: Reply) -> Classified:
    """Return what a reply means."""
    if reply.status is None or (reply.status == 200 and reply.body is None):
        return _failed(reply)
    if reply.status == 200:
        return Classified(Outcome.ok, "yes", None, "ok", "")
    code, text, is_json = _error_of(reply.body or b"")
    outcome, billed = _by_status(reply.status, code, is_json=is_json)
    message = redact(f"HTTP {reply.status}: {text or 'no message'}")[:500]
    if 300 <= reply.status < 400:
        where = reply.headers.get("location", "another address")
        message = redact(f"HTTP {reply.status}: a redirect to {where} is not followed.")
    name = "refused" if outcome == Outcome.refused else f"http_{reply.status}"
    return Classified(outcome, billed, retry_after(reply.headers), name, message)


def _by_status(status: int, code: str, *, is_json: bool) -> tuple[Outcome, Billed]:
    if status == 402 or (status == 429 and code in _QUOTA):
        return Outcome.quota, "no"
    if status == 429:
        return Outcome.rate_limited, "no"
    if status in (401, 403, 404) or 300 <= status < 400:
        return Outcome.auth, "no"
    if status in _SERVER or status >= 500:
        return Outcome.server, "no" if is_json else "unknown"
    if code in ("content_filter", "content_policy_violation"):
        return Outcome.refused, "no"
    return Outcome.refused_input, "no"


def _failed(reply: Reply) -> Classified:
    names = [type(error).__name__ for error in _chain(reply.error)]
    first = next(iter(names), "no reply")
    text = redact(f"{first}: {reply.error}")[:500]
    if reply.status is None and _UNSENT & set(names):
        return Classified(Outcome.not_sent, "no", None, "not_sent", text)
    return Classified(Outcome.ambiguous, "unknown", None, "ambiguous", text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _error_of(body: bytes) -> tuple[str, str, bool]:
    try:
        content: Any = json.loads(body)
    except ValueError:
        return "", body[:200].decode(errors="replace").strip(), False
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return "", str(error)[:300], True
    code = error.get("code") or error.get("type") or ""
    return str(code), str(error.get("message") or "")[:300], True


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause a server asks for, in seconds; None if it names none that makes sense.

    A date is held against the server's own `Date`, so that a wrong clock here does no harm.
    """
    try:
        if (text := headers.get("retry-after-ms")) is not None:
            return _sensible(float(text) / 1000)
        text = headers.get("retry-after")
        if text is None:
            return None
        try:
            return _sensible(float(text))
        except ValueError:
            until = parsedate_to_datetime(text)
            now = parsedate_to_datetime(headers["date"]) if "date" in headers else None
            now = now or dt.datetime.fromtimestamp(time.time(), tz=dt.UTC)
            return _sensible((until - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _sensible(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and 0 < seconds <= 7 * 86_400 else None
