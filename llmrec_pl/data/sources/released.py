"""The data folder that the LLMRec authors released (github.com/HKUDS/LLMRec).

Reads the splits, the train matrix and the two feature matrices. The `augmented_*` pickles and
`candidate_indices` are no raw data and are left alone. Rows of all matrices are numbered by the
ids in the JSON files, so the catalogue is fixed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from llmrec_pl.data.dataset import SPLITS, Split
from llmrec_pl.data.sources.archive import RawFiles, open_raw, read_matrix
from llmrec_pl.data.sources.base import RawDataset, RawFeature
from llmrec_pl.data.sources.delimited import decode
from llmrec_pl.data.unpickle import loads
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FEATURE_FILES = {"image_feat.npy": "image", "text_feat.npy": "text"}


def read_released(
    path: Path, *, titles_aligned: bool = False, n_items: int | None = None
) -> RawDataset:
    """Read a released LLMRec data folder; `train.json` alone is enough.

    Args:
        path: the folder or a zip of it.
        titles_aligned: the ids of ``item_attribute.csv`` are the ids of the interactions. In the
            released Netflix data they are not, so by default its columns are kept apart as
            ``attribute_title`` and so on, which nothing takes for the item's title.
        n_items: size of the catalogue, where no file at hand tells it.

    Raises:
        DatasetError: a file is damaged, or files disagree.
    """
    files = open_raw(path, {"train.json"})
    notes: list[str] = []
    hashes = {}
    edges: dict[Split, NDArray[np.int64]] = {}
    for split in SPLITS:
        if f"{split}.json" in files:
            data = files.read(f"{split}.json")
            hashes[f"{split}.json"] = hashlib.sha256(data).hexdigest()
            edges[split] = _read_edges(data, files.where(f"{split}.json"))
    if "val" in edges and "test" in edges and _equal(edges["val"], edges["test"]):
        del edges["val"]
        same = "byte for byte" if hashes["val.json"] == hashes["test.json"] else "in content"
        notes.append(
            f"`val.json` equals `test.json` {same}: choosing a model on it would be choosing on "
            "test. It is not used; a validation set is carved out of train."
        )
    n_users, seen = (max(int(e[i].max(initial=-1)) for e in edges.values()) + 1 for i in (0, 1))
    if n_items is not None and n_items < seen:
        raise DatasetError(
            f"`n_items` is {n_items} but {str(path)!r} has item {seen - 1}; give at least {seen}."
        )
    n_items = n_items or seen
    if "train_mat" in files:
        data = files.read("train_mat")
        hashes["train_mat"] = hashlib.sha256(data).hexdigest()
        matrix = loads(data, files.where("train_mat"))
        _check_train(matrix, edges["train"], files.where("train_mat"))
        n_users, n_items = max(n_users, matrix.shape[0]), max(n_items, matrix.shape[1])
    features = _read_features(files, hashes)
    n_items = max([n_items, *(len(f.values) for f in features)])
    for feature in features:
        if len(feature.values) != n_items:
            raise DatasetError(
                f"`{feature.name}_feat.npy` in {str(path)!r} has {len(feature.values)} rows but "
                f"the data have {n_items} items; each item needs a row. Fetch the folder again."
            )
    items = pl.DataFrame({"item_id": [str(i) for i in range(n_items)]})
    if "item_attribute.csv" in files:
        items = _join_attributes(items, files, notes, aligned=titles_aligned)
    raw = RawDataset("released", _frame(edges), items=items, fixed_catalogue=True)
    raw.users = pl.DataFrame({"user_id": [str(u) for u in range(n_users)]})
    raw.given_splits = tuple(edges)
    raw.features = features
    raw.provenance = {"reader": "released", "source": str(path), "files": hashes, "notes": notes}
    return raw


def _read_edges(data: bytes, where: str) -> NDArray[np.int64]:
    """Read ``{"user": [items]}`` into distinct or repeated pairs ``[2, n]``."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DatasetError(f"{where!r} is not valid JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{where!r} holds a {type(content).__name__}, expected user: [items].")
    users: list[int] = []
    items: list[int] = []
    for user, row in content.items():
        if not (user.isascii() and user.isdigit()):
            raise DatasetError(f"{where!r} has user {user!r}; user ids are whole numbers from 0.")
        if not isinstance(row, list):
            raise DatasetError(f"{where!r} has {row!r} for user {user}, expected a list of items.")
        for item in row:
            if type(item) is not int or item < 0:
                raise DatasetError(
                    f"{where!r} has item {item!r} for user {user}; item ids are whole numbers "
                    "from 0. Correct or remove it."
                )
        users += [int(user)] * len(row)
        items += row
    return np.array([users, items], dtype=np.int64)


