"""Replies of answerers in this process, in the bytes that a server would send.

Journal, ledger and validation need not know the difference.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from augment.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def answered(content: Mapping[str, Any], journal: Callable[[bytes], None], begin: float) -> Reply:
    """Return a 200 with `content` as its body, journalled.

    Args:
        content: plain JSON values.
        journal: is given the body.
        begin: monotonic seconds when the call came in.
    """
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    journal(body)
    return Reply(200, {"content-type": "application/json"}, body, elapsed_ms=_since(begin))


def refused(error: Exception, begin: float) -> Reply:
    """Return a 400 that says why; what fails here would fail again, so nobody should retry it."""
    text = str(error) if str(error) else "no reason given"
    content = {"error": {"message": text, "type": type(error).__name__, "code": "local"}}
    body = json.dumps(content, ensure_ascii=True).encode()
    return Reply(400, {"content-type": "application/json"}, body, elapsed_ms=_since(begin))


def _since(begin: float) -> int:
    return round(1000 * (time.monotonic() - begin))
