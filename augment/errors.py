"""Reasons for which a run stops, each with its exit status."""

from __future__ import annotations

from llmrec_pl.errors import LLMRecError


class AugmentStop(LLMRecError):  # noqa: N818  # a stop is no failure of the program
    """A run cannot go on; what was received is safe."""

    exit_code = 1


class BudgetStop(AugmentStop):
    """The next call could break the budget."""

    exit_code = 3


class QuotaStop(AugmentStop):
    """The provider says that the account has no credit left."""

    exit_code = 4


class AuthStop(AugmentStop):
    """The key, the model or the address is refused."""

    exit_code = 5


class RateLimitStop(AugmentStop):
    """The provider kept refusing calls for longer than `max_wait_s`."""

    exit_code = 6


class RejectStop(AugmentStop):
    """Too many replies fail validation; the prompt is probably at fault."""

    exit_code = 7


class StoreFullStop(AugmentStop):
    """The disk or the quota is full, or the store cannot be written."""

    exit_code = 74


class LockedStop(AugmentStop):
    """Another process works on the store."""

    exit_code = 75


class ReplayMissError(AugmentStop):
    """A cassette holds no reply to a request."""
