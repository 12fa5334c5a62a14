"""What a feature is made from: item texts, picture files, or rows of a ready matrix.

Turns the tables and files of a data set into distinct inputs and an index over its rows. Encodes
nothing. An item without text, picture or row is missing (-1), never filled in.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import polars as pl

from llmrec_pl.data.dataset import ITEMS, USERS, read_meta
from llmrec_pl.data.encoders.image import open_picture
from llmrec_pl.errors import DatasetError
from llmrec_pl.progress import ProgressReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrec_pl.data.features import Side

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class Inputs(Generic[T]):
    """Distinct inputs of an encoder, and which row of the data set has which.

    Attributes:
        values: distinct texts or files, in order of first appearance.
        keys: what makes each distinct: the text itself, or the hash of the file.
        index: ``[n_rows]`` position in `values` for each user or item, -1 where there is none.
        notes: counts worth showing, by a few words.
    """

    values: list[T]
    keys: list[str]
    index: NDArray[np.int64]
    notes: dict[str, int] = dataclasses.field(default_factory=dict)


def distinct_inputs(rows: Sequence[tuple[str, T] | None], notes: dict[str, int]) -> Inputs[T]:
    """Keep each distinct input once.

    Args:
        rows: (key, value) for each user or item, None where missing.
        notes: counts to pass on.
    """
    seen: dict[str, int] = {}
    values: list[T] = []
    index = np.full(len(rows), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        if row is None:
            continue
        key, value = row
        if key not in seen:
            seen[key] = len(values)
            values.append(value)
        index[i] = seen[key]
    return Inputs(values, list(seen), index, notes)


def side_table(root: Path, side: Side) -> pl.DataFrame:
    """Read ``users.parquet`` or ``items.parquet`` of a canonical folder, ordered by dense id.

    Raises:
        DatasetError: the folder is none, or the table is missing or unreadable.
    """
    meta = read_meta(root)
    path = root / (ITEMS if side == "item" else USERS)
    try:
        table = pl.read_parquet(path).sort(side)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatasetError(
            f"cannot read {str(path)!r}: {str(error).splitlines()[0]}. Run `prepare` again."
        ) from error
    if table.height != meta[f"n_{side}s"]:
        raise DatasetError(
            f"{str(path)!r} has {table.height} rows, `dataset.json` says {meta[f'n_{side}s']}; "
            "run `prepare` again."
        )
    return table


def original_ids(table: pl.DataFrame, side: Side) -> list[str]:
    """Return the original id of each row, as text."""
    return [str(i) for i in table[f"{side}_id"].to_list()]


def text_inputs(table: pl.DataFrame, side: Side, columns: Sequence[str]) -> Inputs[str]:
    """Render one text a row from named columns.

    One column gives its bare value, several give "title: Toy Story; year: 1995; genres:
    Animation, Comedy". Empty fields are left out; a row with none is missing. Lists and values
    separated by "|" are joined by commas; runs of white space become one space.

    Raises:
        DatasetError: a column is unknown, or every row is empty.
    """
    offered = [c for c in table.columns if c not in (side, f"{side}_id")]
    unknown = [c for c in columns if c not in offered]
    if unknown or not columns:
        raise DatasetError(
            f"the {side} table has no column {unknown or ['']}; it has {offered or 'none'}. "
            "Name one or more of these with `--text`, separated by commas."
        )
    label = len(columns) > 1
    rows: list[tuple[str, str] | None] = []
    for record in table.select(columns).iter_rows():
        fields = [(c, _plain(v)) for c, v in zip(columns, record, strict=True)]
        text = "; ".join(f"{c}: {v}" if label else v for c, v in fields if v)
        rows.append((text, text) if text else None)
    inputs = distinct_inputs(rows, {})
    if not inputs.values:
        raise DatasetError(
            f"no {side} has a text in column(s) {list(columns)}; choose among {offered}."
        )
    return inputs


def _plain(value: Any) -> str:  # noqa: ANN401
    """Render one table cell as text, empty where there is nothing to say."""
    if value is None or value != value:  # NaN is the only value unequal to itself
        return ""
    if isinstance(value, list):
        return ", ".join(text for text in map(_plain, value) if text)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a year read with gaps is 1995.0
    parts = (" ".join(part.split()) for part in str(value).split("|"))
    return ", ".join(part for part in parts if part)


def image_inputs(
    folder: Path, ids: Sequence[str], side: Side, *, skip_unreadable: bool = False
) -> Inputs[Path]:
    """Find, read and check the picture of each row, named ``<original id>.jpg`` or the like.

    Every file is decoded once before any is encoded, so that a broken one is reported within
    seconds and not after an hour. Files with equal bytes are encoded once.

    Args:
        folder: holds the pictures, not searched deeper.
        ids: original ids, in row order.
        side: for the messages.
        skip_unreadable: count a broken file as missing instead of stopping.

    Raises:
        DatasetError: no folder, no picture for any id, two pictures for one id, or an
            unreadable picture.
    """
    files = _picture_files(folder)
    known = set(ids)
    if not known & files.keys():
        example = f"; a file there: {next(iter(files.values())).name!r}" if files else ""
        raise DatasetError(
            f"no image in {str(folder)!r} belongs to a {side}: expected names such as "
            f"{ids[0] + '.jpg'!r} with suffix {', '.join(IMAGE_SUFFIXES)} ({len(files)} image "
            f"files found{example})."
        )
    notes = {"files without a row": len(files.keys() - known), "unreadable files": 0}
    rows: list[tuple[str, Path] | None] = []
    with ProgressReport("reading images", len(known & files.keys()), "images") as progress:
        for id_ in ids:
            path = files.get(id_)
            rows.append(None)
            if path is None:
                continue
            try:
                content = path.read_bytes()
                open_picture(path, content)
                rows[-1] = (hashlib.sha256(content).hexdigest(), path)
            except DatasetError:
                if not skip_unreadable:
                    raise
                notes["unreadable files"] += 1
            progress.advance()
    inputs = distinct_inputs(rows, notes)
    if not inputs.values:
        raise DatasetError(
            f"none of the {notes['unreadable files']} images in {str(folder)!r} can be read; "
            "copy them again."
        )
    return inputs


def _picture_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"no folder of images at {str(folder)!r}; give one with `--images`.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        if path.stem in files:
            raise DatasetError(
                f"two images for id {path.stem!r} in {str(folder)!r}: {files[path.stem].name!r} "
                f"and {path.name!r}; remove one."
            )
        files[path.stem] = path
    return files


def array_rows(
    file: Path, ids: Sequence[str], side: Side, ids_file: Path | None = None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
    """Read a ready matrix and bring its rows into the order of the data set.

    Args:
        file: a ``.npy`` matrix of numbers, ``[n, dim]``.
        ids: original ids, in row order.
        side: for the messages.
        ids_file: original id of each row of the matrix, as ``.npy`` or one a line; without it
            the matrix must have one row for each user or item, in the order of the data set.

    Returns:
        The matrix ``[n_rows, dim]``, and True where a row is missing ``[n_rows]``.

    Raises:
        DatasetError: not a readable matrix, wrong number of rows, NaN or infinite values, or
            ids that are unknown or repeated.
    """
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"cannot read the matrix {str(file)!r}: {error}. Save it with `numpy.save`."
        ) from error
    if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.dtype.kind not in "fiu":
        raise DatasetError(
            f"matrix {str(file)!r} has shape {matrix.shape} and type {matrix.dtype}; expected "
            "numbers in two dimensions, one row each."
        )
    given = list(ids) if ids_file is None else _read_ids(ids_file, ids, side)
    if len(matrix) != len(given):
        raise DatasetError(
            f"matrix {str(file)!r} has {len(matrix)} rows for {len(given)} "
            + (
                f"{side}s; give the id of each row with `--ids FILE`."
                if ids_file is None
                else f"ids in {str(ids_file)!r}; they must be of equal length."
            )
        )
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DatasetError(
            f"matrix {str(file)!r} has NaN or infinite values in {int((~finite).sum())} rows, "
            f"first in row {row} ({side} id {given[row]!r}). Leave unknown rows out and name the "
            "others with `--ids FILE`."
        )
    position = {id_: i for i, id_ in enumerate(ids)}
    at = np.array([position[i] for i in given], dtype=np.int64)
    values = np.zeros((len(ids), matrix.shape[1]), dtype=np.result_type(matrix.dtype, np.float16))
    values[at] = matrix
    missing = np.ones(len(ids), dtype=bool)
    missing[at] = False
    return values, missing


def _read_ids(file: Path, ids: Sequence[str], side: Side) -> list[str]:
    try:
        if file.suffix == ".npy":
            given = [str(i) for i in np.load(file, allow_pickle=False).ravel().tolist()]
        else:
            given = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"cannot read ids from {str(file)!r}: {error}. Give one original id a line, or an "
            "array of ids as `.npy`."
        ) from error
    known = set(ids)
    unknown = [(i, id_) for i, id_ in enumerate(given) if id_ not in known]
    if unknown:
        raise DatasetError(
            f"{len(unknown)} of {len(given)} ids in {str(file)!r} are no {side} of the data set, "
            f"first {unknown[0][1]!r} in row {unknown[0][0]}; use original ids such as {ids[0]!r}."
        )
    if len(set(given)) != len(given):
        repeated = next(id_ for i, id_ in enumerate(given) if id_ in given[:i])
        raise DatasetError(f"id {repeated!r} is twice in {str(file)!r}; each may have one row.")
    return given
