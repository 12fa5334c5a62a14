"""Reads what a task's answers are, follow-ups included; never writes."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from augment.providers import model_of, provider_label
from augment.schemas import field_name
from augment.specs import TaskSpec
from augment.store import State
from augment.texts import attribute_text, profile_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from augment.config import AugmentConfig
    from augment.specs import Kind
    from llmrec_pl.data.dataset import InteractionDataset


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one wanted answer.

    Attributes:
        entity: dense id of the user or item.
        field: number of the draw, or of the field for embeddings.
        skip: why nothing was asked, else None.
        state: of the request that has the last word; None if skipped.
        value: what was accepted for this entity, else None.
        context: what export needs beside it.
        key: of the request that answered, or of the last one asked.
        code: last verdict or failure.
    """

    entity: int
    field: int
    skip: str | None
    state: State | None
    value: Any
    context: dict[str, Any]
    key: bytes
    code: str


def find_spec(
    db: sqlite3.Connection, kind: Kind, config: AugmentConfig, dataset: InteractionDataset
) -> int | None:
    """Return the newest spec of a task that this config's provider and model made for the data."""
    for spec_id, text in db.execute(
        "SELECT id, json FROM spec WHERE kind = ? ORDER BY id DESC", (kind,)
    ):
        spec = TaskSpec.model_validate_json(text)
        if (
            spec.dataset_fp == dataset.fingerprint
            and spec.provider == provider_label(kind, config)
            and spec.model == model_of(kind, config)
        ):
            return int(spec_id)
    return None


def answers(db: sqlite3.Connection, spec_id: int, kind: str) -> Iterator[Answer]:
    """Yield what is known of each wanted answer of a spec, by entity and field."""
    rows = db.execute(
        "SELECT w.entity, w.field, w.skip, w.context, w.request FROM wanted w WHERE w.spec = ? "
        "ORDER BY w.entity, w.field",
        (spec_id,),
    )
    for entity, field, skip, blob, request in rows:
        context = {} if blob is None else json.loads(zlib.decompress(blob))
        if request is None:
            yield Answer(entity, field, skip, None, None, context, b"", skip or "")
            continue
        part = None
        if kind == "attributes":
            part = context["ids"][context["items"].index(entity)]
        yield _follow(db, Answer(entity, field, None, None, None, context, b"", ""), request, part)


def _follow(db: sqlite3.Connection, empty: Answer, request: int, part: str | None) -> Answer:
    """Walk from the planned request to the follow-up that answers for this entity."""
    while True:
        key, state, child, code, value = db.execute(
            "SELECT r.key, r.state, r.child, ifnull(r.last_code, ''), s.value FROM request r "
            "LEFT JOIN result s ON s.request = r.id WHERE r.id = ?",
            (request,),
        ).fetchone()
        found = None if value is None else json.loads(value)
        if part is not None and found is not None:
            found = found.get(part)
        if found is not None or child is None:
            done = State.DONE if found is not None else State(state)
            return Answer(empty.entity, empty.field, None, done, found, empty.context, key, code)
        request = child


def texts_to_embed(
    db: sqlite3.Connection, kind: str, spec_id: int, fields: list[str]
) -> Iterator[tuple[int, int, str]]:
    """Yield (entity, number of the field, text) of what was accepted; unknown is "".

    Args:
        db: the store.
        kind: "profiles" or "attributes".
        spec_id: the spec that asked.
        fields: "profile" and the names of attributes; a field's number is its place here.
    """
    for answer in answers(db, spec_id, kind):
        if answer.value is None:
            continue
        if kind == "profiles":
            yield answer.entity, 0, profile_text(answer.value)
        else:
            for number, name in enumerate(fields[1:], 1):
                yield answer.entity, number, attribute_text(answer.value.get(field_name(name)))
