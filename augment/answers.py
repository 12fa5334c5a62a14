"""Reads what a task's answers are, follow-ups included; never writes."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.plan import make_spec, pool_for
from augment.pools import Pool
from augment.specs import KINDS, RANDOM, TaskSpec
from augment.store import State
from augment.store.claims import read_spec
from augment.texts import attribute_text, profile_text
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping

    from augment.config import AugmentConfig
    from augment.specs import Kind
    from llmrec_pl.data.dataset import InteractionDataset

_NOT_ASKED_FOR = ("structured", "prompt_sha", "validator", "texts_per_call")
"""What a config does not fix: found out by probing, or belonging to the program's version."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one wanted answer.

    Attributes:
        entity: dense id of the user or item.
        field: number of the draw, or of the field for embeddings.
        skip: why nothing was asked, else None.
        state: of the request that has the last word; None if skipped.
        value: what was accepted for this entity, else None; fields in the task's order.
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

    @property
    def outcome(self) -> str:
        """One word for counts: "done", "skipped:no_history", "quarantined:refused", "planned"."""
        if self.skip is not None:
            return f"skipped:{self.skip}"
        if self.value is not None:
            return "done"
        assert self.state is not None  # whatever is not skipped has a request
        return outcome_name(self.state, self.code)


def outcome_name(state: State, code: str | None) -> str:
    """Return what is counted for a request that gave nothing (yet)."""
    if state == State.QUARANTINED:
        return f"quarantined:{code or 'unknown'}"
    return "planned" if state == State.PLANNED else state.name.lower()


# Which spec ------------------------------------------------------------------------------------


def find_spec(
    db: sqlite3.Connection, kind: Kind, config: AugmentConfig, dataset: InteractionDataset
) -> int | None:
    """Return the spec of a task that asks what this config asks; the newest if several do.

    Model, sampling parameters, prompt set, domain words and the kind of pool must agree, so that
    what was asked under other settings stays apart. Older versions of a template are taken too.

    Raises:
        AugmentationError: several candidate pools were asked about, and the config's is not there.
    """
    if getattr(config.tasks, kind) is None:
        return None
    fits = [
        (spec_id, spec)
        for spec_id, spec in stored_specs(db, dataset, kind)
        if _asks_the_same(spec, config, dataset)
    ]
    if len({spec.settings.get("pool") for _, spec in fits}) > 1:
        pool = pool_for(kind, config, dataset)
        assert pool is not None  # only pairs have pools
        fits = [(i, spec) for i, spec in fits if spec.settings["pool"] == pool.sha256]
    return fits[-1][0] if fits else None


def stored_specs(
    db: sqlite3.Connection, dataset: InteractionDataset, kind: Kind | None = None
) -> list[tuple[int, TaskSpec]]:
    """Return the specs that were planned for a data set, oldest first."""
    rows = db.execute("SELECT id, json FROM spec ORDER BY id").fetchall()
    specs = [(int(i), TaskSpec.model_validate_json(text)) for i, text in rows]
    return [
        (i, spec)
        for i, spec in specs
        if spec.dataset_fp == dataset.fingerprint and kind in (None, spec.kind)
    ]


def _asks_the_same(stored: TaskSpec, config: AugmentConfig, dataset: InteractionDataset) -> bool:
    form, pool = config.provider.structured, None
    if stored.kind == "pairs":
        sha, model = stored.settings["pool"], stored.settings["pool_model"]
        if config.tasks.pairs is None or (config.tasks.pairs.pool == RANDOM) != (model == RANDOM):
            return False
        pool = Pool(np.empty((0, 0), dtype=np.int64), sha, model)
    asks_a_server = stored.kind != "embed" and config.provider.name != "heuristic"
    if asks_a_server and form not in ("auto", stored.structured):
        return False
    asked = make_spec(stored.kind, config, dataset, stored.structured, pool)
    same = {name: getattr(stored, name) for name in _NOT_ASKED_FOR}
    return asked.model_copy(update=same) == stored


def choose_specs(
    db: sqlite3.Connection,
    config: AugmentConfig,
    dataset: InteractionDataset,
    shas: Iterable[str] = (),
) -> dict[Kind, tuple[int, TaskSpec]]:
    """Return the spec to take for each task: the config's, unless named by its sha.

    Args:
        db: the store.
        config: whose specs are taken.
        dataset: the data set they must be of.
        shas: first letters of the sha of specs to take instead; `status` shows them.

    Raises:
        AugmentationError: letters fit no spec of this data set or more than one, or two specs of
            one task are named.
    """
    named: dict[Kind, int] = {}
    known = stored_specs(db, dataset)
    for sha in shas:
        fits = [(i, spec) for i, spec in known if sha and spec.sha.hex().startswith(sha.lower())]
        if len(fits) != 1 or fits[0][1].kind in named:
            raise AugmentationError(
                f"`--spec {sha}` must name one spec of {dataset.name!r}, one a task; it fits "
                f"{len(fits)}. Known are {described(known)}."
            )
        named[fits[0][1].kind] = fits[0][0]
    found = {kind: named.get(kind) or find_spec(db, kind, config, dataset) for kind in KINDS}
    return {kind: (i, read_spec(db, i)) for kind, i in found.items() if i is not None}


