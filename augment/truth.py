"""What is known to be true of items and users, and when an answer agrees with it; pure matching.

Truth is any column beside the ids: of the data set's own tables, or of a file.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Literal

import polars as pl

from augment.schemas import field_name
from llmrec_pl.data.sources.movielens import users_100k
from llmrec_pl.data.sources.table import read_frame
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmrec_pl.data.dataset import InteractionDataset

Side = Literal["items", "users"]
Truth = dict[str, list[str | None]]
"""Column by name, one text for each dense id; None where unknown."""

_UNKNOWN = frozenset({"", "n a", "na", "none", "null", "unknown"})
_SPLIT = re.compile(r"[,|;]")
_PARENTHESES = re.compile(r"\([^)]*\)")
_NO_LETTER = re.compile(r"[\W_]+")
_BAND = re.compile(r"(\d{1,3})\s*(?:-|\u2013|to)\s*(\d{1,3})")
_SAME = {
    "united states": "usa",
    "united states of america": "usa",
    "us": "usa",
    "u s": "usa",
    "u s a": "usa",
    "america": "usa",
    "united kingdom": "uk",
    "great britain": "uk",
    "britain": "uk",
    "england": "uk",
    "scotland": "uk",
    "u k": "uk",
    "west germany": "germany",
    "federal republic of germany": "germany",
    "ussr": "russia",
    "soviet union": "russia",
    "czechia": "czech republic",
    "czechoslovakia": "czech republic",
    "korea": "south korea",
    "republic of korea": "south korea",
    "the netherlands": "netherlands",
    "holland": "netherlands",
    "republic of ireland": "ireland",
    "people s republic of china": "china",
    "american english": "english",
    "british english": "english",
}
_GENDERS = {
    "m": "male",
    "man": "male",
    "male": "male",
    "f": "female",
    "w": "female",
    "woman": "female",
    "female": "female",
    "other": "other",
}


def normal(text: str) -> str:
    """Return a name without case, accents, punctuation and remarks in parentheses."""
    text = _PARENTHESES.sub(" ", text)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    name = _NO_LETTER.sub(" ", plain.casefold()).strip()
    return _SAME.get(name, name)


def names_in(value: object) -> frozenset[str]:
    """Return the names of a list or of text that separates them by commas, bars or semicolons."""
    texts = value if isinstance(value, list) else [value]
    parts = (normal(p) for t in texts if t is not None for p in _SPLIT.split(str(t)))
    return frozenset(name for name in parts if name not in _UNKNOWN)


def gender(value: object) -> str | None:
    """Return "male", "female" or "other"; None for anything else."""
    return _GENDERS.get(normal(str(value))) if value is not None else None


def age_range(value: object) -> tuple[int, int] | None:
    """Return the first and last year of age that a number or a band means."""
    if value is None:
        return None
    text = str(value).strip()
    if band := _BAND.fullmatch(text):
        low, high = sorted(int(part) for part in band.groups())
        return low, high
    try:
        year = int(float(text))
    except (ValueError, OverflowError):
        return None
    return (year, year) if 0 < year < 130 else None


def load_truth(dataset: InteractionDataset, side: Side, path: Path | None = None) -> Truth:
    """Return what the data set's table says, and over it what a file says.

    Args:
        dataset: its item or user table.
        side: "items" or "users".
        path: .csv, .tsv, .parquet or .jsonl with the original ids in column `item_id` or
            `user_id`, else in its first column; or the `u.user` of ML-100K.

    Raises:
        DatasetError: the file cannot be read, has an id twice, or knows none of the ids.
    """
    one = side.removesuffix("s")
    frame = dataset.items_frame() if side == "items" else dataset.users_frame()
    truth = _columns(frame.drop(one, f"{one}_id", strict=False))
    if path is None:
        return truth
    if path.name == "u.user" and path.is_file():
        table = users_100k(path.read_bytes(), str(path))
    else:
        table, _ = read_frame(path)
    column = f"{one}_id" if f"{one}_id" in table.columns else table.columns[0]
    ids = table[column].cast(pl.String)
    if ids.is_duplicated().any():
        raise DatasetError(
            f"{str(path)!r} has id {ids.filter(ids.is_duplicated())[0]!r} twice in column "
            f"{column!r}; truth needs one row an id."
        )
    row = {name: i for i, name in enumerate(ids.to_list())}
    rows = [row.get(str(name)) for name in frame[f"{one}_id"].to_list()]
    if all(i is None for i in rows):
        raise DatasetError(
            f"no id in column {column!r} of {str(path)!r} is one of the {side} of "
            f"{dataset.name!r}; put the original ids into column `{one}_id`."
        )
    found = _columns(table.drop(column))
    moved = {n: [None if i is None else v[i] for i in rows] for n, v in found.items()}
    return {**truth, **moved}


def _columns(table: pl.DataFrame) -> Truth:
    texts = {}
    for name in table.columns:
        series = table[name]
        values = series.to_list()
        if series.dtype in (pl.List, pl.Array):
            values = [None if v is None else ", ".join(map(str, v)) for v in values]
        texts[field_name(name)] = [None if v is None else str(v) for v in values]
    return texts


def column_for(field: str, truth: Mapping[str, list[str | None]]) -> str | None:
    """Return the column of truth that a field is held against: its own name, or its plural."""
    for name in (field, f"{field}s", field.removesuffix("s")):
        if name in truth and any(names_in(v) for v in truth[name]):
            return name
    return None