def _distinct(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(edges, axis=1)


def _equal(left: NDArray[np.int64], right: NDArray[np.int64]) -> bool:
    return np.array_equal(_distinct(left), _distinct(right))


def _check_train(matrix: Any, train: NDArray[np.int64], where: str) -> None:  # noqa: ANN401
    """Check that the train matrix holds the edges of ``train.json``."""
    import scipy.sparse as sp

    if not sp.issparse(matrix) or len(matrix.shape) != 2:
        raise DatasetError(
            f"{where!r} holds a {type(matrix).__name__}, expected a sparse matrix of users x items."
        )
    coo = sp.coo_array(matrix)
    stored = coo.data != 0
    found = {(int(u), int(i)) for u, i in zip(coo.row[stored], coo.col[stored], strict=True)}
    expected = {(int(u), int(i)) for u, i in train.T}
    if found != expected:
        user, item = min(found ^ expected)
        has, lacks = (
            ("train_mat", "train.json") if (user, item) in found else ("train.json", "train_mat")
        )
        raise DatasetError(
            f"{where!r} and `train.json` disagree: {len(found - expected)} edges are only "
            f"in `train_mat` and {len(expected - found)} only in `train.json`; for example user "
            f"{user}, item {item} is in `{has}` but not in `{lacks}`. Remove the wrong file."
        )


def _read_features(files: RawFiles, hashes: dict[str, str]) -> list[RawFeature]:
    features = []
    for file, name in FEATURE_FILES.items():
        if file not in files:
            continue
        values = read_matrix(files, file)
        hashes[file] = hashlib.sha256(files.read(file)).hexdigest()
        features.append(RawFeature("item", name, "modality", values))
    return features


def _join_attributes(
    items: pl.DataFrame, files: RawFiles, notes: list[str], *, aligned: bool
) -> pl.DataFrame:
    """Add the columns of ``item_attribute.csv``, with or without a header, by id."""
    where = files.where("item_attribute.csv")
    text, replaced = decode(files.read("item_attribute.csv"), where)
    if replaced:
        notes.append(f"{replaced} lone surrogates in `item_attribute.csv` became U+FFFD")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    header = ["id", "year", "title"]
    if rows and not rows[0][0].strip().isdigit():
        # pandas writes its index as a first column without name
        header = [name.strip().lower() or "id" for name in rows.pop(0)]
    elif rows and len(rows[0]) > 1 and not _is_year(rows[0][1]):
        header = ["id", "title", "genres"]
    width = len(header)
    table: dict[str, list[str | None]] = {}
    skipped = repeated = 0
    for row in rows:
        if not row[0].strip().isdigit() or len(row) < 2:
            skipped += 1
            continue
        repeated += str(int(row[0])) in table
        # a title with commas that was not quoted takes up further fields
        fields = [*row[1 : width - 1], ",".join(row[width - 1 :])] if len(row) > width else row[1:]
        table[str(int(row[0]))] = [f.strip() or None for f in fields] + [None] * (
            width - 1 - len(fields)
        )
    prefix = "" if aligned else "attribute_"
    columns = {}
    for place, name in enumerate(header[1:]):
        column = [table.get(i, [None] * width)[place] for i in items["item_id"]]
        columns[f"{prefix}{name}"] = pl.Series(column, dtype=pl.String)
    if skipped or repeated:
        notes.append(
            f"`item_attribute.csv`: {skipped} rows without a numeric id were left out, {repeated} "
            "repeat an id and replaced the row before"
        )
    known = sum(i in table for i in items["item_id"])
    notes.append(
        f"`item_attribute.csv` has {len(rows)} rows, {known} of them with ids of the "
        f"{items.height} items. "
        + (
            "Taken as the items' own texts, as asked."
            if aligned
            else "In the released Netflix data these titles do not line up with the ids of the "
            "interactions, so they are kept as `attribute_*` columns and not as titles; "
            "`--titles-aligned` overrides that."
        )
    )
    items = items.with_columns(**columns)
    if aligned and "year" in items.columns:
        items = items.with_columns(pl.col("year").str.extract(r"(\d{4})").cast(pl.Int32))
    return items


def _is_year(text: str) -> bool:
    return text.strip().removesuffix(".0").isdigit() or text.strip().lower() in ("", "nan", "null")


def _frame(edges: dict[Split, NDArray[np.int64]]) -> pl.DataFrame:
    frames = [
        pl.DataFrame({"user_id": e[0], "item_id": e[1]}).with_columns(
            pl.all().cast(pl.String), pl.lit(cast("str", split)).alias("split")
        )
        for split, e in edges.items()
    ]
    return pl.concat(frames)
