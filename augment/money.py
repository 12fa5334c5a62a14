"""Money as whole pico-USD (1e-12 USD), prices by date and tier, and what a call can cost at most.

No float takes part: the cheapest token sold costs 2,500 pico-USD, and a 64-bit column of the store
holds 9.2 million USD. Bounds hold for byte-level BPE, where no text has more tokens than bytes.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from augment.specs import canonical_json
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Tier = Literal["sync", "batch"]

PICO = 10**12
"""Pico-USD in a USD."""
_PICO_PER_TOKEN = 10**6  # of a price of 1 USD per million tokens
_MOST_USD = 9_000_000  # what a 64-bit column of pico-USD holds
_MOST_TOKENS = 10**9  # a larger count in `usage` is taken for garbage
_PER_MESSAGE, _PER_CALL, _PER_TEXT = 16, 64, 8
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_NO_TEXT = frozenset({"image_url", "input_image", "input_audio", "file", "input_file"})


@dataclass(frozen=True, slots=True)
class Price:
    """What the tokens of a model cost.

    Attributes:
        model: name as sent, with or without a date.
        tier: "sync", or "batch" for the Batch API.
        input: pico-USD per token of the prompt.
        cached: the same where the provider had the prompt in its cache.
        output: pico-USD per token of the answer, reasoning included.
        valid_from: first day, ISO 8601.
        source: where the price comes from.
    """

    model: str
    tier: Tier
    input: int
    cached: int
    output: int
    valid_from: str
    source: str


FREE = Price("", "sync", 0, 0, 0, "1970-01-01", "nothing is charged")
"""The price of a model that costs nothing."""


class PriceBook:
    """Price rows; a user's own come before those of the package.

    Args:
        own: rows given by the user.
        shipped: rows of the package.
    """

    def __init__(self, own: Sequence[Price], shipped: Sequence[Price]) -> None:
        self._books = (tuple(own), tuple(shipped))

    def find(self, model: str, tier: Tier, on: date | None = None) -> Price | None:
        """Return the newest row that is valid on a day, None if there is none.

        A dated name ("gpt-4o-mini-2024-07-18") without rows of its own takes those of the name
        without its date; one with rows never does, since snapshots can cost more than the alias.

        Args:
            model: name as sent.
            tier: "sync" or "batch".
            on: the day, today in UTC by default.
        """
        day = (on or datetime.now(UTC).date()).isoformat()
        name = model
        if not any(row.model == model for book in self._books for row in book):
            name = _DATED.sub("", model)
        for book in self._books:
            rows = [
                row
                for row in book
                if row.model == name and row.tier == tier and row.valid_from <= day
            ]
            if rows:
                return max(rows, key=lambda row: row.valid_from)
        return None


def load_prices(extra: Path | None = None) -> PriceBook:
    """Read the package's prices and, before them, a file of the user's.

    Args:
        extra: TOML file in the form of `prices.toml`, or None.

    Raises:
        ConfigError: the file is missing, no TOML, or a row is incomplete or no price.
    """
    shipped = _read_rows(Path(__file__).with_name("prices.toml"))
    return PriceBook([] if extra is None else _read_rows(Path(extra)), shipped)


def _read_rows(path: Path) -> list[Price]:
    if not path.is_file():
        raise ConfigError(f"no price file at {str(path)!r}; correct `provider.prices`.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"price file {str(path)!r} is not valid TOML: {error}.") from error
    rows = content.get("price")
    if not isinstance(rows, list):
        raise ConfigError(f"price file {str(path)!r} has no list `price`; see augment/prices.toml.")
    try:
        return [_row(values) for values in rows]
    except ValueError as error:
        raise ConfigError(f"price file {str(path)!r}: {error}.") from error


def _row(values: object) -> Price:
    if not isinstance(values, dict):
        raise ValueError(f"a row must be a table, got {values!r}")  # noqa: TRY004  # one kind
    if missing := {"model", "tier", "input", "output", "valid_from", "source"} - set(values):
        raise ValueError(f"row {values!r} lacks {', '.join(sorted(missing))}")
    if unknown := set(values) - {*Price.__slots__}:
        raise ValueError(f"row {values!r} has unknown keys {', '.join(sorted(unknown))}")
    if values["tier"] not in get_args(Tier):
        raise ValueError(f"tier {values['tier']!r} of {values['model']!r} is not sync or batch")
    since = values["valid_from"]
    if type(since) is not date:
        raise ValueError(f"`valid_from` of {values['model']!r} must be a date like 2024-07-18")
    return Price(
        model=str(values["model"]),
        tier=values["tier"],
        input=_per_token(values["input"]),
        cached=_per_token(values.get("cached", values["input"])),
        output=_per_token(values["output"]),
        valid_from=since.isoformat(),
        source=str(values["source"]),
    )


def _per_token(usd_per_million: object) -> int:
    """Turn USD per million tokens, as text, into pico-USD per token."""
    if not isinstance(usd_per_million, str):
        raise ValueError(f'write the price {usd_per_million!r} as text, "0.15"')  # noqa: TRY004
    return _whole(usd_per_million, _PICO_PER_TOKEN)


def _whole(text: str, unit: int) -> int:
    """Return an amount in units of 1/unit USD.

    Raises:
        ValueError: it is no number, negative, too large, or finer than a unit.
    """
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no amount of USD") from None
    if not amount.is_finite() or amount < 0 or amount > _MOST_USD:
        raise ValueError(f"{text!r} is not between 0 and {_MOST_USD} USD")
    numerator, denominator = amount.as_integer_ratio()
    units, rest = divmod(numerator * unit, denominator)
    if rest:
        raise ValueError(f"{text!r} has more digits than can be kept; leave out the last")
    return units


def parse_usd(amount: str | float) -> int:
    """Return an amount of USD ("5", "$0.25", 2.5) as pico-USD.

    Raises:
        ConfigError: it is no amount, negative, over 9 million, or finer than a pico-USD.
    """
    text = str(amount).strip().removeprefix("$")
    try:
        return _whole(text, PICO)
    except ValueError as error:
        raise ConfigError(f"cannot use {amount!r} as a budget: {error}; write USD as 5.50.") from (
            error
        )


def format_usd(pico: int) -> str:
    """Return pico-USD for people: cents from one USD on, four significant digits below."""
    sign, amount = "-" if pico < 0 else "", Decimal(abs(pico)) / PICO
    if amount >= 1 or not pico:
        return f"{sign}${amount:,.2f}"
    places = max(2, 3 - amount.adjusted())
    text = f"{amount:.{places}f}"
    whole, _, fraction = text.partition(".")
    return f"{sign}${whole}.{fraction.rstrip('0').ljust(2, '0')}"


# Bounds ------------------------------------------------------------------------------------


def bound_input(body: dict[str, Any]) -> int:
    """Return the most tokens that a prompt or a text to embed can have.

    Chat: bytes of all texts of the messages, of the response schema and of tools, plus 16 for
    each message and 64. Embeddings: bytes, plus 8 for each text.

    Raises:
        ValueError: a message holds an image, sound or file, whose tokens bytes do not bound.
    """
    if "messages" not in body:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        return sum(_size(text) + _PER_TEXT for text in texts)
    messages = body["messages"]
    size = sum(
        _size(value)
        for message in messages
        for name, value in message.items()
        if name != "role"  # among the 16
    )
    for name in ("response_format", "tools"):
        if body.get(name) is not None:
            size += len(canonical_json(body[name]).encode("utf-8", "surrogatepass"))
    return size + _PER_MESSAGE * len(messages) + _PER_CALL


def _size(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(_size(part) for part in value)
    if isinstance(value, dict):
        if value.get("type") in _NO_TEXT:
            raise ValueError(f"the tokens of a part of type {value['type']!r} cannot be bounded")
        return sum(_size(name) + _size(part) for name, part in value.items())
    return 0 if value is None else len(str(value))


def bound_output(body: dict[str, Any]) -> int | None:
    """Return the most tokens that the answers can have; None if the body sets no limit."""
    if "messages" not in body:
        return 0
    limits = [_count(body.get(name)) for name in ("max_tokens", "max_completion_tokens")]
    known = [limit for limit in limits if limit is not None]
    samples = 1 if body.get("n") is None else _count(body["n"])
    return None if not known or samples is None else max(known) * samples


def _count(value: object) -> int | None:
    """Return a count of tokens or answers, None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS:
        return value
    return None


