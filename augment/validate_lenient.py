"""Reads what the older prompt set lets a model answer: fences, `12::34`, `key: value` records.

Lenient in form only. Nothing is completed: what a cut answer lacks stays lacking, so brackets,
quotes and fences must close.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from augment.schemas import field_name, is_list

if TYPE_CHECKING:
    from collections.abc import Sequence

_FENCE = re.compile(r"\A```[a-zA-Z]*[ \t]*\n(.*?)\n?```\Z", re.DOTALL)
_QUOTES = "\"'"


class RejectedError(Exception):
    """An answer cannot be used.

    Args:
        code: name of the verdict.
        detail: one sentence for people, and for the model if it is asked again.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def parse_json(text: str) -> Any:  # noqa: ANN401
    """Return JSON; a key that comes twice and NaN are refused.

    Raises:
        RejectedError: the text is not whole, plain JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise RejectedError("bad_json", f"the answer is not JSON ({reason}).") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RejectedError("schema", "a key comes twice.")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def unfenced(text: str) -> str:
    """Return what stands inside a ``` fence, or the text itself."""
    text = text.strip()
    found = _FENCE.match(text)
    return found.group(1).strip() if found else text


def parse_indices(text: str) -> tuple[str, str]:
    """Return the two sides of `12::34`.

    Raises:
        RejectedError: there are not two of them.
    """
    sides = [side.strip() for side in unfenced(text).split("::")]
    if len(sides) > 2:
        raise RejectedError("wrong_count", "exactly two indices are asked for.")
    names = [side.removeprefix("[").removesuffix("]").strip().strip(_QUOTES) for side in sides]
    if len(names) < 2 or not all(names):
        raise RejectedError("format", "write two indices as 12::34 and nothing else.")
    return names[0], names[1]


def parse_record(text: str, fields: Sequence[str], optional: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return a record given as JSON, or as `key: value` with or without braces.

    Args:
        text: the answer.
        fields: names it must have.
        optional: names it may have.

    Raises:
        RejectedError: no JSON, and not a record of these fields either.
    """
    text = unfenced(text)
    try:
        return named(parse_json(text))
    except RejectedError as problem:
        if problem.code != "bad_json":
            raise
        found = _keyed(text, [*fields, *optional])
        if found is None or set(fields) - set(found):
            raise
        return found


def named(value: Any) -> Any:  # noqa: ANN401
    """Return a record with its keys as names of fields ("Liked genres" -> "liked_genres").

    Raises:
        RejectedError: two keys become one.
    """
    if not isinstance(value, dict):
        return value
    return _object([(field_name(key), content) for key, content in value.items()])


def _keyed(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """Split at the names of the fields; None where the text is anything but such a record."""
    if text.startswith("{") != text.endswith("}"):
        return None
    text = text[1:-1] if text.startswith("{") else text
    spelt = "|".join(re.escape(name).replace("_", "[_ ]") for name in names)
    keys = list(re.finditer(rf"(?:\A|[,;\n])\s*[\"']?({spelt})[\"']?\s*:", text, re.IGNORECASE))
    if not keys or text[: keys[0].start()].strip():
        return None
    found: dict[str, Any] = {}
    ends = [key.start() for key in keys[1:]] + [len(text)]
    for key, end in zip(keys, ends, strict=True):
        name, value = field_name(key.group(1)), _value(text[key.end() : end])
        if value is None or name in found:
            return None
        found[name] = value
    return found


def _value(text: str) -> str | list[str] | None:
    """Return the value of a key; None if it does not close, or holds more than a value."""
    text = text.strip().rstrip(",;").strip()
    if text.startswith("["):
        if not text.endswith("]"):
            return None
        parts = [_plain(part) for part in text[1:-1].split(",") if part.strip()]
        return None if None in parts else [part for part in parts if part is not None]
    return _plain(text)


def _plain(text: str) -> str | None:
    text = text.strip()
    if text[:1] in _QUOTES and text:
        if len(text) < 2 or text[-1] != text[0]:
            return None
        text = text[1:-1]
    return None if any(c in text for c in '\n{}[]:"') else text


def coerced(record: Any, fields: Sequence[str]) -> Any:  # noqa: ANN401
    """Return a record with the types that its fields have: "25" -> 25, "a, b" -> ["a", "b"]."""
    if not isinstance(record, dict):
        return record
    made = dict(record)
    for name in fields:
        value = record.get(name)
        if is_list(name) and isinstance(value, str):
            made[name] = [part.strip() for part in value.split(",") if part.strip()]
        elif name == "age" and isinstance(value, str):
            band = value.strip().replace("\u2013", "-").replace(" ", "")
            made[name] = int(band) if band.isascii() and band.isdigit() else band
        elif name == "gender" and isinstance(value, str):
            made[name] = value.strip().lower()
        elif not is_list(name) and isinstance(value, list) and _all_text(value):
            made[name] = ", ".join(value)
    return made


def _all_text(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)
