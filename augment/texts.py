"""The texts that are embedded: one of a profile, one of each attribute; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def attribute_text(value: object) -> str:
    """Return one line of text, "" for what is not known."""
    if isinstance(value, list):
        return ", ".join(text for text in map(attribute_text, value) if text)
    return "" if value is None else " ".join(str(value).split())


def profile_text(record: Mapping[str, Any]) -> str:
    """Return a profile as text, its known fields in their order; "" if none is known."""
    known = ((name, attribute_text(value)) for name, value in record.items())
    return "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in known if text)
