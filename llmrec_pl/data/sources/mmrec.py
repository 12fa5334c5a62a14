"""Multimodal data sets in the format of MMRec (github.com/enoche/MMRec), such as Amazon Baby.

``<name>.inter`` is tab separated with columns userID, itemID, rating, timestamp and x_label, which
tells train (0), validation (1) and test (2). Row r of each ``<modality>_feat.npy`` belongs to
itemID r. ``i_id_mapping.csv`` and ``u_id_mapping.csv`` hold the original ids, where they are there.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llmrec_pl.data.sources.archive import RawFiles, open_inter, read_matrix
from llmrec_pl.data.sources.base import RawDataset, RawFeature
from llmrec_pl.data.sources.delimited import check_ids, decode, parse_delimited, rating_and_time
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.data.dataset import Split

FEATURE_ENDING = "_feat.npy"
_USER, _ITEM, _LABEL = "userID", "itemID", "x_label"
_SPLITS: dict[str, Split] = {"0": "train", "1": "val", "2": "test"}
_MAPPINGS = {_USER: "u_id_mapping.csv", _ITEM: "i_id_mapping.csv"}
_NUMBER = r"^[0-9]{1,18}$"


def read_mmrec(path: Path) -> RawDataset:
    """Read a folder or zip of an MMRec data set.

    Every feature file becomes an item modality of its own name. Without a mapping the numbers of
    the ``.inter`` file are the original ids.

    Raises:
        DatasetError: there is no, or more than one, ``.inter`` file; a column is missing; a row
            is bad; or a feature or mapping lacks an item.
    """
    files, inter = open_inter(path)
    where = files.where(inter)
    table = _read_table(files, inter, "\t", (_USER, _ITEM))
    features = _read_features(files)
    n_items = _check_items(table, where, features, files)
    users = _original_ids(table[_USER], files, _USER)
    items = _original_ids(table[_ITEM], files, _ITEM)
    columns = [users.alias("user_id"), items.alias("item_id"), *rating_and_time(table, where, 2)]
    raw = RawDataset(inter.removesuffix(".inter"), pl.DataFrame(columns), features=features)
    numbers = pl.Series(_ITEM, [str(i) for i in range(n_items)])
    raw.items = _original_ids(numbers, files, _ITEM).alias("item_id").to_frame()
    notes = []
    if _LABEL in table.columns:
        split = _split(table, where)
        raw.interactions = raw.interactions.with_columns(split)
        found = set(split.unique())
        raw.given_splits = tuple(name for name in _SPLITS.values() if name in found)
    else:
        notes.append(f"{where!r} has no column `{_LABEL}`, so it brings no split")
    read = [inter, *(f for f in _MAPPINGS.values() if f in files), *_feature_files(files)]
    hashes = {name: hashlib.sha256(files.read(name)).hexdigest() for name in read}
    raw.provenance = {"reader": "mmrec", "source": str(path), "files": hashes, "notes": notes}
    return raw


def _read_table(
    files: RawFiles, name: str, separator: str, needed: tuple[str, ...]
) -> pl.DataFrame:
    where = files.where(name)
    text, _ = decode(files.read(name), where)
    table = parse_delimited(text.encode(), where, separator)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise DatasetError(
            f"{where!r} has no column {missing}; its columns are {table.columns}. Rename them in "
            "the header, or read RecBole's `field:type` headers with `prepare recbole`."
        )
    check_ids(table, needed, where, first_line=2)
    return table


def _split(table: pl.DataFrame, where: str) -> pl.Series:
    """Return the split that each row's label names."""
    label = table[_LABEL].fill_null("").str.strip_chars().str.strip_suffix(".0")
    bad = (~label.is_in(list(_SPLITS))).arg_true()
    if len(bad):
        row = int(bad[0])
        raise DatasetError(
            f"{where!r} line {row + 2} has {table[_LABEL][row]!r} in column `{_LABEL}`, expected "
            f"0 (train), 1 (validation) or 2 (test) ({len(bad)} such rows). Correct or remove it."
        )
    return label.replace_strict(_SPLITS, return_dtype=pl.String).alias("split")