def bound_cost(price: Price, bound_in: int, bound_out: int) -> int:
    """Return the most that a call can cost, pico-USD; `cost` of no usage within is larger."""
    return bound_in * max(price.input, price.cached) + bound_out * price.output


# Usage -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them.

    Attributes:
        input: tokens of the prompt, cached ones included.
        output: tokens of the answer, reasoning included.
        cached: tokens of the prompt that came from the cache.
        reasoning: tokens of the answer that were thought and not shown.
    """

    input: int
    output: int = 0
    cached: int = 0
    reasoning: int = 0

    @classmethod
    def from_body(cls, raw: bytes) -> Usage | None:
        """Read `usage` of a reply; None if it is missing or no counts.

        Where `total_tokens` exceeds the sum of the parts, the rest is output (some servers leave
        reasoning out of `completion_tokens`). A cached share that cannot be is taken for none.
        """
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        usage = body.get("usage") if isinstance(body, dict) else None
        if not isinstance(usage, dict):
            return None
        prompt, output, total = (
            _count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total")
        )
        if prompt is None or (output is None and (total is None or total < prompt)):
            return None
        output = max(output or 0, (total or 0) - prompt)
        cached = _detail(usage, "prompt_tokens_details", "cached_tokens", prompt)
        reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens", output)
        return cls(prompt, output, cached, reasoning)


def _detail(usage: dict[str, Any], group: str, name: str, most: int) -> int:
    details = usage.get(group)
    count = _count(details.get(name)) if isinstance(details, dict) else None
    return 0 if count is None or count > most else count


def cost(price: Price, usage: Usage) -> int:
    """Return what a call cost, pico-USD."""
    return (
        (usage.input - usage.cached) * price.input
        + usage.cached * price.cached
        + usage.output * price.output
    )
