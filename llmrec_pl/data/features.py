"""Named float matrices of users and items, memory-mapped, with repeated rows stored once.

Files are ``features/<side>_<name>.npy`` and, where rows repeat or are missing,
``features/<side>_<name>.index.npy``. Holds no projections and makes no features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from llmrec_pl.data.dataset import META, read_meta, sha256_file, write_meta
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Side = Literal["user", "item"]
Group = Literal["modality", "profile", "attribute"]
FEATURES = "features"
_BLOCK_ROWS = 8_192


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature matrix of users or items.

    Attributes:
        name: unique name, also the name of the model's projection.
        side: "user" or "item".
        group: decides the weight in LLMRec: "modality" (text, image), "profile", "attribute".
        values: distinct rows ``[n_distinct, dim]``, float16 or float32, possibly memory-mapped.
        index: ``[n_rows]`` row of `values` for each user or item, -1 where unknown; None if
            `values` has one row each.
        sha256: hash over the hashes of the stored files, empty if made in memory.
        info: how the feature was made (encoder, columns).
    """

    name: str
    side: Side
    group: Group
    values: NDArray[np.floating[Any]]
    index: NDArray[np.int64] | None = None
    sha256: str = ""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Width of the matrix."""
        return int(self.values.shape[1])

    @property
    def n_rows(self) -> int:
        """Number of users or items it describes."""
        return len(self.values) if self.index is None else len(self.index)

    @property
    def n_missing(self) -> int:
        """Number of users or items without this feature."""
        return 0 if self.index is None else int((self.index < 0).sum())

    def dense(self) -> NDArray[np.float32]:
        """Return one float32 row for each user or item, zeros where unknown, ``[n_rows, dim]``."""
        if self.index is None:
            return np.asarray(self.values, dtype=np.float32)
        rows = np.zeros((self.n_rows, self.dim), dtype=np.float32)
        known = self.index >= 0
        rows[known] = self.values[self.index[known]]
        return rows


class FeatureStore(Mapping[str, Feature]):
    """The features of a data set by name, in a fixed order."""

    def __init__(self, features: Mapping[str, Feature] | None = None) -> None:
        self._features = dict(sorted((features or {}).items()))

    def __getitem__(self, name: str) -> Feature:
        if name not in self._features:
            raise DatasetError(
                f"no feature {name!r} in the data set; it has {sorted(self._features)}. Make it "
                "with `python -m llmrec_pl features`."
            )
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, name: object) -> bool:
        return name in self._features

    def group(self, group: Group, side: Side | None = None) -> list[Feature]:
        """Return the features of one group, optionally of one side."""
        return [f for f in self.values() if f.group == group and (side is None or f.side == side)]

    def merged(self, features: list[Feature]) -> FeatureStore:
        """Return a store with further features; equal names are an error.

        Raises:
            DatasetError: a name is taken.
        """
        merged = dict(self._features)
        for feature in features:
            if feature.name in merged:
                raise DatasetError(
                    f"feature {feature.name!r} of the augmentation is also a feature of the data "
                    "set; leave one out with `data.exclude_features`."
                )
            merged[feature.name] = feature
        return FeatureStore(merged)

    def only(self, names: Iterable[str]) -> FeatureStore:
        """Return a store with those of the named features that exist."""
        return FeatureStore({n: self._features[n] for n in names if n in self._features})

    def without(self, names: list[str]) -> FeatureStore:
        """Return a store without the named features.

        Raises:
            DatasetError: a name is unknown.
        """
        for name in names:
            self[name]
        return FeatureStore({n: f for n, f in self.items() if n not in names})

    @classmethod
    def load(cls, root: Path, *, verify: bool = True) -> FeatureStore:
        """Open the features of a canonical folder.

        Raises:
            DatasetError: a file is missing or damaged, has the wrong shape, or holds NaN or
                infinite values.
        """
        meta = read_meta(root)
        n_rows = {"user": meta["n_users"], "item": meta["n_items"]}
        features = {}
        for name, entry in meta.get("features", {}).items():
            feature = _open(root, name, entry, verify=verify)
            check_feature(feature, n_rows[feature.side], root / FEATURES / entry["files"][0])
            features[name] = feature
        return cls(features)


def _open(root: Path, name: str, entry: Mapping[str, Any], *, verify: bool) -> Feature:
    paths = [root / FEATURES / file for file in entry["files"]]
    for path, expected in zip(paths, entry["sha256"], strict=True):
        if not path.is_file():
            raise DatasetError(
                f"feature file {str(path)!r} is missing; make feature {name!r} again with "
                "`python -m llmrec_pl features --overwrite`."
            )
        if verify and sha256_file(path) != expected:
            raise DatasetError(
                f"feature file {str(path)!r} is damaged or edited (its sha256 differs from "
                f"`{META}`); make feature {name!r} again with `python -m llmrec_pl features "
                "--overwrite`."
            )
    try:
        values = np.load(paths[0], mmap_mode="r", allow_pickle=False)
        index = np.load(paths[1], allow_pickle=False) if len(paths) > 1 else None
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(
            f"cannot read feature {name!r} from {str(paths[0])!r}: {error}. Make it again with "
            "`python -m llmrec_pl features --overwrite`."
        ) from error
    info = entry.get("info", {})
    # The index counts too: equal rows given to other users are another feature.
    identity = hashlib.sha256("".join(entry["sha256"]).encode()).hexdigest()
    return Feature(name, entry["side"], entry["group"], values, index, identity, info)


def release(values: NDArray[Any]) -> None:
    """Let go of the pages of a memory-mapped array that were read; they are read again if needed.

    Else every file that was looked through counts as memory in use. Does nothing for others.
    """
    mapped = getattr(values, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def check_feature(feature: Feature, n_rows: int, where: object) -> None:
    """Validate shape, index range and finiteness of a feature.

    Args:
        feature: the feature.
        n_rows: the number of users or items it must describe.
        where: the file, for the message.

    Raises:
        DatasetError: one of them is wrong; the message names the row.
    """
    if feature.side not in get_args(Side) or feature.group not in get_args(Group):
        raise DatasetError(
            f"feature {feature.name!r} in {str(where)!r} has side {feature.side!r} and group "
            f"{feature.group!r}; expected one of {get_args(Side)} and {get_args(Group)}."
        )
    if feature.values.ndim != 2 or feature.dim == 0 or feature.n_rows != n_rows:
        raise DatasetError(
            f"feature {feature.name!r} in {str(where)!r} has shape {feature.values.shape} for "
            f"{feature.n_rows} rows; expected 2 dimensions and {n_rows} {feature.side}s."
        )
    if n_rows and not len(feature.values):
        raise DatasetError(
            f"feature {feature.name!r} in {str(where)!r} has no row: none of the {n_rows} "
            f"{feature.side}s is known; leave it out."
        )
    if (
        feature.index is not None
        and len(feature.index)
        and (int(feature.index.min()) < -1 or int(feature.index.max()) >= len(feature.values))
    ):
        raise DatasetError(
            f"the index of feature {feature.name!r} in {str(where)!r} points outside its "
            f"{len(feature.values)} rows; make the feature again."
        )
    for start in range(0, len(feature.values), _BLOCK_ROWS):
        finite = np.isfinite(feature.values[start : start + _BLOCK_ROWS]).all(axis=1)
        release(feature.values)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise DatasetError(
                f"feature {feature.name!r} in {str(where)!r} has NaN or infinite values in row "
                f"{row}; mend the input and make it again with `python -m llmrec_pl features "
                "--overwrite`."
            )


def deduplicate(
    values: NDArray[np.floating[Any]], missing: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64] | None]:
    """Store each distinct row once.

    Args:
        values: ``[n_rows, dim]``.
        missing: ``[n_rows]``, True where the row is unknown.

    Returns:
        The distinct rows in order of first appearance, and an index into them (-1 where
        missing), or None if all rows are distinct and none is missing.
    """
    known = np.ones(len(values), dtype=bool) if missing is None else ~missing
    rows = np.ascontiguousarray(values[known])
    view = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(view, return_index=True, return_inverse=True)
    if len(first) == len(values):
        return values, None
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    index = np.full(len(values), -1, dtype=np.int64)
    index[known] = rank[inverse.ravel()]
    return rows[first[order]], index


def write_feature(root: Path, feature: Feature) -> None:
    """Write a feature into a canonical folder and record it in ``dataset.json``.

    Each file is written beside its place and renamed. A crash between two renames is noticed on
    the next load, whose message says how to make the feature again.

    Raises:
        DatasetError: the feature does not fit the data set.
    """
    meta = read_meta(root)
    check_feature(feature, meta[f"n_{feature.side}s"], root / FEATURES)
    folder = root / FEATURES
    folder.mkdir(exist_ok=True)
    stem = f"{feature.side}_{feature.name}"
    arrays = {f"{stem}.npy": np.asarray(feature.values)}
    if feature.index is not None:
        arrays[f"{stem}.index.npy"] = feature.index
    hashes = []
    for file, array in arrays.items():
        temporary = folder / f"{file}.tmp"
        with temporary.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)
        temporary.replace(folder / file)
        hashes.append(sha256_file(folder / file))
    meta.setdefault("features", {})[feature.name] = {
        "side": feature.side,
        "group": feature.group,
        "files": list(arrays),
        "sha256": hashes,
        "rows": feature.n_rows,
        "distinct": len(feature.values),
        "missing": feature.n_missing,
        "dim": feature.dim,
        "dtype": str(feature.values.dtype),
        "info": dict(feature.info),
    }
    write_meta(root, meta)