# Features --------------------------------------------------------------------------------------


def _feature_files(files: RawFiles) -> list[str]:
    return sorted(n for n in files.members if n.endswith(FEATURE_ENDING) and n != FEATURE_ENDING)


def _read_features(files: RawFiles) -> list[RawFeature]:
    features: list[RawFeature] = []
    for file in _feature_files(files):
        values = read_matrix(files, file)
        if features and len(values) != len(features[0].values):
            raise DatasetError(
                f"{files.where(file)!r} has {len(values)} rows but `{features[0].name}"
                f"{FEATURE_ENDING}` has {len(features[0].values)}; each item needs a row in both. "
                "Fetch the data set again, or remove one of them."
            )
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise DatasetError(
                f"{files.where(file)!r} has NaN or infinite values in row {np.argmin(finite)}; "
                "mend or remove the file."
            )
        name = file.removesuffix(FEATURE_ENDING)
        features.append(RawFeature("item", name, "modality", values))
    return features


def _check_items(
    table: pl.DataFrame, where: str, features: list[RawFeature], files: RawFiles
) -> int:
    """Check that item ids are numbers of feature rows; returns the size of the catalogue."""
    bad = (~table[_ITEM].str.contains(_NUMBER)).arg_true()
    if len(bad):
        row = int(bad[0])
        raise DatasetError(
            f"{where!r} line {row + 2} has {table[_ITEM][row]!r} in column `{_ITEM}`, expected a "
            "whole number from 0: features are found by it. Correct or remove the line."
        )
    numbers = table[_ITEM].cast(pl.Int64)
    n_seen = int(numbers.max() or 0) + 1  # type: ignore[arg-type]
    if not features:
        return n_seen
    n_rows = len(features[0].values)
    if n_seen > n_rows:
        row = int((numbers >= n_rows).arg_true()[0])
        raise DatasetError(
            f"{where!r} line {row + 2} has item {numbers[row]} but "
            f"{files.where(_feature_files(files)[0])!r} has {n_rows} rows; each item needs a row. "
            "Fetch the data set again: the files are not of one version."
        )
    return n_rows


# Original ids ----------------------------------------------------------------------------------


def _original_ids(numbers: pl.Series, files: RawFiles, column: str) -> pl.Series:
    """Return the original ids of numbers; the numbers themselves where there is no mapping."""
    file = _MAPPINGS[column]
    plain = numbers.str.replace(r"^0+(\d)", "${1}")
    if file not in files:
        return plain
    mapping = _read_mapping(files, file, column)
    frame = pl.DataFrame({column: plain}).join(
        mapping, on=column, how="left", maintain_order="left"
    )
    lost = frame.filter(pl.col("original").is_null())[column].unique(maintain_order=True)
    if len(lost):
        raise DatasetError(
            f"{files.where(file)!r} has no row for {column} {lost[0]} ({len(lost)} are missing). "
            "Fetch it again, or remove the file to keep the numbers."
        )
    return frame["original"]


def _read_mapping(files: RawFiles, file: str, column: str) -> pl.DataFrame:
    """Read a mapping into columns `column` and ``original``; the separator is told by line 1."""
    where = files.where(file)
    first = files.read(file).split(b"\n", 1)[0]
    table = _read_table(files, file, "\t" if b"\t" in first else ",", (column,))
    others = [name for name in table.columns if name != column]
    if len(others) != 1:
        raise DatasetError(
            f"{where!r} has columns {table.columns}, expected `{column}` and one with original "
            "ids. Remove the others, or the file to keep the numbers as ids."
        )
    check_ids(table, others, where, first_line=2)
    for name in (column, others[0]):
        twice = table[name].is_duplicated().arg_true()
        if len(twice):
            row = int(twice[-1])
            raise DatasetError(
                f"{where!r} line {row + 2} has {table[name][row]!r} in column `{name}` once more; "
                "each id maps to one. Correct or remove the line."
            )
    return table.select(pl.col(column), pl.col(others[0]).alias("original"))
