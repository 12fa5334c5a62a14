"""Runs an encoder over distinct inputs, group by group, and stores the result as a feature.

A killed run loses at most one group: finished groups lie in ``features/.partial`` under a hash
of encoder and inputs, and the next start with the same ones goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from filelock import FileLock

from llmrec_pl.data.dataset import read_meta
from llmrec_pl.data.features import FEATURES, Feature, deduplicate, write_feature
from llmrec_pl.errors import DatasetError
from llmrec_pl.progress import ProgressReport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from llmrec_pl.data.encoders import Encoder
    from llmrec_pl.data.feature_inputs import Inputs
    from llmrec_pl.data.features import Group, Side

T = TypeVar("T")
FloatType = Literal["float16", "float32"]

PARTIAL = ".partial"
GROUP_BATCHES = 8
"""Batches in a group, the unit that is stored and that a kill can lose."""


def run_hash(encoder: Encoder[T], inputs: Inputs[T]) -> str:
    """Hash what decides the vectors: the encoder, the inputs and how they are batched."""
    digest = hashlib.sha256()
    # padding makes a vector depend on its neighbours in the batch, if only in the last bits
    settings = [encoder.identity, encoder.batch_size, GROUP_BATCHES]
    digest.update(json.dumps(settings).encode())
    for key in inputs.keys:
        data = key.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def encode_inputs(
    encoder: Encoder[T], inputs: Inputs[T], root: Path, stem: str
) -> NDArray[np.float32]:
    """Encode each distinct input once, going on where an earlier run with equal inputs stopped.

    Args:
        encoder: prepared here on all inputs.
        inputs: the distinct inputs.
        root: the canonical folder; partial results go to ``features/.partial`` in it.
        stem: name of the feature's files, to keep runs of different features apart.

    Returns:
        ``[n_distinct, dim]``. The partial results stay until `store_feature` has succeeded.

    Raises:
        DatasetError: the encoder returned another shape, or NaN or infinite values.
    """
    folder = root / FEATURES / PARTIAL / f"{stem}-{run_hash(encoder, inputs)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    encoder.prepare(inputs.values)
    size = encoder.batch_size * GROUP_BATCHES
    parts = []
    title = f"encoding with {encoder.label}"
    with ProgressReport(title, len(inputs.values), "distinct inputs") as progress:
        for start in range(0, len(inputs.values), size):
            group = inputs.values[start : start + size]
            file = folder / f"{start:010d}.npy"
            part = _read_group(file, (len(group), encoder.dim))
            if part is None:
                part = np.asarray(encoder.encode(group), dtype=np.float32)
                _check_group(part, (len(group), encoder.dim), encoder.label, group)
                _write_group(file, part)
            parts.append(part)
            progress.advance(len(group))
    return np.concatenate(parts)


def _read_group(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return a finished group, or None if it is absent or was cut short by a power failure."""
    try:
        part: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return part if part.shape == shape and part.dtype == np.float32 else None


def _write_group(file: Path, part: NDArray[np.float32]) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        np.save(handle, part, allow_pickle=False)
    temporary.replace(file)


def _check_group(
    part: NDArray[np.float32], shape: tuple[int, int], label: str, group: list[T]
) -> None:
    if part.shape != shape:
        raise DatasetError(
            f"encoder {label!r} returned shape {part.shape} for {len(group)} inputs; expected "
            f"{shape}. Use another `--encoder`."
        )
    finite = np.isfinite(part).all(axis=1)
    if not finite.all():
        raise DatasetError(
            f"encoder {label!r} returned NaN or infinite values for "
            f"{str(group[int(np.argmin(finite))])!r}; mend that input or use another `--encoder`."
        )


def cast(values: NDArray[np.floating[Any]], dtype: FloatType) -> NDArray[np.floating[Any]]:
    """Convert to the stored type.

    Raises:
        DatasetError: a value is too large for float16.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest > float(np.finfo(dtype).max):
        raise DatasetError(
            f"the largest value is {largest:.3g}, more than {dtype} can hold "
            f"({float(np.finfo(dtype).max):.3g}); use `--dtype float32` or scale the matrix."
        )
    return values.astype(dtype)


def feature_of_inputs(
    inputs: Inputs[T],
    vectors: NDArray[np.float32],
    *,
    name: str,
    side: Side,
    group: Group,
    dtype: FloatType = "float32",
    info: Mapping[str, Any] | None = None,
) -> Feature:
    """Join distinct vectors and the index over rows into a feature.

    Args:
        inputs: the distinct inputs and the index.
        vectors: ``[n_distinct, dim]``.
        name: name of the feature.
        side: "user" or "item".
        group: "modality", "profile" or "attribute".
        dtype: type to store.
        info: provenance.
    """
    one_each = np.array_equal(inputs.index, np.arange(len(inputs.values)))
    index = None if one_each else inputs.index
    return Feature(name, side, group, cast(vectors, dtype), index, info=info or {})


def feature_of_rows(
    values: NDArray[np.floating[Any]],
    missing: NDArray[np.bool_],
    *,
    name: str,
    side: Side,
    group: Group,
    dtype: FloatType = "float32",
    info: Mapping[str, Any] | None = None,
) -> Feature:
    """Make a feature of a ready matrix, storing each distinct row once.

    Args:
        values: ``[n_rows, dim]``.
        missing: ``[n_rows]``, True where a row is unknown.
        name: name of the feature.
        side: "user" or "item".
        group: "modality", "profile" or "attribute".
        dtype: type to store.
        info: provenance.
    """
    rows, index = deduplicate(cast(values, dtype), missing)
    return Feature(name, side, group, rows, index, info=info or {})


def check_name_free(root: Path, name: str, *, overwrite: bool) -> None:
    """Refuse to replace a feature unasked; to be called before the work, not after.

    Raises:
        DatasetError: the data set has a feature of that name.
    """
    if name in read_meta(root).get("features", {}) and not overwrite:
        raise DatasetError(
            f"the data set {str(root)!r} already has a feature {name!r}; replace it with "
            "`--overwrite` or choose another `--name`."
        )


def store_feature(root: Path, feature: Feature, *, overwrite: bool = False) -> None:
    """Write a feature into a canonical folder, and remove what it replaces.

    Two runs may end at the same moment: a lock keeps either from losing the other's entry in
    ``dataset.json``.

    Raises:
        DatasetError: the name is taken, or the feature does not fit the data set.
    """
    folder = root / FEATURES
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        check_name_free(root, feature.name, overwrite=overwrite)
        old = read_meta(root).get("features", {}).get(feature.name, {})
        write_feature(root, feature)
        kept = read_meta(root)["features"][feature.name]["files"]
        for file in set(old.get("files", [])) - set(kept):
            (folder / file).unlink(missing_ok=True)
    for finished in (folder / PARTIAL).glob(f"{feature.side}_{feature.name}-*"):
        shutil.rmtree(finished, ignore_errors=True)
    if (folder / PARTIAL).is_dir() and not any((folder / PARTIAL).iterdir()):
        (folder / PARTIAL).rmdir()