def described(specs: Iterable[tuple[int, TaskSpec]]) -> str:
    """Return specs as one line for messages."""
    texts = [
        f"{spec.sha.hex()[:8]} ({spec.kind} by {spec.provider} / {spec.model}"
        + (f", temperature {spec.params['temperature']}" if "temperature" in spec.params else "")
        + ")"
        for _, spec in specs
    ]
    return ", ".join(texts) or "none"


# What they were answered -----------------------------------------------------------------------


def answers(db: sqlite3.Connection, spec_id: int, kind: str) -> Iterator[Answer]:
    """Yield what is known of each wanted answer of a spec, by entity and field."""
    fields = read_spec(db, spec_id).settings["fields"] if kind in ("profiles", "attributes") else []
    rows = db.execute(
        "SELECT w.entity, w.field, w.skip, w.context, r.key, r.state, r.child, "
        "ifnull(r.last_code, ''), s.value FROM wanted w LEFT JOIN request r ON r.id = w.request "
        "LEFT JOIN result s ON s.request = w.request WHERE w.spec = ? ORDER BY w.entity, w.field",
        (spec_id,),
    )
    for entity, field, skip, blob, *request in rows:
        context = {} if blob is None else json.loads(zlib.decompress(blob))
        if skip is not None:
            yield Answer(entity, field, skip, None, None, context, b"", skip)
            continue
        part = None
        if kind == "attributes":
            part = context["ids"][context["items"].index(entity)]
        key, state, code, value = _last_word(db, request, part)
        if fields and value is not None:
            value = {name: value[name] for name in fields if name in value}
        state = State.DONE if value is not None else State(state)
        yield Answer(entity, field, None, state, value, context, key, code)


def _last_word(
    db: sqlite3.Connection, request: list[Any], part: str | None
) -> tuple[bytes, int, str, Any]:
    """Walk from the planned request to the follow-up that answers for this entity."""
    while True:
        key, state, child, code, text = request
        value = None if text is None else json.loads(text)
        if part is not None and value is not None:
            value = value.get(part)
        if value is not None or child is None:
            return key, state, code, value
        request = db.execute(
            "SELECT r.key, r.state, r.child, ifnull(r.last_code, ''), s.value FROM request r "
            "LEFT JOIN result s ON s.request = r.id WHERE r.id = ?",
            (child,),
        ).fetchone()


def records_of(
    db: sqlite3.Connection,
    config: AugmentConfig,
    dataset: InteractionDataset,
    known: Mapping[Kind, int],
    *,
    needed: bool,
) -> dict[Kind, int]:
    """Return the specs whose answers are texts to embed: those of this run, else the config's.

    Args:
        db: the store.
        config: whose specs are taken.
        dataset: the data set.
        known: specs of this run.
        needed: complain if there is none.

    Raises:
        AugmentationError: nothing was asked under this config, and it is needed.
    """
    kinds: tuple[Kind, Kind] = ("profiles", "attributes")
    found = {kind: known.get(kind) or find_spec(db, kind, config, dataset) for kind in kinds}
    if needed and not any(found.values()):
        raise AugmentationError(
            "there is nothing to embed: no profiles and attributes were asked for under this "
            f"config. What was asked for this data set: {described(stored_specs(db, dataset))}. "
            "Name the provider's label and the chat model that answered."
        )
    return {kind: spec for kind, spec in found.items() if spec is not None}


def texts_to_embed(
    db: sqlite3.Connection,
    kind: str,
    spec_id: int,
    fields: list[str],
    within: frozenset[int] | None = None,
) -> Iterator[tuple[int, int, str]]:
    """Yield (entity, number of the field, text) of what was accepted; unknown is "".

    Args:
        db: the store.
        kind: "profiles" or "attributes".
        spec_id: the spec that asked.
        fields: "profile" and the names of attributes; a field's number is its place here.
        within: users or items to take; None for all.
    """
    for answer in answers(db, spec_id, kind):
        if answer.value is None or (within is not None and answer.entity not in within):
            continue
        if kind == "profiles":
            yield answer.entity, 0, profile_text(answer.value)
        else:
            for number, name in enumerate(fields[1:], 1):
                yield answer.entity, number, attribute_text(answer.value.get(name))
