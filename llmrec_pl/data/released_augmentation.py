"""Reads the augmentation that the LLMRec authors released as pickles, by original ids.

``augmented_sample_dict`` is ``{user: {0: positive, 1: negative}}``;
``augmented_user_init_embedding`` is ``{user: vector}`` or an array of rows;
``augmented_atttribute_embedding_dict`` (so spelled) is ``{attribute: {item: vector}}``, or an
array of rows each. The pickles are opened by the restricted unpickler. Row i belongs to original
id i, so a data set with filters gets the rows of the users and items it kept.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmrec_pl.data.augmentation_edges import invalid_edges, raise_for_edges
from llmrec_pl.data.dataset import sha256_file
from llmrec_pl.data.features import Feature, deduplicate
from llmrec_pl.data.unpickle import load_pickle
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Group, Side

Invalid = Literal["error", "drop"]

PAIRS_FILES = ("augmented_sample_dict",)
USER_FILES = ("augmented_user_init_embedding", "augmented_user_init_embedding_final")
ITEM_FILES = ("augmented_atttribute_embedding_dict", "augmented_attribute_embedding_dict")
_SUFFIXES = ("", ".pkl", ".pickle")
_DROP = "leave such entries out with `--invalid drop`, which counts them"


@dataclasses.dataclass
class ReleasedAugmentation:
    """What the released folder holds for a data set.

    Attributes:
        edges: dense ids of user, positive and negative item, int64 ``[3, n]``.
        features: the user profile and the item attributes.
        dropped: pairs and vectors left out, by reason.
        outside: rows of each field that belong to no user or item of the data set.
        sources: sha256 of each file read.
    """

    edges: NDArray[np.int64]
    features: list[Feature]
    dropped: dict[str, int]
    outside: dict[str, int]
    sources: dict[str, str]


def read_released_augmentation(
    folder: Path, dataset: InteractionDataset, invalid: Invalid = "error"
) -> ReleasedAugmentation:
    """Read the three pickles, as far as they are there.

    Args:
        folder: holds them.
        dataset: the data set whose ids they use.
        invalid: stop at entries that cannot be right, or leave them out and count them.

    Raises:
        AugmentationError: no such file, a shape that is none of the known ones, or entries that
            cannot be right.
        DatasetError: a pickle is damaged or names what is not allowed.
    """
    found = {names[0]: _find(folder, names) for names in (PAIRS_FILES, USER_FILES, ITEM_FILES)}
    pairs, users, items = found.values()
    if pairs is None and users is None and items is None:
        raise AugmentationError(
            f"{str(folder)!r} holds none of {list(found)}; give the folder of the released "
            "augmentation."
        )
    edges, dropped = np.zeros((3, 0), dtype=np.int64), Counter[str]()
    if pairs is not None:
        edges = _read_pairs(pairs, dataset, invalid, dropped)
    features, outside = [], {}
    fields: list[tuple[Side, str, Path, Any]] = []
    if users is not None:
        fields.append(("user", "profile", users, load_pickle(users)))
    if items is not None:
        content = load_pickle(items)
        if not isinstance(content, Mapping) or not content:
            raise AugmentationError(
                f"{str(items)!r} holds a {type(content).__name__}; expected a table of "
                "attributes, such as `{'director': {item: vector}}`."
            )
        fields += [("item", str(name), items, rows) for name, rows in content.items()]
    for side, name, file, rows in fields:
        feature, n_outside = _field(side, name, file, rows, dataset, invalid, dropped)
        features.append(feature)
        outside[feature.name] = n_outside
    sources = {path.name: sha256_file(path) for path in found.values() if path is not None}
    return ReleasedAugmentation(edges, features, dict(dropped), outside, sources)


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        for suffix in _SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def _read_pairs(
    file: Path, dataset: InteractionDataset, invalid: Invalid, dropped: Counter[str]
) -> NDArray[np.int64]:
    content = load_pickle(file)
    if not isinstance(content, Mapping):
        raise AugmentationError(
            f"{str(file)!r} holds a {type(content).__name__}; expected `{{user: {{0: positive, "
            "1: negative}}}`."
        )
    users = {str(id_): i for i, id_ in enumerate(dataset.user_ids.tolist())}
    items = {str(id_): i for i, id_ in enumerate(dataset.item_ids.tolist())}
    bad: dict[str, list[str]] = {}
    rows = []
    for user, entry in content.items():
        pair = _pair(entry)
        if pair is None:
            bad.setdefault("malformed", []).append(f"user {user!r}: {entry!r}")
        elif _id(user) not in users:
            bad.setdefault("unknown_user", []).append(f"user {user!r}")
        elif outside := [item for item in pair if item not in items]:
            bad.setdefault("unknown_item", []).append(f"user {user!r}: item {outside[0]!r}")
        else:
            rows.append((users[_id(user)], items[pair[0]], items[pair[1]]))
    if bad and invalid == "error":
        parts = [
            f"{len(cases)} of {len(content)} {reason.replace('_', ' ')} (first: {cases[0]})"
            for reason, cases in bad.items()
        ]
        raise AugmentationError(
            f"pairs in {str(file)!r} do not fit {dataset.name!r}: {'; '.join(parts)}. "
            f"Check that it is the right data set, or {_DROP}."
        )
    dropped.update({reason: len(cases) for reason, cases in bad.items()})
    edges = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    found = invalid_edges(edges, dataset)
    if invalid == "error":
        raise_for_edges(found, edges, dataset, file)
    keep = np.ones(edges.shape[1], dtype=bool)
    for reason, mask in found.items():
        dropped[reason] += int(mask.sum())
        keep &= ~mask
    return edges[:, keep]


def _id(value: object) -> str:
    """Write an id as the data set does; a numpy or whole float number as an integer."""
    if isinstance(value, (int, float, np.number)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _pair(entry: object) -> tuple[str, str] | None:
    if isinstance(entry, Mapping):
        entry = [entry.get(0, entry.get("0")), entry.get(1, entry.get("1"))]
    if not isinstance(entry, (list, tuple, np.ndarray)) or len(entry) != 2:
        return None
    pos, neg = entry
    return None if pos is None or neg is None else (_id(pos), _id(neg))


def _field(
    side: Side,
    name: str,
    file: Path,
    rows: Any,  # noqa: ANN401 - whatever the pickle held
    dataset: InteractionDataset,
    invalid: Invalid,
    dropped: Counter[str],
) -> tuple[Feature, int]:
    """Bring the vectors of one field into the order of the data set."""
    if isinstance(rows, Mapping):
        entries: Iterable[tuple[object, Any]] = rows.items()
    elif isinstance(rows, Iterable):
        entries = enumerate(rows)
    else:
        raise AugmentationError(
            f"field {name!r} in {str(file)!r} is a {type(rows).__name__}; expected vectors by id, "
            "or an array with one row an id."
        )
    ids = dataset.user_ids if side == "user" else dataset.item_ids
    position = {str(id_): i for i, id_ in enumerate(ids.tolist())}
    known: dict[int, NDArray[np.float32]] = {}
    bad, outside, dim = [], 0, 0
    for id_, entry in entries:
        place = position.get(_id(id_))
        if place is None:
            outside += 1
            continue
        vector = _vector(entry)
        if vector is None or (dim and len(vector) != dim):
            bad.append(id_)
            continue
        dim = dim or len(vector)
        known[place] = vector
    if bad and invalid == "error":
        raise AugmentationError(
            f"field {name!r} in {str(file)!r} has {len(bad)} entries that are no finite vectors of "
            f"width {dim}, first for {side} {bad[0]!r}. Mend the file, or {_DROP} (the {side}s "
            "count as unknown)."
        )
    if bad:
        dropped[f"{side}_{name} vectors"] += len(bad)
    if not known:
        raise AugmentationError(
            f"field {name!r} in {str(file)!r} has no vector for any {side} of {dataset.name!r}; "
            f"its ids should be like {str(ids[0])!r}. Check that it is the right data set."
        )
    values = np.zeros((len(ids), dim), dtype=np.float32)
    missing = np.ones(len(ids), dtype=bool)
    for place, vector in known.items():
        values[place], missing[place] = vector, False
    distinct, index = deduplicate(values, missing)
    group: Group = "profile" if side == "user" else "attribute"
    return Feature(f"{side}_{name}", side, group, distinct, index), outside


def _vector(entry: object) -> NDArray[np.float32] | None:
    try:
        vector = np.asarray(entry, dtype=np.float32).ravel()
    except (TypeError, ValueError):
        return None
    return vector if vector.size and bool(np.isfinite(vector).all()) else None
