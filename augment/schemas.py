"""The form of each answer: field names from the domain's words, checks, strict JSON schemas."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from augment.specs import canonical_json

if TYPE_CHECKING:
    from augment.specs import TaskSpec

Short = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]
Names = Annotated[list[Short], Field(max_length=5)]
Age = (
    Annotated[int, Field(ge=1, le=110)]
    | Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}-[0-9]{1,3}$")]
)
Gender = Literal["male", "female", "other"]
_CONFIG = ConfigDict(extra="forbid", strict=True)


def field_name(words: str) -> str:
    """Turn words of the domain into a field's name: "musical genres" -> "musical_genres"."""
    return "_".join(words.lower().split())


def profile_fields(domain: dict[str, str]) -> list[str]:
    """Return the names of a profile's fields, in their order."""
    categories, creators = field_name(domain["categories"]), field_name(domain["creators"])
    liked = (f"liked_{categories}", f"disliked_{categories}", f"liked_{creators}")
    return ["age", "gender", *liked, "country", "language"]


def attribute_fields(fields: list[str], domain: dict[str, str]) -> list[str]:
    """Return the names of an item's fields; "creator" becomes the domain's word."""
    return [field_name(domain["creator"] if name == "creator" else name) for name in fields]


@lru_cache(maxsize=64)
def profile_model(fields: tuple[str, ...], *, null: bool) -> type[BaseModel]:
    """Return the check of a profile; `null` allows what is not known."""
    types: dict[str, Any] = {}
    for name in fields:
        kind: Any = Names if "liked_" in name else Short
        kind = {"age": Age, "gender": Gender}.get(name, kind)
        types[name] = (kind | None if null and kind is not Names else kind, ...)
    return create_model("UserProfile", __config__=_CONFIG, **types)


@lru_cache(maxsize=64)
def record_model(fields: tuple[str, ...], *, null: bool) -> type[BaseModel]:
    """Return the check of one item's record."""
    kind = Short | None if null else Short
    types: dict[str, Any] = {"id": (str, ...), **dict.fromkeys(fields, (kind, ...))}
    return create_model("ItemAttributes", __config__=_CONFIG, **types)


class PairChoice(BaseModel):
    """The check of a pair: numbers of the most and the least liked candidate."""

    model_config = _CONFIG
    most_liked: int
    least_liked: int


def json_schema(spec: TaskSpec) -> dict[str, Any]:
    """Return the strict JSON schema of a task's answers, the same for all users or items.

    Everything is bounded, else a small model writes up to its limit.
    """
    if spec.kind == "pairs":
        numbers = {"type": "integer", "enum": list(range(1, spec.settings["n_candidates"] + 1))}
        return _object({"most_liked": numbers, "least_liked": numbers})
    short = {"type": ["string", "null"], "maxLength": 60}
    if spec.kind == "attributes":
        record = {"id": {"type": "string", "maxLength": 60}}
        record |= dict.fromkeys(spec.settings["fields"], short)
        most = {"type": "array", "items": _object(record), "maxItems": spec.items_per_call}
        return _object({"items": most})
    names = {"type": "array", "items": {"type": "string", "maxLength": 60}, "maxItems": 5}
    fields: dict[str, Any] = {
        name: names if "liked_" in name else short for name in spec.settings["fields"]
    }
    fields["age"] = {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 110},
            {"type": "string", "pattern": "^[0-9]{1,3}-[0-9]{1,3}$"},
            {"type": "null"},
        ]
    }
    fields["gender"] = {
        "anyOf": [{"type": "string", "enum": ["male", "female", "other"]}, {"type": "null"}]
    }
    return _object(fields)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def response_format(spec: TaskSpec) -> dict[str, Any] | None:
    """Return what a body's `response_format` says; None if nothing is asked for."""
    if spec.prompt_set != "strict-1" or spec.structured == "none":
        return None
    if spec.structured == "json_object":
        return {"type": "json_object"}
    schema = {"name": spec.kind, "strict": True, "schema": json_schema(spec)}
    return {"type": "json_schema", "json_schema": schema}


def form_in_words(spec: TaskSpec) -> str:
    """Return an example of the form, for the prompt itself."""
    if spec.kind == "pairs":
        return '{"most_liked": <number>, "least_liked": <another number>}'
    if spec.kind == "attributes":
        fields = ", ".join(f'"{name}": "<{name}>"' for name in spec.settings["fields"])
        return f'{{"items": [{{"id": "<id>", {fields}}}]}}'
    shown = {
        name: ["<name>"] if "liked_" in name else f"<{name}>" for name in spec.settings["fields"]
    }
    shown |= {"age": "<number, or a band such as 25-34>", "gender": "<male, female or other>"}
    return canonical_json({name: shown[name] for name in spec.settings["fields"]})
