"""Draws by hashes of names, so that what was paid for can be asked for again.

They depend on no numbering, and on no library's random generator, whose stream may change with
its version.
"""

from __future__ import annotations

import hashlib
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def keyed_seed(what: str, *parts: object) -> int:
    """Return a seed that depends on names only, never on numbering or order."""
    return int.from_bytes(_digest(what, *parts)[:8], "big")


def keyed_numbers(what: str, *parts: object) -> Iterator[int]:
    """Yield 64-bit numbers that depend on names only."""
    for block in count():
        digest = _digest(what, *parts, block)
        for start in range(0, len(digest), 8):
            yield int.from_bytes(digest[start : start + 8], "big")


def keyed_order(names: Sequence[str], what: str, *parts: object) -> list[int]:
    """Return the positions of names in an order that depends on names only."""
    head = hashlib.sha256(joined(what, *parts) + b"\0")
    digests = []
    for name in names:
        one = head.copy()
        one.update(joined(name))
        digests.append(one.digest())
    return sorted(range(len(names)), key=digests.__getitem__)


def joined(*parts: object) -> bytes:
    """Return parts as bytes with a NUL between them."""
    return "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(joined(*parts)).digest()
