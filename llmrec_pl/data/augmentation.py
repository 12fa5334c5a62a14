"""Reads, validates and writes an exported augmentation: edges, features and a manifest.

The format is described in ``docs/augmentation-format.md``. Knows no prompts and no network;
what a model answered has been parsed before it comes here. Nothing is imputed: what is unknown
stays masked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import save

from llmrec_pl.data.augmentation_edges import (
    COLUMNS,
    check_edge_arrays,
    invalid_edges,
    positives_in_train,
    raise_for_edges,
)
from llmrec_pl.data.augmentation_fields import (
    EMBEDDINGS,
    PROVENANCE,
    field_blobs,
    field_entry,
    full_name,
    read_fields,
    read_tensors,
)
from llmrec_pl.data.dataset import sha256_file
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Feature

AUGMENTATION_FORMAT = 1
MANIFEST, PAIRS = "manifest.json", "pairs.safetensors"

_WRITTEN = ("format", "dataset", "dataset_fp", "fields", "files", "content_id")
_AGAIN = "Export the augmentation again."


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation that fits a data set.

    Attributes:
        path: the folder.
        manifest: the content of ``manifest.json``.
        edges: dense ids of user, positive and negative item, int64 ``[3, n]``.
        features: "profile" features of users and "attribute" features of items.
        content_id: sha256 over the names and hashes of the data files.
        dropped: edges left out on loading, by reason; empty unless asked for.
    """

    path: Path
    manifest: dict[str, Any]
    edges: NDArray[np.int64]
    features: list[Feature]
    content_id: str
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)


