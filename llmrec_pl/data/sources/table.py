"""Any CSV, TSV, parquet or JSON lines file with named columns, and tables joined to others."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import polars as pl

from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.data.sources.delimited import (
    check_ids,
    clean_text,
    decode,
    parse_delimited,
    to_numbers,
)
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.data.dataset import Split

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_RESERVED = {"user", "item", "user_id", "item_id"}


def read_table(
    path: Path,
    *,
    user_column: str = "user_id",
    item_column: str = "item_id",
    rating_column: str | None = None,
    timestamp_column: str | None = None,
    split_column: str | None = None,
) -> RawDataset:
    """Read interactions from one file with a header.

    Args:
        path: ``.csv``, ``.tsv`` (or ``.txt``, tab separated), ``.parquet``, ``.jsonl``.
        user_column: column of user ids.
        item_column: column of item ids.
        rating_column: column of ratings; ``rating`` is taken if it is there.
        timestamp_column: column of times, as seconds or as date and time; ``timestamp`` is taken
            if it is there.
        split_column: column with train, val or test; ``split`` is taken if it is there.

    Raises:
        DatasetError: a column is missing or a row is bad.
    """
    table, replaced = read_frame(path)
    first_line = 2 if path.suffix.lower() in SEPARATORS else 1
    where = str(path)
    chosen = {"user_id": user_column, "item_id": item_column}
    optional = {"rating": rating_column, "timestamp": timestamp_column, "split": split_column}
    for name, column in optional.items():
        if column is not None or name in table.columns:
            chosen[name] = column or name
    _check_columns(table, chosen, where)
    check_ids(table.with_columns(pl.col(user_column, item_column).cast(pl.String)),
              [user_column, item_column], where, first_line)  # fmt: skip
    columns = [table[chosen[side]].cast(pl.String).alias(side) for side in ("user_id", "item_id")]
    if "rating" in chosen:
        columns.append(
            to_numbers(table, chosen["rating"], pl.Float64, where, first_line).alias("rating")
        )
    if "timestamp" in chosen:
        columns.append(_seconds(table, chosen["timestamp"], where, first_line).alias("timestamp"))
    given: tuple[Split, ...] = ()
    if "split" in chosen:
        columns.append(_splits(table, chosen["split"], where, first_line).alias("split"))
        present = set(columns[-1].unique())
        if "train" not in present:
            raise DatasetError(f"{where!r} has no `train` row in column {chosen['split']!r}.")
        order: tuple[Split, ...] = ("train", "val", "test")
        given = tuple(s for s in order if s in present)
    raw = RawDataset(path.stem, pl.DataFrame(columns), given_splits=given)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    raw.provenance = {"reader": "table", "source": where, "files": {path.name: sha256}}
    raw.provenance["columns"] = chosen
    if replaced:
        raw.provenance["notes"] = [f"{replaced} lone surrogates became U+FFFD"]
    return raw


def _check_columns(table: pl.DataFrame, chosen: dict[str, str], where: str) -> None:
    for name, column in chosen.items():
        if column not in table.columns:
            flag = f"--{name.removesuffix('_id')}-column"
            raise DatasetError(
                f"{where!r} has no column {column!r}; it has {table.columns}. Name the right one "
                f"with `{flag}`."
            )


def read_frame(path: Path) -> tuple[pl.DataFrame, int]:
    """Read a file with named columns.

    Returns:
        The table (text formats give strings), and how many lone surrogates were replaced.

    Raises:
        DatasetError: the file is missing, damaged, or of an unknown kind.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DatasetError(f"{str(path)!r} is no file; name a .csv, .tsv, .parquet or .jsonl.")
    if suffix in SEPARATORS:
        text, replaced = decode(path.read_bytes(), str(path))
        return parse_delimited(text.encode(), str(path), SEPARATORS[suffix], quoted=True), replaced
    if suffix in JSON_LINES:
        return _read_json_lines(path)
    if suffix == ".parquet":
        try:
            return pl.read_parquet(path), 0
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DatasetError(
                f"cannot read {str(path)!r}: {str(error).splitlines()[0]}. Export it again."
            ) from error
    raise DatasetError(
        f"{str(path)!r} has the ending {suffix!r}; expected .csv, .tsv, .txt, .parquet or .jsonl."
    )


