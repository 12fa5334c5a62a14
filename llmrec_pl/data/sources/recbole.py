"""RecBole atomic files: ``<name>.inter``, ``<name>.item``, ``<name>.user``, tab separated.

The header names fields as ``field:type`` with types token, token_seq, float and float_seq. Float
sequences (dense features) are left out and named in the provenance.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import polars as pl

from llmrec_pl.data.sources.archive import RawFiles, open_inter
from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.data.sources.delimited import check_ids, decode, parse_delimited, rating_and_time
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

_INTERACTION_FIELDS = ("user_id", "item_id", "rating", "timestamp")
# what RecBole's own data sets call the columns that this project names otherwise
_NAMES = {
    "movie_title": "title",
    "release_year": "year",
    "class": "genres",
    "genre": "genres",
    "zip_code": "zip",
}
# sequences whose elements are single words, so that a blank separates two of them
_LISTS = {"class", "genre", "genres", "categories"}


def read_recbole(path: Path) -> RawDataset:
    """Read a folder or zip of RecBole atomic files.

    Raises:
        DatasetError: there is no, or more than one, ``.inter`` file; a field is missing; or a
            row is bad.
    """
    files, inter = open_inter(path)
    stem = inter.removesuffix(".inter")
    table, skipped = _read(files, inter)
    where = files.where(inter)
    missing = [c for c in ("user_id", "item_id") if c not in table.columns]
    if missing:
        raise DatasetError(
            f"{where!r} has no field {missing}; its fields are {table.columns}. Rename them in "
            "the header, or use `prepare table` with `--user-column` and `--item-column`."
        )
    check_ids(table, ["user_id", "item_id"], where, first_line=2)
    columns = [table["user_id"], table["item_id"], *rating_and_time(table, where, 2)]
    skipped += [f"{inter}: {c}" for c in table.columns if c not in _INTERACTION_FIELDS]
    raw = RawDataset(stem, pl.DataFrame(columns))
    sha256 = hashlib.sha256(files.read(inter)).hexdigest()
    raw.provenance = {"reader": "recbole", "source": str(path), "files": {inter: sha256}}
    for side in ("item", "user"):
        if f"{stem}.{side}" in files:
            side_table, side_skipped = _side(files, f"{stem}.{side}", f"{side}_id")
            skipped += side_skipped
            if side == "item":
                raw.items = side_table
            else:
                raw.users = side_table
    if skipped:
        raw.provenance["notes"] = [f"fields left out: {', '.join(skipped)}"]
    return raw


def _read(files: RawFiles, name: str) -> tuple[pl.DataFrame, list[str]]:
    """Read one atomic file; returns a frame with plain field names, and the fields left out."""
    where = files.where(name)
    text, _ = decode(files.read(name), where)
    table = parse_delimited(text.encode(), where, "\t")
    names, skipped = {}, []
    for column in table.columns:
        field, _, kind = column.partition(":")
        if kind == "float_seq":
            skipped.append(f"{name}: {field}")
        elif kind not in ("token", "token_seq", "float"):
            raise DatasetError(
                f"{where!r} has {column!r} in its header, expected `field:type` with type token, "
                "token_seq, float or float_seq. Is it a RecBole atomic file?"
            )
        else:
            names[column] = field
    return table.select(pl.col(list(names))).rename(names), skipped


def _side(files: RawFiles, name: str, id_column: str) -> tuple[pl.DataFrame, list[str]]:
    table, skipped = _read(files, name)
    if id_column not in table.columns:
        raise DatasetError(
            f"{files.where(name)!r} has no field `{id_column}`; its fields are {table.columns}."
        )
    check_ids(table, [id_column], files.where(name), first_line=2)
    lists = [c for c in table.columns if c in _LISTS]
    table = table.with_columns(
        pl.col(c).str.strip_chars().str.replace_all(" ", ", ") for c in lists
    )
    names = {old: new for old, new in _NAMES.items() if old in table.columns}
    table = table.rename({old: new for old, new in names.items() if new not in table.columns})
    if "year" in table.columns:
        table = table.with_columns(pl.col("year").str.extract(r"(\d{4})").cast(pl.Int32))
    return table, skipped