def content_id_of(files: Mapping[str, str]) -> str:
    """Return the sha256 over sorted lines ``<file> NUL <sha256> LF``."""
    lines = "".join(f"{file}\0{sha}\n" for file, sha in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(path: Path | str, *, verify: bool = True) -> dict[str, Any]:
    """Read ``manifest.json`` of an exported augmentation, and check the files it lists.

    Args:
        path: the folder.
        verify: compare the hash of each file, and the content id.

    Raises:
        AugmentationError: no such folder, not this format, a key is missing, or a file is
            missing or damaged.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise AugmentationError(
            f"no augmentation at {str(path)!r} (`{MANIFEST}` is missing). Make one with `python "
            "-m augment export` or `python -m llmrec_pl augmentation convert`."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AugmentationError(f"{str(file)!r} is not valid JSON ({error}). {_AGAIN}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else manifest
    if not isinstance(manifest, dict) or found != AUGMENTATION_FORMAT:
        raise AugmentationError(
            f"{str(file)!r} has format {found!r}, this version reads {AUGMENTATION_FORMAT}. "
            + _AGAIN
        )
    missing = [key for key in (*_WRITTEN, *PROVENANCE, "counts") if key not in manifest]
    if missing:
        raise AugmentationError(f"{str(file)!r} lacks {missing}. {_AGAIN}")
    _check_files(Path(path), manifest, verify=verify)
    return manifest


def _check_files(path: Path, manifest: Mapping[str, Any], *, verify: bool) -> None:
    files = manifest["files"]
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise AugmentationError(
            f"`files` in {str(path / MANIFEST)!r} must map plain file names to hashes "
            f"(got {files!r}). {_AGAIN}"
        )
    for name, expected in files.items():
        if not (path / name).is_file():
            raise AugmentationError(f"augmentation file {str(path / name)!r} is missing. {_AGAIN}")
        if verify and (found := sha256_file(path / name)) != expected:
            raise AugmentationError(
                f"augmentation file {str(path / name)!r} is damaged or edited: sha256 is "
                f"{found[:12]}…, `{MANIFEST}` says {str(expected)[:12]}…. {_AGAIN}"
            )
    if verify and (found := content_id_of(files)) != manifest["content_id"]:
        raise AugmentationError(
            f"`content_id` in {str(path / MANIFEST)!r} is {str(manifest['content_id'])[:12]}…, "
            f"its files give {found[:12]}…; the manifest was edited. {_AGAIN}"
        )


def load_augmentation(
    path: Path | str,
    dataset: InteractionDataset,
    invalid: Literal["error", "drop"] = "error",
    verify: bool = True,
) -> Augmentation:
    """Read an exported augmentation and hold it against a data set.

    Args:
        path: the folder.
        dataset: the data set it must have been made for.
        invalid: what to do with edges that cannot be right: stop, or leave them out and count.
        verify: compare file hashes.

    Raises:
        AugmentationError: made for other data, damaged, edges that cannot be right, or a
            field with wrong shape, NaN or infinite values, or no known row.
    """
    path = Path(path)
    manifest = read_manifest(path, verify=verify)
    if manifest["dataset_fp"] != dataset.fingerprint:
        raise AugmentationError(
            f"augmentation {str(path)!r} was made for data set {manifest['dataset']!r} with "
            f"fingerprint {str(manifest['dataset_fp'])[:12]}…, but {dataset.name!r} has "
            f"{dataset.fingerprint[:12]}…. Dense ids and splits differ; export it again for this "
            "data set, or train on the one it was made for."
        )
    pairs = read_tensors(path / PAIRS) if PAIRS in manifest["files"] else {}
    edges = check_edge_arrays(pairs, path / PAIRS) if pairs else np.zeros((3, 0), dtype=np.int64)
    edges, dropped = _sift(edges, dataset, path / PAIRS, invalid)
    features = []
    for side, name in EMBEDDINGS.items():
        if name in manifest["files"]:
            n_rows = dataset.n_users if side == "user" else dataset.n_items
            features += read_fields(path / name, side, n_rows, manifest)
    return Augmentation(path, manifest, edges, features, manifest["content_id"], dropped)


def _sift(
    edges: NDArray[np.int64],
    dataset: InteractionDataset,
    where: Path,
    invalid: Literal["error", "drop"],
) -> tuple[NDArray[np.int64], dict[str, int]]:
    found = invalid_edges(edges, dataset)
    if not found or invalid == "error":
        raise_for_edges(found, edges, dataset, where)
        return edges, {}
    bad = np.logical_or.reduce(list(found.values()))
    return edges[:, ~bad], {reason: int(rows.sum()) for reason, rows in found.items()}


def write_augmentation(
    path: Path | str,
    dataset: InteractionDataset,
    *,
    edges: NDArray[Any],
    features: Sequence[Feature],
    manifest: Mapping[str, Any],
    attachments: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> Augmentation:
    """Write an augmentation and read it back.

    Equal content gives equal bytes: edges are sorted, files carry no times. A crash leaves
    what was there before, for the new folder is made beside it and renamed.

    Args:
        path: the folder to make.
        dataset: the data set it is for.
        edges: dense ids of user, positive and negative item, ``[3, n]``; n may be 0.
        features: one a field, of users or items, named ``<field>`` or ``<side>_<field>``.
        manifest: provenance: `provider`, `model` and `prompt_set`, and what else is worth
            keeping (`store`, `specs`, `cost`, `counts`); plain JSON values.
        attachments: further files to copy in under the given names, such as the profiles'
            texts; hashed like the rest.
        overwrite: replace an augmentation at `path`.

    Raises:
        AugmentationError: the place is taken, provenance is missing or names are reserved, or
            the content would not load.
    """
    path = Path(path)
    _check_place(path, manifest, overwrite=overwrite)
    triples = np.ascontiguousarray(np.asarray(edges, dtype=np.int64).reshape(3, -1))
    triples = triples[:, np.lexsort(triples[::-1])]
    raise_for_edges(invalid_edges(triples, dataset), triples, dataset, path / PAIRS)
    blobs = {PAIRS: save({k: np.ascontiguousarray(triples[i]) for i, k in enumerate(COLUMNS)})}
    blobs |= field_blobs(features, dataset, path)
    stated = {
        **manifest,
        "format": AUGMENTATION_FORMAT,
        "dataset": dataset.name,
        "dataset_fp": dataset.fingerprint,
        "counts": {**manifest.get("counts", {}), **_counts(triples, dataset)},
        "fields": {full_name(f): field_entry(f) for f in features},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _fill(temporary, blobs, attachments or {}, stated)
        load_augmentation(temporary, dataset)  # what cannot be read must not replace what can
        _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_augmentation(path, dataset, verify=False)


def _fill(
    folder: Path,
    blobs: Mapping[str, bytes],
    attachments: Mapping[str, Path],
    stated: Mapping[str, Any],
) -> None:
    for name, blob in blobs.items():
        _write(folder / name, blob)
    for name, source in attachments.items():
        shutil.copyfile(source, folder / Path(name).name)
    files = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    full = {**stated, "files": files, "content_id": content_id_of(files)}
    text = json.dumps(full, indent=1, sort_keys=True, ensure_ascii=False)
    _write(folder / MANIFEST, f"{text}\n".encode())


def _check_place(path: Path, manifest: Mapping[str, Any], *, overwrite: bool) -> None:
    lacking = [key for key in PROVENANCE if not manifest.get(key)]
    reserved = [key for key in _WRITTEN if key in manifest]
    if lacking or reserved:
        raise AugmentationError(
            f"the manifest for {str(path)!r} must state {list(PROVENANCE)} (lacking {lacking}) "
            f"and leave {list(_WRITTEN)} to the writer (got {reserved})."
        )
    if not path.exists():
        return
    if not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise AugmentationError(
            f"{str(path)!r} exists and is no augmentation; choose another place."
        )
    if not overwrite and (path / MANIFEST).is_file():
        raise AugmentationError(
            f"{str(path)!r} already holds an augmentation; replace it with `--overwrite` or "
            "choose another place."
        )


def _counts(edges: NDArray[np.int64], dataset: InteractionDataset) -> dict[str, int]:
    return {
        "edges": edges.shape[1],
        "users_with_edges": len(np.unique(edges[0])),
        "positives_in_train": int(positives_in_train(edges, dataset).sum()),
    }


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)
