"""What prompts show of items: ids, titles and lines, cleaned once; and the hash of their table."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from augment.prompts import HEURISTIC, clean_text, shown_id, shown_line, without_surrogates

if TYPE_CHECKING:
    from augment.specs import TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

_SHOWN = ("title", "year", "genres")
UNTITLED = "(untitled)"


class Catalogue:
    """The items of a data set as a task shows them, by dense id.

    Attributes:
        ids: what stands for the original ids.
        titles: cleaned titles, "" where there is none.
        lines: one line of a prompt each; empty for heuristics, which get ids only.
        order: dense ids in the order of the original ids.

    Args:
        spec: the task.
        dataset: its item table is read.
    """

    def __init__(self, spec: TaskSpec, dataset: InteractionDataset) -> None:
        heuristic = spec.prompt_set == HEURISTIC
        # Heuristics look ids up as `clean_text` makes them, and answers hold no ids to split.
        name_of = clean_text if heuristic else shown_id
        self.ids = [name_of(str(name)) for name in dataset.item_ids.tolist()]
        self.order: list[int] = np.argsort(dataset.item_ids, kind="stable").tolist()
        frame = dataset.items_frame()
        columns = [_texts(frame, name) for name in _SHOWN]
        self.titles = columns[0]
        self.lines: list[str] = []
        if not heuristic:
            domain = spec.settings["domain"]
            records = (
                _masked(domain["item"], name)
                if spec.settings["mask_titles"]
                else _record(domain["category"], name, *texts)
                for name, *texts in zip(self.ids, *columns, strict=True)
            )
            self.lines = [shown_line(spec, record) for record in records]


def _record(category: str, name: str, title: str, year: str, genres: str) -> dict[str, str]:
    record = {"id": name, "title": title or UNTITLED}
    if year:
        record["year"] = year
    if genres:
        record[category] = genres
    return record


def _masked(word: str, name: str) -> dict[str, str]:
    return {"id": name, "title": f"{word} {name}"}


def _texts(frame: pl.DataFrame, name: str) -> list[str]:
    if name not in frame.columns:
        return [""] * frame.height
    return [clean_text(_cell(value)) for value in frame[name].to_list()]


def _cell(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, list):
        return ", ".join(_cell(part) for part in value if part is not None)
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return "" if value is None else str(value)


def item_table_sha(dataset: InteractionDataset) -> str:
    """Return the sha256 of what is known of items, "" if nothing is.

    The data set's fingerprint covers ids and edges, not titles: without this a table that was
    added or mended later would never be asked about. The order of rows and columns and the bytes
    of the file don't count.
    """
    if dataset.root is None:
        return ""
    path = Path(dataset.root) / "items.parquet"
    found = path.stat()
    return _table_sha(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=16)
def _table_sha(path: str, changed_ns: int, size: int) -> str:
    frame = pl.read_parquet(path).drop("item").sort("item_id")
    digest = hashlib.sha256()
    for name in sorted(frame.columns):
        digest.update(without_surrogates(name).encode() + b"\1")
        column = frame[name]
        if isinstance(column.dtype, pl.List):
            column = column.cast(pl.List(pl.String)).list.join(", ")
        texts = column.cast(pl.String).fill_null("").to_list()
        digest.update("\0".join(texts).encode() + b"\2")
    return digest.hexdigest()
