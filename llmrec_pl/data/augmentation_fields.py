"""The vector fields of an augmentation: safetensors to features and back.

Each field is ``<field>`` ``[n, d]`` with ``<field>.mask`` (True where known), or distinct rows
with ``<field>.index`` (-1 where unknown).
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from llmrec_pl.data.features import Feature, check_feature, deduplicate
from llmrec_pl.errors import AugmentationError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Group, Side

EMBEDDINGS: dict[Side, str] = {"user": "user_embed.safetensors", "item": "item_embed.safetensors"}
GROUPS: dict[Side, Group] = {"user": "profile", "item": "attribute"}
PROVENANCE = ("provider", "model", "prompt_set")
"""Keys of the manifest that whoever exports must state."""

_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_AGAIN = "Export the augmentation again."


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Read all tensors of a safetensors file.

    Raises:
        AugmentationError: the file is damaged or holds a type that numpy lacks.
    """
    try:
        tensors: dict[str, NDArray[Any]] = load_file(file)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise AugmentationError(f"cannot read {str(file)!r}: {error}. {_AGAIN}") from error
    return tensors


def read_fields(file: Path, side: Side, n_rows: int, manifest: Mapping[str, Any]) -> list[Feature]:
    """Read the fields of one side as features named ``<side>_<field>``, ordered by name.

    Args:
        file: the safetensors file.
        side: "user" or "item".
        n_rows: number of users or items of the data set.
        manifest: gives provenance and hashes.

    Raises:
        AugmentationError: a tensor fits no field, or a field has the wrong type or shape, NaN
            or infinite values, or no known row.
    """
    tensors = read_tensors(file)
    fields = sorted(name for name in tensors if "." not in name)
    for name in tensors:
        field, _, suffix = name.partition(".")
        if (
            field not in tensors
            or suffix not in ("", "mask", "index")
            or not _FIELD.fullmatch(field)
        ):
            raise AugmentationError(
                f"tensor {name!r} in {str(file)!r} fits no field; expected `<field>`, "
                f"`<field>.mask` and `<field>.index`, fields here {fields}. {_AGAIN}"
            )
    info = {key: manifest[key] for key in (*PROVENANCE, "content_id")}
    features = []
    for field in fields:
        values, index = _known_rows(tensors, field, file)
        sha = str(manifest["files"][file.name])
        feature = Feature(f"{side}_{field}", side, GROUPS[side], values, index, sha, info)
        _check(feature, n_rows, file)
        features.append(feature)
    return features


def _known_rows(
    tensors: Mapping[str, NDArray[Any]], field: str, file: Path
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64] | None]:
    values, mask = tensors[field], tensors.get(f"{field}.mask")
    index = tensors.get(f"{field}.index")
    wrong = ""
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32):
        wrong = f"is {values.dtype} {list(values.shape)}; expected float16 or float32 [n, d]"
    elif mask is not None and index is not None:
        wrong = "has both a mask and an index; only one can say what is known"
    elif mask is not None and (mask.dtype != np.bool_ or mask.shape != (len(values),)):
        wrong = f"has a mask {mask.dtype} {list(mask.shape)}; expected bool [{len(values)}]"
    elif index is not None and (index.dtype != np.int64 or index.ndim != 1):
        wrong = f"has an index {index.dtype} {list(index.shape)}; expected int64 [n]"
    if wrong:
        raise AugmentationError(f"field {field!r} in {str(file)!r} {wrong}. {_AGAIN}")
    if index is not None:
        return values, index
    return deduplicate(values, None if mask is None else ~mask)


def _check(feature: Feature, n_rows: int, file: Path) -> None:
    finite = np.isfinite(feature.values)
    if feature.values.ndim == 2 and not finite.all():
        bad = int(np.argmin(finite.all(axis=1)))
        row = bad if feature.index is None else int(np.argmax(feature.index == bad))
        raise AugmentationError(
            f"field {feature.name!r} in {str(file)!r} has NaN or infinite values for "
            f"{feature.side} {row}, which is marked as known. Mask what is unknown and export "
            "the augmentation again."
        )
    try:
        check_feature(feature, n_rows, file)
    except DatasetError as error:
        raise AugmentationError(f"{error} {_AGAIN}") from error
    if n_rows and feature.n_missing == n_rows:
        raise AugmentationError(
            f"field {feature.name!r} in {str(file)!r} is unknown for all {n_rows} "
            f"{feature.side}s; leave it out of the export."
        )


def full_name(feature: Feature) -> str:
    """Return ``<side>_<field>``, whether or not the name has its side already."""
    return f"{feature.side}_{feature.name.removeprefix(f'{feature.side}_')}"


def field_entry(feature: Feature) -> dict[str, Any]:
    """Return what the manifest says of a field."""
    return {
        "side": feature.side,
        "rows": feature.n_rows,
        "known": feature.n_rows - feature.n_missing,
        "distinct": len(feature.values),
        "dim": feature.dim,
        "dtype": str(feature.values.dtype),
    }


def field_blobs(
    features: Sequence[Feature], dataset: InteractionDataset, path: Path
) -> dict[str, bytes]:
    """Serialise fields to the bytes of one file a side.

    Args:
        features: one a field.
        dataset: the data set they are for.
        path: the folder to be, for messages.

    Raises:
        AugmentationError: a name is given twice or is none, or a field does not fit.
    """
    tensors: dict[Side, dict[str, NDArray[Any]]] = {"user": {}, "item": {}}
    for feature in features:
        field = full_name(feature).removeprefix(f"{feature.side}_")
        if not _FIELD.fullmatch(field) or field in tensors[feature.side]:
            raise AugmentationError(
                f"field {field!r} for {str(path)!r} is given twice or is no name: letters, "
                "digits and underscores, a letter first."
            )
        n_rows = dataset.n_users if feature.side == "user" else dataset.n_items
        named = dataclasses.replace(feature, group=GROUPS[feature.side])
        _check(named, n_rows, path / EMBEDDINGS[feature.side])
        own = tensors[feature.side]
        own[field] = np.ascontiguousarray(feature.values)
        if feature.index is None:
            own[f"{field}.mask"] = np.ones(len(feature.values), dtype=bool)
        else:
            own[f"{field}.index"] = np.ascontiguousarray(feature.index, dtype=np.int64)
    return {EMBEDDINGS[side]: save(own) for side, own in tensors.items() if own}
