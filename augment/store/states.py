"""The numbers that stand for states in the store."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """State of a request."""

    PLANNED = 0
    IN_FLIGHT = 1
    DONE = 2
    QUARANTINED = 3
    FOLLOWED = 4
    """Its answer was faulty or partial; a child request asks on."""
    IN_BATCH = 5
    UNKNOWN = 6
    """Held: nobody knows whether it was answered, and the policy is not to ask again."""


class AttemptState(IntEnum):
    """State of one send."""

    INTENT = 0
    OK = 1
    UNBILLED = 2
    UNKNOWN = 3
    ADOPTED = 4
    """Settled from what a crash left: an orphan vector."""
    RELEASED = 5
    """Was unknown; a person said that it was not billed."""
