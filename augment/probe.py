"""Finds out how a server can be asked for JSON, before anything is planned.

The answer is part of every body, hence of every request's key: it must be known first, and once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from augment.classify import Outcome, classify
from augment.clock import SystemClock
from augment.errors import AugmentStop, AuthStop, QuotaStop, RateLimitStop
from augment.faults import point
from augment.judge import Policy, judge_failure, judge_paid
from augment.money import bound_cost, bound_input, bound_output
from augment.store import price_id, reserve
from augment.wire import Call
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from augment.classify import Classified
    from augment.clock import Clock
    from augment.money import Price
    from augment.store import Store
    from augment.wire import Answerer, Reply

Mode = Literal["json_schema", "json_object", "none"]
MODES: tuple[Mode, ...] = ("json_schema", "json_object", "none")
LANE = "probe"
"""Lane of attempts that no request stands behind."""
_TRIES = 4
_LONGEST_WAIT_S = 60.0
_MAX_TOKENS = 32
_SCHEMA = {
    "type": "object",
    "properties": {"choice": {"type": "integer", "enum": [1, 2]}},
    "required": ["choice"],
    "additionalProperties": False,
}
_FORMS: dict[Mode, dict[str, Any] | None] = {
    "json_schema": {
        "type": "json_schema",
        "json_schema": {"name": "probe", "strict": True, "schema": _SCHEMA},
    },
    "json_object": {"type": "json_object"},
    "none": None,
}


class Nobody:
    """Answers nothing, where no server may be needed.

    Args:
        what: is to be done without one.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Refuse; see `Answerer`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{self._what} would have to ask the server which form of answers it supports; say "
            "`--set provider.structured=json_schema` (or json_object, or none), or use `run`."
        )

    async def close(self) -> None:
        """Nothing is open."""


class Accounted:
    """Sends each call of a probe as an attempt of its own: reserved, journalled and charged.

    Args:
        answerer: who is asked.
        store: opened for work.
        run: row of this process life.
        price: what tokens cost; None where nothing is charged.
        clock: for records.
    """

    def __init__(
        self, answerer: Answerer, store: Store, run: int, price: Price | None, clock: Clock
    ) -> None:
        self._answerer, self._store, self._run = answerer, store, run
        self._price, self._clock = price, clock

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Send once; see `Answerer`.

        Raises:
            BudgetStop: the call could break the budget.
            StoreFullStop: the store cannot be written.
        """
        size = (bound_input(call.body), bound_output(call.body) or 0)
        bound = 0 if self._price is None else bound_cost(self._price, *size)
        attempt = self._store.do(lambda db: self._reserve(db, bound))

        def keep(body: bytes) -> None:
            self._store.spool.write(attempt, body)
            point("spooled")
            journal(body)

        reply = await self._answerer.send(call, keep)
        found, now = classify(reply), self._clock.wall_ms()
        if found.outcome == Outcome.ok and reply.body is not None:
            end = judge_paid(
                reply.body, attempt=attempt, price=self._price, reserved=bound, now=now, reply=reply
            )
        else:
            end = judge_failure((), found, attempt=attempt, policy=Policy(), now=now, reply=reply)
        self._store.settle(end).result()
        return reply

    async def close(self) -> None:
        """The answerer belongs to somebody else."""

    def _reserve(self, db: sqlite3.Connection, bound: int) -> int:
        return reserve(
            db,
            run=self._run,
            lane=LANE,
            requests=(),
            bound_pusd=bound,
            price=None if self._price is None else price_id(db, self._price),
            now=self._clock.wall_ms(),
        )


def form_key(provider: str, model: str) -> str:
    """Return the name under which a store keeps which form of answers a server takes."""
    return f"structured:{provider}:{model}"


async def probe_structured(
    answerer: Answerer,
    model: str,
    *,
    clock: Clock | None = None,
    journal: Callable[[bytes], None] | None = None,
) -> Mode:
    """Return the strictest form of answer that the server offers.

    Asks one tiny question per mode, the most capable first. A mode is given up if the server
    refuses it (400, 422), or takes it and answers with something else, as servers do that do not
    know the field. What a busy server refuses is asked again, up to four times.

    Args:
        answerer: who is asked.
        model: name of the model.
        clock: for the waits.
        journal: gets the raw bodies; each call is billed for some 100 tokens.

    Raises:
        AuthStop: key, model or address are refused, nobody listens, or even a plain question is
            not accepted.
        QuotaStop: the account has no credit left.
        RateLimitStop: the server stays too busy.
    """
    clock = clock or SystemClock()
    refusal = ""
    for mode in MODES:
        call = Call("chat.completions", _body(model, mode), ())
        reply, found = await _ask(answerer, call, clock, journal or _forget)
        if found.outcome == Outcome.ok and _obeys(mode, reply):
            return mode
        if found.outcome not in (Outcome.ok, Outcome.refused_input, Outcome.refused):
            raise _stop(found)
        refusal = found.sentence
    if found.outcome == Outcome.ok:
        raise AuthStop(
            "what answers is no chat server: its reply holds no choice. Check `base_urls`; an "
            "OpenAI-compatible address usually ends in `/v1`."
        )
    raise AuthStop(
        f"the server does not even accept a plain question to model {model!r}: {refusal} Check "
        "the model's name and whether it takes `max_tokens`."
    )


def _body(model: str, mode: Mode) -> dict[str, Any]:
    question = 'Choose 1 or 2. Answer with JSON only, in the form {"choice": 1}.'
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": _MAX_TOKENS,
    }
    form = _FORMS[mode]
    return body if form is None else {**body, "response_format": form}


async def _ask(
    answerer: Answerer, call: Call, clock: Clock, journal: Callable[[bytes], None]
) -> tuple[Reply, Classified]:
    for attempt in range(1, _TRIES + 1):
        reply = await answerer.send(call, journal)
        found = classify(reply)
        busy = found.outcome in (Outcome.rate_limited, Outcome.server, Outcome.ambiguous)
        if not busy or attempt == _TRIES:
            break
        await clock.sleep(min(found.retry_after_s or 2.0**attempt, _LONGEST_WAIT_S))
    return reply, found


def _obeys(mode: Mode, reply: Reply) -> bool:
    """Tell whether the answer has the form asked for; one that was cut has the benefit of doubt."""
    try:
        choice = json.loads(reply.body or b"")["choices"][0]
        content = choice["message"]["content"]
        if mode == "none" or choice.get("finish_reason") == "length":
            return True
        answer = json.loads(content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    if mode == "json_object":
        return isinstance(answer, dict)
    return isinstance(answer, dict) and answer.keys() == {"choice"} and answer["choice"] in (1, 2)


def _stop(found: Classified) -> AugmentStop:
    if found.outcome == Outcome.quota:
        return QuotaStop(
            f"the account has no credit left: {found.sentence} Top it up, then run the same "
            "command again."
        )
    if found.outcome in (Outcome.rate_limited, Outcome.server):
        return RateLimitStop(
            f"the server stays too busy to be asked what it can do: {found.sentence} Try later, or "
            "say `provider.structured=json_schema`."
        )
    if found.outcome == Outcome.auth:
        return AuthStop(
            f"the provider refused the call: {found.sentence} Check the key's environment "
            "variable, the model's name and `base_urls`."
        )
    return AuthStop(f"the server cannot be asked: {found.sentence} Check `base_urls`.")


def _forget(_body: bytes) -> None:
    """Keep nothing."""
