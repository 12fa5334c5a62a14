"""Keys stay out of files, logs, messages and process arguments.

A key lives in one `Secret`. Texts that come from outside pass `redact` before they are shown or
stored; it hides the keys in use wherever they stand, and whatever looks like a key.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qsl, quote, urlsplit

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN = "[hidden]"
_SHORTEST = 4  # hiding shorter ones would blot out plain words
_NAMES = r"(?:x-)?api[-_ ]?key|authorization|subscription-key|access[-_]token|client[-_]secret"
_PATTERNS = (
    # user:password@ of an address
    re.compile(r"(://)[^\s/?#@]+(?=@)"),
    # name: value, in headers, JSON, reprs and query strings
    re.compile(
        rf"(?i)((?:{_NAMES})b?[\"']?\s*[:=,]\s*(?:b?[\"'])?)(?:(?:bearer|basic)\s+)?[^\s\"',;&)}}]+"
    ),
    re.compile(r"(?i)([?&](?:key|sig|token|code|secret|password)=)[^\s\"'&#]+"),
    re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/*=-]{8,}"),
    # sk-..., also shortened as sk-ab***yz or sk-ab...yz
    re.compile(r"(?<![A-Za-z0-9])sk-(?:[A-Za-z0-9_*-]|\.{2,}|…){3,}"),
    # any other key shown with its middle starred
    re.compile(r"[A-Za-z0-9_-]+\*{3,}[A-Za-z0-9_*-]*"),
)
_SECRET_FIELD = re.compile(r"(?i)key|sig|token|code|secret|passw|auth")
_live: set[str] = set()


class Secret:
    """A key: shown nowhere, given only to whoever asks for it by name.

    Args:
        value: the key; `redact` hides it from now on.
    """

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
        raise TypeError("a secret cannot be pickled or copied")


def read_key(name: str) -> Secret | None:
    """Return the key in an environment variable, None if it is unset or blank.

    Raises:
        ConfigError: the value cannot be a key, since it holds white space or no plain ASCII.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigError(
            f"environment variable `{name}` holds white space or characters that no key has; "
            "set it to the key alone."
        )
    return Secret(value)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Hide keys in a text.

    Args:
        text: anything that is to be shown or stored.
        secrets: further values to hide, beside every `Secret` of this process.
    """
    for secret in sorted({*_live, *secrets}, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda m: (m.group(1) if m.re.groups else "") + HIDDEN, text)
    return text


class RedactingFilter(logging.Filter):
    """Redacts each record as it is written, its traceback included.

    Belongs on handlers: a logger's filter does not see the records of its children.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; never drops one."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit the text
            text = f"{record.msg} {record.args}"
        record.msg, record.args = text, None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        for name, value in list(vars(record).items()):
            if isinstance(value, str):
                setattr(record, name, redact(value))
        return True


def check_base_url(url: str, *, insecure_http: bool = False) -> None:
    """Refuse addresses that carry secrets or would send them in the clear.

    Args:
        url: address of a provider.
        insecure_http: allow plain http to any host.

    Raises:
        ConfigError: no http(s) address, user info or a secret in it, or plain http to a host
            that is neither this machine nor private.
    """
    try:
        parts = urlsplit(url)
        host, usable = parts.hostname or "", parts.port != 0
    except ValueError:
        host, usable = "", False
    plain = url.isascii() and url.isprintable() and not set(url) & set(" \\")
    if not (usable and plain and host and parts.scheme in ("http", "https")):
        raise ConfigError(
            f"`base_urls` has {redact(url)!r}, which is no http(s) address; write it like "
            "https://api.openai.com/v1."
        )
    fields = parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True)
    secret = any(_SECRET_FIELD.search(name) or redact(value) != value for name, value in fields)
    if "@" in parts.netloc or secret:
        raise ConfigError(
            f"`base_urls` has user info or a secret in the address of host {host!r}; take it "
            "out. Keys come from the environment variable `provider.key_env` only."
        )
    if parts.scheme == "http" and not insecure_http and not _private(host):
        raise ConfigError(
            f"`base_urls` has {redact(url)!r}, which would send prompts and the key unencrypted; "
            "use https, or set `provider.insecure_http=true` if you mean it."
        )


def _private(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        # A bare name means a container or machine nearby; a number is an address in disguise.
        return "." not in host and not host[0].isdigit()
