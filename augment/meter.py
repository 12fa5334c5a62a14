"""Counts of a run for the progress display, and the guess of a call's tokens for rate limits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from augment.store.states import AttemptState, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from augment.store import Settlement
    from augment.store.claims import Claimed

_WEIGHT = 0.05
_BYTES_PER_TOKEN = 4.0


class Meter:
    """What a run did so far.

    Attributes:
        sent: calls.
        states: requests by the state they came to.
        codes: verdicts and failures by name.
        tokens_in: as the server counted them.
        tokens_out: the same for answers.
        spent_pusd: cost of this run.
    """

    def __init__(self) -> None:
        self.sent = self.tokens_in = self.tokens_out = self.spent_pusd = 0
        self.states: Counter[State] = Counter()
        self.codes: Counter[str] = Counter()
        self._per_byte = 1 / _BYTES_PER_TOKEN
        self._out: float | None = None

    @property
    def finished(self) -> int:
        """Requests that need no further call."""
        return sum(self.states[s] for s in (State.DONE, State.QUARANTINED, State.UNKNOWN))

    def estimate(self, items: Sequence[Claimed]) -> int:
        """Guess the tokens of a call: its bytes by the ratio seen, and the usual answer."""
        answer = self._out
        if answer is None:
            answer = sum(item.bound_out for item in items) / 2
        return max(1, round(sum(item.bound_in for item in items) * self._per_byte + answer))

    def settled(self, settlement: Settlement, items: Sequence[Claimed], kind: str) -> None:
        """Count the end of a call."""
        for change in settlement.changes:
            self.states[change.state] += 1
            self.codes[change.code] += 1
        if settlement.state == AttemptState.OK:
            self.spent_pusd += settlement.cost_pusd
        usage = settlement.usage
        if usage is None:
            return
        self.tokens_in += usage.input
        self.tokens_out += usage.output
        size = sum(item.bound_in for item in items)
        if size and usage.input:
            self._per_byte += _WEIGHT * (usage.input / size - self._per_byte)
        if kind != "embed":
            before = usage.output if self._out is None else self._out
            self._out = before + _WEIGHT * (usage.output - before)
        else:
            self._out = 0.0
