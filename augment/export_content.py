"""Reads the answers of chosen specs once, into edges, features, tables, counts and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from augment.answers import answers, outcome_name, texts_to_embed
from augment.plan import wanted
from augment.specs import Kind, canonical_json, request_key
from augment.store import State
from augment.store.vectors import VectorFile
from augment.votes import votes
from llmrec_pl.data.augmentation_edges import invalid_edges
from llmrec_pl.data.features import Feature
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from augment.answers import Answer
    from augment.specs import TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

    Specs = dict[Kind, tuple[int, TaskSpec]]

BLOCK = 20_000
"""Rows of a table that are held as Python objects at a time."""
RECORDS: tuple[Kind, ...] = ("profiles", "attributes")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]+")


@dataclass
class Content:
    """What goes into an export.

    Attributes:
        edges: user, most and least liked item by majority, int64 ``[3, n]``.
        features: one a field, distinct rows with an index.
        tables: answers with original ids and titles, by task.
        counts: for each task, how many answers had which outcome.
        refused: edges left out, by the reason.
        hashes: for each task, sha256 over all that it contributes.
        renamed: fields whose name the format could not take, by the new name.
    """

    edges: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 0), dtype=np.int64))
    features: list[Feature] = field(default_factory=list)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def write_tables(self, folder: Path) -> dict[str, Path]:
        """Write one parquet file a task; the same table gives the same bytes."""
        made = {}
        for kind, table in self.tables.items():
            path = folder / f"{kind}.parquet"
            table.write_parquet(path, compression="zstd", row_group_size=100_000)
            made[path.name] = path
        return made


def read_content(
    db: sqlite3.Connection, store: Path, specs: Specs, dataset: InteractionDataset
) -> Content:
    """Read what the chosen specs were answered.

    Args:
        db: the store, in one snapshot.
        store: its folder, for the vectors.
        specs: id and spec of each task.
        dataset: gives original ids and titles, and says which edges cannot be right.

    Raises:
        AugmentationError: a vector is missing or damaged, or vectors differ in length.
    """
    reader = _Reader(db, specs, dataset)
    if "pairs" in specs:
        reader.pairs()
    for kind in RECORDS:
        if kind in specs:
            reader.records(kind)
    if "embed" in specs:
        with contextlib.closing(VectorFile(store, readonly=True)) as vectors:
            reader.features(vectors)
    return reader.content


class _Reader:
    def __init__(self, db: sqlite3.Connection, specs: Specs, dataset: InteractionDataset) -> None:
        self.db, self.specs, self.dataset = db, specs, dataset
        self.titles = dataset.titles()
        self.content = Content()

    def _accepted(self, kind: Kind) -> Iterator[Answer]:
        """Yield accepted answers; afterwards counts and hash of the task are set."""
        names = self.dataset.item_ids if kind == "attributes" else self.dataset.user_ids
        tally: Counter[str] = Counter()
        digest = hashlib.sha256()
        for answer in answers(self.db, self.specs[kind][0], kind):
            tally[answer.outcome] += 1
            if answer.value is None:
                continue
            told = [str(names[answer.entity]), answer.field, answer.key.hex(), answer.value]
            digest.update(canonical_json(told).encode() + b"\n")
            yield answer
        self.content.counts[kind] = dict(sorted(tally.items()))
        self.content.hashes[kind] = digest.hexdigest()

    # Edges ---------------------------------------------------------------------------------

    def pairs(self) -> None:
        """Take the majority of each user's draws; leave out, and count, what cannot be right."""
        columns = ["most_liked", "most_liked_title", "least_liked", "least_liked_title"]
        schema = dict.fromkeys(["user_id", "draw", *columns, "key"], pl.String())
        table = _Table({**schema, "draw": pl.Int64()})
        chosen: list[int] = []
        for user, draws in groupby(self._accepted("pairs"), key=lambda answer: answer.entity):
            picks = []
            for answer in draws:
                pick = picked(answer)
                picks.append(pick)
                named = (text for item in pick for text in (self._item(item), self.titles[item]))
                name = str(self.dataset.user_ids[user])
                table.add((name, answer.field, *named, answer.key.hex()))
            chosen += (user, *majority(picks))
        edges = np.array(chosen, dtype=np.int64).reshape(-1, 3).T
        found = invalid_edges(edges, self.dataset)
        self.content.refused = {str(reason): int(rows.sum()) for reason, rows in found.items()}
        if found:
            edges = edges[:, ~np.logical_or.reduce(list(found.values()))]
        self.content.edges = np.ascontiguousarray(edges)
        table.into(self.content.tables, "pairs")

    def _item(self, item: int) -> str:
        return str(self.dataset.item_ids[item])

    # Profiles and attributes ---------------------------------------------------------------

    def records(self, kind: Kind) -> None:
        """Keep each record as a row, beside the name of whom or what it describes."""
        head = ["user_id"] if kind == "profiles" else ["item_id", "title"]
        fields = self.specs[kind][1].settings["fields"]
        names = [f"answer_{f}" if f in (*head, "key") else f for f in fields]
        types = [pl.List(pl.String()) if "liked_" in f else pl.String() for f in fields]
        if kind == "attributes":
            types = [pl.String()] * len(fields)
        schema = {**dict.fromkeys(head, pl.String()), **dict(zip(names, types, strict=True))}
        table = _Table({**schema, "key": pl.String()})
        for answer in self._accepted(kind):
            entity = answer.entity
            if kind == "profiles":
                who: tuple[str, ...] = (str(self.dataset.user_ids[entity]),)
            else:
                who = (self._item(entity), self.titles[entity])
            cells = (_cell(answer.value.get(name)) for name in fields)
            table.add((*who, *cells, answer.key.hex()))
        table.into(self.content.tables, kind)

    # Features ------------------------------------------------------------------------------

    def features(self, vectors: VectorFile) -> None:
        """Look up the vector of each text that the chosen profiles and attributes give.

        By the text itself, not by who wanted it embedded: when a profile was asked for again
        under other settings, its old vector must not stand in for the new text.
        """
        _, spec = self.specs["embed"]
        fields = spec.settings["fields"]
        tally: Counter[str] = Counter()
        digest = hashlib.sha256()
        indices, rows = self._indices(fields, tally)
        for number, (name, slug) in enumerate(zip(fields, _slugs(fields), strict=True)):
            if rows[number]:
                values = _stacked(vectors, list(rows[number]), name)
                side: Any = "user" if number == 0 else "item"
                group: Any = "profile" if number == 0 else "attribute"
                made = Feature(f"{side}_{slug}", side, group, values, indices[number])
                self.content.features.append(made)
                for key, value in zip(rows[number], values, strict=True):
                    digest.update(key + value.astype("<f4").tobytes())
                if slug != name:
                    self.content.renamed[f"{side}_{slug}"] = name
        self.content.counts["embed"] = dict(sorted(tally.items()))
        self.content.hashes["embed"] = digest.hexdigest()

    def _indices(
        self, fields: list[str], tally: Counter[str]
    ) -> tuple[list[NDArray[np.int64]], list[dict[bytes, int]]]:
        """Return for each field the row of each user or item, and the keys in row order."""
        _, spec = self.specs["embed"]
        sizes = [self.dataset.n_users] + [self.dataset.n_items] * (len(fields) - 1)
        indices = [np.full(n, -1, dtype=np.int64) for n in sizes]
        rows: list[dict[bytes, int]] = [{} for _ in fields]
        for want in wanted(spec, self.dataset, None, self._texts(fields)):
            if want.body is None:
                tally[f"skipped:{want.skip}"] += 1
                continue
            key = request_key(spec.provider, spec.endpoint, want.body)
            own = rows[want.field]
            if key not in own:
                outcome = self._outcome(key)
                if outcome != "done":
                    tally[outcome] += 1
                    continue
            tally["done"] += 1
            indices[want.field][want.entity] = own.setdefault(key, len(own))
        return indices, rows

    def _texts(self, fields: list[str]) -> Iterator[tuple[int, int, str]]:
        for kind in RECORDS:
            if kind in self.specs:
                yield from texts_to_embed(self.db, kind, self.specs[kind][0], fields)

    def _outcome(self, key: bytes) -> str:
        row = self.db.execute(
            "SELECT state, last_code FROM request WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return "planned"  # the text is new since the last run
        return "done" if row[0] == State.DONE else outcome_name(State(row[0]), row[1])


def picked(answer: Answer) -> tuple[int, int]:
    """Return the dense ids of the most and the least liked item."""
    shown = answer.context["shown"]
    return shown[answer.value["most_liked"] - 1], shown[answer.value["least_liked"] - 1]


def majority(picks: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the pair that a user's draws, one at least, elect."""
    vote = votes(picks)
    assert vote is not None  # checked answers name two different items
    return vote


class _Table:
    """Rows gathered into typed blocks, so that few are Python objects."""

    def __init__(self, schema: dict[str, pl.DataType]) -> None:
        self.schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._blocks: list[pl.DataFrame] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == BLOCK:
            self._close()

    def _close(self) -> None:
        self._blocks.append(pl.DataFrame(self._rows, schema=self.schema, orient="row"))
        self._rows = []

    def into(self, tables: dict[str, pl.DataFrame], name: str) -> None:
        """Put the table there, unless it has no rows."""
        if self._rows:
            self._close()
        if self._blocks:
            tables[name] = pl.concat(self._blocks, rechunk=True)


def _cell(value: object) -> object:
    return value if value is None or isinstance(value, list) else str(value)


def _slugs(fields: list[str]) -> list[str]:
    """Return names that the format takes: letters, digits, underscores, a letter first."""
    made: list[str] = []
    for number, name in enumerate(fields):
        slug = _NOT_IN_A_NAME.sub("_", name).strip("_")
        slug = slug if slug[:1].isalpha() else f"field_{slug or number}"
        made.append(slug if slug not in made[1:] or number == 0 else f"{slug}_{number}")
    return made


def _stacked(vectors: VectorFile, keys: list[bytes], name: str) -> NDArray[np.float32]:
    first = _present(vectors, keys[0])
    values = np.empty((len(keys), len(first)), dtype=np.float32)
    for row, key in enumerate(keys):
        vector = _present(vectors, key)
        if len(vector) != len(first):
            raise AugmentationError(
                f"vectors of field {name!r} have {len(first)} and {len(vector)} dimensions: the "
                "server changed its model under one name. Embed them anew under another "
                "`provider.label`."
            )
        values[row] = vector
    return values


def _present(vectors: VectorFile, key: bytes) -> NDArray[np.float32]:
    vector = vectors.get(key)
    if vector is None:
        raise AugmentationError(
            f"the store says that request {key.hex()[:12]}… was embedded, its vector is missing; "
            "restore `vectors.sqlite` from a copy, see `python -m augment doctor`."
        )
    return vector
