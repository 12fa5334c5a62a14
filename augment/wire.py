"""What the engine hands to whoever answers, and what it gets back.

The HTTP client, the in-process heuristics and the replay of a cassette all answer through
`Answerer`, so journal, ledger and validation are the same for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from augment.specs import Endpoint

TEXT_TOKENS_PER_CALL = 100_000
"""Most tokens, by their bound, of the texts in one embeddings call."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call: a chat request, or several texts to embed.

    Attributes:
        endpoint: where it goes.
        body: what is sent; for embeddings `input` is the list of texts.
        keys: the requests it answers, in the order of `input`; one for chat.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, before anyone looked into it.

    Attributes:
        status: HTTP status; None if no status line was read.
        headers: names in lower case.
        body: the whole body, None if it was not read to its end.
        error: what the transport raised, with its causes.
        elapsed_ms: from sending to the end.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    error: BaseException | None = None
    elapsed_ms: int = 0


class Answerer(Protocol):
    """Answers calls; raises nothing but cancellation."""

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Send once, without retries.

        Args:
            call: what to send.
            journal: is called with the raw body of a 200 as soon as it is read, before anything
                else happens.
        """
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
