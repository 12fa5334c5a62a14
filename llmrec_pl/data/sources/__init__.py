"""Readers of raw formats: one file each, all returning a `RawDataset`.

This module only knows which reader belongs to which format, and how to tell a format from the
files of a folder or zip. A new format is one file here and one line in ``READERS``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.data.sources.base import RawDataset

READERS = {
    "movielens": "read_movielens",
    "released": "read_released",
    "recbole": "read_recbole",
    "mmrec": "read_mmrec",
    "table": "read_table",
    "simulated": "simulate",
}
"""Format -> function of the module with the format's name; imported only when used."""


def read(kind: str, path: Path | None = None, **options: Any) -> RawDataset:  # noqa: ANN401
    """Read raw data.

    Args:
        kind: a key of ``READERS``.
        path: the folder, zip or file; None for simulated data.
        options: further arguments of the reader, such as the column names of a table.

    Raises:
        DatasetError: the format is unknown, or the reader finds something wrong.
    """
    if kind not in READERS:
        raise DatasetError(f"unknown format {kind!r}; choose one of {sorted(READERS)}.")
    reader = getattr(import_module(f"{__name__}.{kind}"), READERS[kind])
    result: RawDataset = reader(**options) if path is None else reader(path, **options)
    return result


def detect(path: Path) -> str:
    """Tell the format of a folder, zip or file.

    Raises:
        DatasetError: none fits.
    """
    from llmrec_pl.data.sources.archive import list_files
    from llmrec_pl.data.sources.movielens import MARKERS

    if path.is_file() and path.suffix != ".zip":
        return "table"
    names = list_files(path)
    if names & MARKERS:
        return "movielens"
    if "train.json" in names:
        return "released"
    if any(name.endswith(".inter") for name in names):
        return "mmrec" if any(name.endswith("_feat.npy") for name in names) else "recbole"
    raise DatasetError(
        f"the files of {str(path)!r} fit no known format: {sorted(names)[:20]}. Name the data "
        "set's own folder, or convert it to one CSV and use `prepare table`."
    )
