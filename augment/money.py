"""Money in whole pico-USD, prices with dates, and the most that a call can cost.

The cheapest listed price is 2,500 pico-USD a token, so integers are exact; 64 bits hold nine
million USD.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from augment.specs import canonical_json
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

PICO = 10**12
Tier = Literal["sync", "batch"]
_PER_MESSAGE, _PER_CALL, _PER_TEXT = 16, 64, 8
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")


@dataclass(frozen=True, slots=True)
class Price:
    """What a token costs, in pico-USD.

    Attributes:
        model: name in the price list.
        tier: "sync" or "batch".
        input: a token of the prompt.
        cached: a token of the prompt that the provider had cached.
        output: a token of the answer.
        valid_from: ISO date.
        source: where the figures come from.
    """

    model: str
    tier: str
    input: int
    cached: int
    output: int
    valid_from: str
    source: str


FREE = Price("", "sync", 0, 0, 0, "", "free")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0

    @classmethod
    def from_body(cls, raw: bytes) -> Usage | None:
        """Read `usage` of a reply; None if it is missing or makes no sense."""
        try:
            usage = json.loads(raw)["usage"]
            read = cls(
                _count(usage["prompt_tokens"]),
                _count(usage.get("completion_tokens") or 0),
                _count((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
                _count((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return read if read.cached <= read.input else None


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(value)
    return value


class PriceBook:
    """Price rows by model and date.

    Args:
        rows: in any order.
    """

    def __init__(self, rows: list[Price]) -> None:
        self.rows = sorted(rows, key=lambda row: row.valid_from)

    def find(self, model: str, tier: Tier, on: dt.date | None = None) -> Price | None:
        """Return the newest price of a model that is valid on a day (today).

        A dated name ("gpt-4o-mini-2024-07-18") falls back to the name without its date.
        """
        day = (on or dt.datetime.now(tz=dt.UTC).date()).isoformat()
        for name in (model, _DATED.sub("", model)):
            rows = [
                row
                for row in self.rows
                if row.model == name and row.tier == tier and row.valid_from <= day
            ]
            if rows:
                return rows[-1]
        return None


def load_prices(extra: Path | None = None) -> PriceBook:
    """Read the shipped prices and those of a file of the user's.

    Raises:
        ConfigError: the file is missing or a row cannot be read.
    """
    shipped = resources.files("augment").joinpath("prices.toml").read_text(encoding="utf-8")
    rows = _rows(shipped, "prices.toml")
    if extra is not None:
        try:
            rows += _rows(extra.read_text(encoding="utf-8"), str(extra))
        except OSError as error:
            raise ConfigError(f"price file {str(extra)!r} cannot be read: {error}.") from error
    return PriceBook(rows)


def _rows(text: str, where: str) -> list[Price]:
    rows = []
    try:
        for row in tomllib.loads(text).get("price", []):
            head = (str(row["valid_from"]), str(row["source"]))
            plain = [per_token(row.get(k, row["input"])) for k in ("input", "cached")]
            output = per_token(row["output"])
            rows.append(Price(row["model"], "sync", plain[0], plain[1], output, *head))
            if "batch_input" in row:
                batch = [
                    per_token(row.get(k, row["batch_input"]))
                    for k in ("batch_input", "batch_cached")
                ]
                output = per_token(row.get("batch_output", row["output"]))
                rows.append(Price(row["model"], "batch", batch[0], batch[1], output, *head))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, InvalidOperation, ValueError) as error:
        raise ConfigError(
            f"price file {where!r} cannot be read ({error!r}); each [[price]] needs `model`, "
            "`input` and `output` in USD per million tokens as strings, `valid_from`, `source`."
        ) from error
    return rows


def per_token(usd_per_million: str) -> int:
    """Return pico-USD per token of a price in USD per million tokens.

    Raises:
        ValueError: negative, or finer than a pico-USD.
    """
    value = Decimal(str(usd_per_million)) * PICO / 1_000_000
    if value < 0 or value != value.to_integral_value():
        raise ValueError(f"price {usd_per_million!r} is negative or finer than a pico-USD")
    return int(value)


def bound_input(body: dict[str, Any]) -> int:
    """Return the most input tokens a body can have: its bytes and what frames them.

    Valid for byte-level BPE, where no token is shorter than a byte.
    """
    if "messages" not in body:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        return sum(len(text.encode()) + _PER_TEXT for text in texts)
    size = sum(
        len(str(m.get("content") or "").encode()) + _PER_MESSAGE for m in body["messages"]
    )
    form = body.get("response_format")
    return size + _PER_CALL + (len(canonical_json(form).encode()) if form else 0)


def bound_output(body: dict[str, Any]) -> int | None:
    """Return the most output tokens a body allows; 0 for embeddings, None if unbounded."""
    if "messages" not in body:
        return 0
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if most is None else int(most) * int(body.get("n", 1))


def bound_cost(price: Price, bound_in: int, bound_out: int) -> int:
    """Return the most that a call within these bounds can cost, pico-USD."""
    return max(price.input, price.cached) * bound_in + price.output * bound_out


def cost(price: Price, usage: Usage) -> int:
    """Return what a call cost, pico-USD."""
    fresh = usage.input - usage.cached
    return price.input * fresh + price.cached * usage.cached + price.output * usage.output


def parse_usd(text: str) -> int:
    """Read an amount in USD.

    Raises:
        ConfigError: no amount, or negative.
    """
    try:
        value = Decimal(text.strip().lstrip("$"))
        amount = int(value * PICO)
    except (InvalidOperation, ValueError, OverflowError):
        amount = -1
    if amount < 0 or amount >= 2**63:
        raise ConfigError(f"{text!r} is no amount in USD; write for example 5 or 0.25.")
    return amount


def format_usd(pico: int) -> str:
    """Write an amount for people: two digits, more where they would be lost."""
    value = Decimal(pico) / PICO
    if pico == 0 or abs(value) >= 1:
        return f"${value:,.2f}"
    return f"${value:.4f}" if abs(value) >= Decimal("0.001") else f"${value:.3g}"
