"""Keys stay out of files, logs, messages and process arguments."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN = "[hidden]"
_PATTERNS = (
    re.compile(r"\bsk-[A-Za-z0-9_*.\-]{4,}"),
    re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/*=\-]{4,}"),
    re.compile(r"(?i)\b((?:api-key|x-api-key|authorization)[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+"),
)
_live: set[str] = set()


class Secret:
    """A key: shown nowhere, given only to whoever asks by name."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        _live.add(value)

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied to another process")


def read_key(name: str) -> Secret | None:
    """Return the key in an environment variable, None if it is unset or empty."""
    value = os.environ.get(name, "").strip()
    return Secret(value) if value else None


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Hide live keys and whatever looks like one."""
    for secret in sorted({*_live, *secrets}, key=len, reverse=True):
        if len(secret) >= 4:  # shorter ones would blot out plain words
            text = text.replace(secret, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda m: (m.group(1) if m.re.groups else "") + HIDDEN, text)
    return text


class RedactingFilter(logging.Filter):
    """Redacts each record as it is written, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; never drops one."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text, record.exc_info = redact(text), None
        return True


def check_base_url(url: str, *, insecure_http: bool = False) -> None:
    """Refuse addresses that carry secrets or send them in the clear.

    Raises:
        ConfigError: no http(s) address, user info or a query in it, or plain http to a host
            that is neither this machine nor private.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"`base_urls` has {redact(url)!r}, which is no http(s) address.")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"`base_urls` has user info or a query for host {parts.hostname!r}; keys come from "
            "the environment (`provider.key_env`) only."
        )
    if parts.scheme == "http" and not insecure_http and not _private(parts.hostname):
        raise ConfigError(
            f"{url!r} would send prompts and key unencrypted; use https, or set "
            "`provider.insecure_http=true` if you mean it."
        )


def _private(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host  # a name inside a private network
    return address.is_loopback or address.is_private
