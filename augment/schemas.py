"""The form of each answer: field names from the domain's words, checks, strict JSON schemas."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, create_model

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from augment.specs import TaskSpec

MAX_NAME, MAX_NAMES, OLDEST = 60, 5, 110
MAX_TITLE, LATEST = 200, 9999
_BAND = r"^[0-9]{1,3}-[0-9]{1,3}$"


def _ordered(band: str) -> str:
    low, high = map(int, band.split("-"))
    if not 1 <= low <= high <= OLDEST:
        raise ValueError(f"a band runs from the younger to the older age, within 1 to {OLDEST}")
    return band


Short = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_NAME)]
Names = Annotated[list[Short], Field(max_length=MAX_NAMES)]
Title = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_TITLE)]
Age = (
    Annotated[int, Field(ge=1, le=OLDEST)]
    | Annotated[str, StringConstraints(pattern=_BAND), AfterValidator(_ordered)]
)
Gender = Literal["male", "female", "other"]
_CONFIG = ConfigDict(extra="forbid", strict=True)


def field_name(words: str) -> str:
    """Turn words of the domain into a field's name: "musical genres" -> "musical_genres"."""
    return "_".join(words.lower().split())


def profile_fields(domain: dict[str, str]) -> list[str]:
    """Return the names of a profile's fields, in their order.

    Raises:
        ConfigError: words of the domain give one name twice.
    """
    categories, creators = field_name(domain["categories"]), field_name(domain["creators"])
    liked = (f"liked_{categories}", f"disliked_{categories}", f"liked_{creators}")
    return _distinct(["age", "gender", *liked, "country", "language"], "domain")


def attribute_fields(fields: list[str], domain: dict[str, str]) -> list[str]:
    """Return the names of an item's fields; "creator" becomes the domain's word.

    Raises:
        ConfigError: a name comes twice, is empty, or is "id".
    """
    names = [field_name(domain["creator"] if name == "creator" else name) for name in fields]
    return _distinct(names, "tasks.attributes.fields")


def _distinct(names: list[str], where: str) -> list[str]:
    if len(set(names)) < len(names) or not all(names) or "id" in names:
        raise ConfigError(
            f"`{where}` gives the fields {names}; each must have a name of its own other than "
            "'id'. Choose other words."
        )
    return names


# Checks ----------------------------------------------------------------------------------------


class PairChoice(BaseModel):
    """The check of a pair: numbers of the most and the least liked candidate."""

    model_config = _CONFIG
    most_liked: int
    least_liked: int


class ItemRecall(BaseModel):
    """The check of an item recalled: null is what the model does not remember."""

    model_config = _CONFIG
    title: Title | None
    year: Annotated[int, Field(ge=0, le=LATEST)] | None


class HistoryRecall(BaseModel):
    """The check of interactions recalled: titles, none if the model remembers none."""

    model_config = _CONFIG
    titles: list[Title]


@lru_cache(maxsize=64)
def profile_model(fields: tuple[str, ...], *, null: bool) -> type[BaseModel]:
    """Return the check of a profile; `null` allows what is not known."""
    special: dict[str, Any] = {"age": Age, "gender": Gender}
    types = {name: special.get(name, Names if is_list(name) else Short) for name in fields}
    return _model(
        "UserProfile", {n: t | None if null and not is_list(n) else t for n, t in types.items()}
    )


@lru_cache(maxsize=64)
def record_model(fields: tuple[str, ...], *, null: bool) -> type[BaseModel]:
    """Return the check of one item's record."""
    kind = Short | None if null else Short
    return _model("ItemAttributes", {"id": str, **dict.fromkeys(fields, kind)})


def is_list(field: str) -> bool:
    """Return whether a profile's field holds several names."""
    return field.startswith(("liked_", "disliked_"))


def _model(name: str, types: dict[str, Any]) -> type[BaseModel]:
    # A field of the config may be called "copy" or "box-office": it is an alias, no attribute.
    fields: dict[str, Any] = {
        f"field_{number}": (kind, Field(alias=alias))
        for number, (alias, kind) in enumerate(types.items())
    }
    return create_model(name, __config__=_CONFIG, **fields)


# What is asked for -----------------------------------------------------------------------------


def json_schema(spec: TaskSpec, form: str = "") -> dict[str, Any]:
    """Return the strict JSON schema of a task's answers, the same for all users or items.

    Everything is bounded, else a small model writes up to its limit.

    Args:
        spec: the task.
        form: which question, of a task that asks several.
    """
    if spec.kind == "memorisation":
        return _recall_schema(spec, form)
    if spec.kind == "pairs":
        numbers = {"type": "integer", "enum": list(range(1, spec.settings["n_candidates"] + 1))}
        return _object({"most_liked": numbers, "least_liked": numbers})
    name = {"type": "string", "maxLength": MAX_NAME}
    short = {**name, "type": ["string", "null"]}
    if spec.kind == "attributes":
        # A small model copies the placeholder of an id; a single item needs none.
        head = {"id": name} if spec.items_per_call > 1 else {}
        record = _object({**head, **dict.fromkeys(spec.settings["fields"], short)})
        return _object(
            {"items": {"type": "array", "items": record, "maxItems": spec.items_per_call}}
        )
    names = {"type": "array", "items": name, "maxItems": MAX_NAMES}
    fields: dict[str, Any] = {f: names if is_list(f) else short for f in spec.settings["fields"]}
    fields["age"] = {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": OLDEST},
            {"type": "string", "pattern": _BAND},
            {"type": "null"},
        ]
    }
    fields["gender"] = {
        "anyOf": [{"type": "string", "enum": ["male", "female", "other"]}, {"type": "null"}]
    }
    return _object(fields)


def _recall_schema(spec: TaskSpec, form: str) -> dict[str, Any]:
    title = {"type": "string", "maxLength": MAX_TITLE}
    if form == "history":
        titles = {"type": "array", "items": title, "maxItems": spec.settings["asked"]}
        return _object({"titles": titles})
    year = {"type": "integer", "minimum": 0, "maximum": LATEST}
    return _object(
        {
            "title": {**title, "type": ["string", "null"]},
            "year": {"anyOf": [year, {"type": "null"}]},
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def response_format(spec: TaskSpec, form: str = "") -> dict[str, Any] | None:
    """Return what a body's `response_format` says; None if nothing is asked for."""
    if spec.prompt_set != "strict-1" or spec.structured == "none":
        return None
    if spec.structured == "json_object":
        return {"type": "json_object"}
    schema = {"name": spec.kind, "strict": True, "schema": json_schema(spec, form)}
    return {"type": "json_schema", "json_schema": schema}


def form_in_words(spec: TaskSpec, form: str = "") -> str:
    """Return an example of the form, for the prompt itself."""
    if spec.kind == "memorisation":
        record = '{"title": "<title>", "year": <number>}'
        return '{"titles": ["<title>"]}' if form == "history" else record
    if spec.kind == "pairs":
        return '{"most_liked": <number>, "least_liked": <another number>}'
    fields: Sequence[str] = spec.settings["fields"]
    if spec.kind == "attributes":
        names = ["id", *fields] if spec.items_per_call > 1 else fields
        shown = ", ".join(f'"{name}": "<{name}>"' for name in names)
        return f'{{"items": [{{{shown}}}]}}'
    special = {"age": "<number, or a band such as 25-34>", "gender": "<male, female or other>"}
    return json.dumps({n: special.get(n, ["<name>"] if is_list(n) else f"<{n}>") for n in fields})