def _read_json_lines(path: Path) -> tuple[pl.DataFrame, int]:
    """Read JSON lines; lists become text joined by commas, as in the other formats."""
    rows: list[dict[str, str | None]] = []
    replaced = 0
    text, _ = decode(path.read_bytes(), str(path))
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise DatasetError(
                f"{str(path)!r} line {number} is not valid JSON ({error})."
            ) from error
        if not isinstance(content, dict):
            raise DatasetError(f"{str(path)!r} line {number} is no JSON object: {line[:80]!r}.")
        row: dict[str, str | None] = {}
        for key, value in content.items():
            text, n = clean_text(_as_text(value))
            row[key] = None if value is None else text
            replaced += n
        rows.append(row)
    names = dict.fromkeys(key for row in rows for key in row)
    if not rows:
        raise DatasetError(f"{str(path)!r} is empty; export it again.")
    return pl.DataFrame(
        {n: pl.Series([r.get(n) for r in rows], dtype=pl.String) for n in names}
    ), replaced


def _as_text(value: Any) -> str:  # noqa: ANN401
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _seconds(table: pl.DataFrame, column: str, where: str, first_line: int) -> pl.Series:
    """Turn times into seconds since 1970: numbers as they are, dates by their calendar."""
    source = table[column]
    if source.dtype == pl.String and source.cast(pl.Float64, strict=False).null_count():
        for read in (source.str.to_datetime, source.str.to_date):
            # an inferred format that fits no or not all rows: try the next, then complain below
            with contextlib.suppress(pl.exceptions.PolarsError):
                parsed = read(strict=False)
                if not parsed.null_count():
                    return parsed.cast(pl.Datetime("us")).dt.epoch("s")
    if source.dtype.is_temporal() and not source.null_count():
        return source.cast(pl.Datetime("us")).dt.epoch("s")
    return to_numbers(table, column, pl.Int64, where, first_line)


def _splits(table: pl.DataFrame, column: str, where: str, first_line: int) -> pl.Series:
    names = table[column].cast(pl.String).str.to_lowercase().str.strip_chars()
    splits = names.replace_strict(_SPLIT_NAMES, default=None, return_dtype=pl.String)
    bad = splits.is_null().arg_true()
    if len(bad):
        raise DatasetError(
            f"{where!r} line {int(bad[0]) + first_line} has {table[column][int(bad[0])]!r} in "
            f"column {column!r}; expected train, val or test."
        )
    return splits


def join_columns(raw: RawDataset, side: str, path: Path) -> str:
    """Add the columns of a file to the users or items of a data set.

    The first column of the file holds the ids. Column names become lower case; columns that the
    data set already has are kept as they are. Empty text and "N/A" mean unknown.

    Args:
        raw: changed in place.
        side: "users" or "items".
        path: the file.

    Returns:
        A sentence on what was joined, for the user.

    Raises:
        DatasetError: the file is wrong, or an id stands in it twice.
    """
    table, replaced = read_frame(path)
    id_column = f"{side.removesuffix('s')}_id"
    first = table.columns[0]
    names = {c: c.strip().lower() for c in table.columns[1:]}
    if len(set(names.values())) < len(names):
        raise DatasetError(f"{str(path)!r} has two columns of one name: {table.columns}.")
    ids = table[first].cast(pl.String)
    repeated = ids.filter(ids.is_duplicated())
    if len(repeated):
        raise DatasetError(f"{str(path)!r} has id {repeated[0]!r} twice in column {first!r}.")
    table = table.select(ids.alias(id_column), pl.exclude(first)).rename(names)
    table = table.with_columns(
        pl.col(pl.String).exclude(id_column).replace({"": None, "N/A": None})
    )
    old = raw.users if side == "users" else raw.items
    if old is None:
        old = raw.interactions.select(pl.col(id_column).unique())
    known = table.join(old, on=id_column, how="semi").height
    if not known:
        raise DatasetError(
            f"no id in column {first!r} of {str(path)!r} is an id of the {side} (such as "
            f"{old[id_column][0]!r}); the first column must hold the ids."
        )
    new = [c for c in table.columns if c not in {*old.columns, *_RESERVED}]
    joined = old.join(
        table.select(id_column, *new), on=id_column, how="left", maintain_order="left"
    )
    if side == "users":
        raw.users = joined
    else:
        raw.items = joined
    raw.provenance.setdefault("files", {})[path.name] = hashlib.sha256(
        path.read_bytes()
    ).hexdigest()
    kept = [c for c in names.values() if c not in new]
    return (
        f"{path.name}: columns {', '.join(new)} for {known:,} of {old.height:,} {side}"
        + (f"; {', '.join(kept)} kept from the data set" if kept else "")
        + (f"; {replaced} lone surrogates became U+FFFD" if replaced else "")
    )
