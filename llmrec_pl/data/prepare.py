"""From raw interactions to the canonical folder: filters, split, dense ids, one rename.

Knows no raw format (``sources``) and no command line (``commands.prepare``).
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from llmrec_pl.data import splits
from llmrec_pl.data.dataset import (
    FORMAT_VERSION,
    INTERACTIONS,
    ITEMS,
    META,
    SPLITS,
    USERS,
    content_fingerprint,
    edges_to_csr,
    read_meta,
    sha256_file,
    write_meta,
)
from llmrec_pl.data.features import Feature, Group, Side, deduplicate, write_feature
from llmrec_pl.data.protocol import Protocol
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.data.sources.base import RawDataset, RawFeature


def prepare_dataset(
    raw: RawDataset,
    out: Path,
    protocol: Protocol,
    *,
    name: str | None = None,
    overwrite: bool = False,
    allow_empty_users: bool = False,
) -> dict[str, Any]:
    """Write a canonical data set folder in one step.

    Args:
        raw: what a reader returned.
        out: the folder to make.
        protocol: filters, split and seed.
        name: name of the data set; `raw.name` by default.
        overwrite: replace a data set that is already there.
        allow_empty_users: accept users of a fixed catalogue that have no interaction at all.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DatasetError: `out` exists, a filter or split cannot work with these data, or nothing is
            left in train or test.
    """
    check_out(out, overwrite=overwrite)
    kept, counts = apply_filters(raw, protocol)
    frame, carved = apply_split(kept, raw, protocol)
    users = _table(raw.users, "user", kept, fixed=raw.fixed_catalogue)
    items = _table(raw.items, "item", kept, fixed=raw.fixed_catalogue)
    edges = _dense(frame, users, items)
    _check_split(edges, users, items, raw, allow_empty_users=allow_empty_users)
    counts |= _count(edges, users, items, raw)
    described = protocol.record(carved)
    meta: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "name": name or raw.name,
        "n_users": users.height,
        "n_items": items.height,
        "protocol": described,
        "counts": counts,
        "provenance": raw.provenance,
        "files": {},
        "fingerprint": _fingerprint(described, edges, users, items),
        "features": {},
    }
    _write(out, meta, edges, users, items, raw)
    return read_meta(out)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that a folder may be written; called early, before long work.

    Raises:
        DatasetError: it exists and may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / META).is_file():
        raise DatasetError(
            f"{str(out)!r} exists and is no data set folder (it has no `{META}`), so it is not "
            "replaced; choose another folder with `--out`."
        )
    if not overwrite:
        raise DatasetError(
            f"a data set already lies in {str(out)!r}; choose another folder with `--out`, or "
            "replace it with `--overwrite`."
        )


def _write(
    out: Path,
    meta: dict[str, Any],
    edges: pl.DataFrame,
    users: pl.DataFrame,
    items: pl.DataFrame,
    raw: RawDataset,
) -> None:
    """Write everything beside `out`, then move it there; a failure leaves no trace."""
    source = str(raw.provenance.get("source", raw.name))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        edges.write_parquet(temporary / INTERACTIONS)
        users.drop("_row").write_parquet(temporary / USERS)
        items.drop("_row").write_parquet(temporary / ITEMS)
        meta["files"] = {f: sha256_file(temporary / f) for f in (INTERACTIONS, USERS, ITEMS)}
        write_meta(temporary, meta)
        for feature in raw.features:
            table = users if feature.side == "user" else items
            write_feature(temporary, _feature(feature, table["_row"], source))
        _move_into_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, out: Path) -> None:
    """Rename the finished folder to `out`; an old one is moved away first and then deleted."""
    if not out.exists():
        temporary.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def apply_filters(raw: RawDataset, protocol: Protocol) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Run the filters in order and count what each removes.

    Returns:
        The rows that stay, and ``{"raw": n, "removed": {filter: n}}``.

    Raises:
        DatasetError: a filter cannot work, or leaves nothing.
    """
    frame = raw.interactions
    removed: dict[str, int] = {}

    def keep(name: str, kept: pl.DataFrame) -> None:
        nonlocal frame
        removed[name] = frame.height - kept.height
        frame = kept

    n_raw = frame.height
    merged = splits.merge_duplicates(frame)
    if "split" in frame.columns:
        once = frame.unique(["user_id", "item_id", "split"]).height
        removed["repeated pairs"] = frame.height - once
        removed["in an earlier split"] = once - merged.height
        frame = merged
    else:
        keep("repeated pairs", merged)
    if protocol.min_rating is not None:
        keep(
            f"rating below {protocol.min_rating:g}",
            splits.filter_rating(frame, protocol.min_rating),
        )
    if protocol.require_text is not None:
        kept = splits.filter_text(frame, raw.items, protocol.require_text)
        keep(f"items without {protocol.require_text}", kept)
    if protocol.max_per_user is not None:
        kept = splits.cap_per_user(frame, protocol.max_per_user, protocol.seed)
        keep(f"beyond {protocol.max_per_user} a user", kept)
    if protocol.k_core_users > 1 or protocol.k_core_items > 1:
        kept = splits.k_core(frame, protocol.k_core_users, protocol.k_core_items)
        keep(f"{protocol.k_core_users}/{protocol.k_core_items}-core", kept)
    if not frame.height:
        raise DatasetError(
            f"nothing is left of {n_raw} raw interactions of {raw.name!r}; removed: {removed}. "
            "Loosen the filters (`--min-rating`, `--k-core`, `--require-text`)."
        )
    return frame, {"raw": n_raw, "removed": removed}


def apply_split(
    frame: pl.DataFrame, raw: RawDataset, protocol: Protocol
) -> tuple[pl.DataFrame, list[str]]:
    """Add the column ``split``.

    Returns:
        The rows, and which splits were carved out of the given train.

    Raises:
        DatasetError: the raw data bring no split, or no timestamps where they are needed.
    """
    if not protocol.cold_items:
        return _split(frame, raw, protocol)
    cold = splits.hold_out_items(frame, protocol.cold_items, protocol.ratios, protocol.seed)
    warm, carved = _split(frame.join(cold, on="item_id", how="anti"), raw, protocol)
    return pl.concat([warm, cold.select(warm.columns)]), carved


def _split(
    frame: pl.DataFrame, raw: RawDataset, protocol: Protocol
) -> tuple[pl.DataFrame, list[str]]:
    if protocol.split == "random":
        return splits.split_random(frame, protocol.ratios, protocol.seed), []
    if protocol.split == "leave-last-out":
        return splits.split_last_out(frame, protocol.seed), []
    if protocol.split == "time":
        return splits.split_time(frame, protocol.ratios), []
    if "split" not in frame.columns:
        raise DatasetError(
            f"the raw data of {raw.name!r} bring no split; choose `--split random`, "
            "`leave-last-out` or `time`."
        )
    carved = [s for s in ("val", "test") if s not in raw.given_splits]
    if not carved:
        return frame, []
    val = protocol.ratios[1] if "val" in carved else 0.0
    test = protocol.ratios[2] if "test" in carved else 0.0
    return splits.carve(frame, val, test, protocol.seed), carved


def sort_ids(ids: pl.Series) -> pl.Series:
    """Sort original ids: whole numbers by value, then the rest as text."""
    number = ids.cast(pl.Int64, strict=False)
    return pl.DataFrame({"id": ids, "n": number}).sort("n", "id", nulls_last=True)["id"]


def _table(
    raw: pl.DataFrame | None, side: Side, kept: pl.DataFrame, *, fixed: bool
) -> pl.DataFrame:
    """Number users or items; ``_row`` keeps the row of the raw table, null where it has none."""
    column = f"{side}_id"
    if raw is not None and raw[column].is_duplicated().any():
        repeated = raw.filter(raw[column].is_duplicated())[column][0]
        raise DatasetError(
            f"the {side} table has {column} {repeated!r} twice; remove one of the rows."
        )
    if fixed and raw is not None:
        table = raw
    else:
        table = sort_ids(kept[column].unique()).alias(column).to_frame()
    rows = table.select(column) if raw is None else raw.select(column)
    table = table.select(column).join(
        rows.with_row_index("_row"), on=column, how="left", maintain_order="left"
    )
    if raw is not None:
        texts = raw.drop(side, strict=False)
        table = table.join(texts, on=column, how="left", maintain_order="left")
    return table.with_row_index(side).with_columns(pl.col(side).cast(pl.Int32))


def _dense(frame: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Replace original ids by dense ones and sort by user, then item."""
    for table, side in ((users, "user"), (items, "item")):
        frame = frame.join(table.select(side, f"{side}_id"), on=f"{side}_id", how="left")
        unknown = frame.filter(pl.col(side).is_null())
        if unknown.height:
            raise DatasetError(
                f"interactions name {side}_id {unknown[f'{side}_id'][0]!r}, which is not in the "
                f"fixed {side} table of {table.height} rows; correct one of them."
            )
    extra = [c for c in ("rating", "timestamp") if c in frame.columns]
    return frame.select("user", "item", *extra, "split").sort("user", "item")


def _check_split(
    edges: pl.DataFrame,
    users: pl.DataFrame,
    items: pl.DataFrame,
    raw: RawDataset,
    *,
    allow_empty_users: bool,
) -> None:
    sizes = dict(edges["split"].value_counts().iter_rows())
    for split in ("train", "test"):
        if not sizes.get(split):
            raise DatasetError(
                f"the split leaves no {split} interactions of {edges.height} for {raw.name!r}; "
                "loosen the filters, or change `--split` or `--ratios`."
            )
    empty = np.setdiff1d(users["user"].to_numpy(), edges["user"].to_numpy())
    if len(empty) and not allow_empty_users:
        first = users["user_id"][int(empty[0])]
        raise DatasetError(
            f"{len(empty)} of {users.height} users of the fixed catalogue have no interaction, "
            f"the first is {first!r}; loosen the filters, remove these users from the raw data, or "
            "keep them with `--allow-empty-users`."
        )


def _count(
    edges: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, raw: RawDataset
) -> dict[str, Any]:
    """Count what a reader of the result wants to know."""
    sizes = dict(edges["split"].value_counts().iter_rows())
    train = edges.filter(pl.col("split") == "train")
    counts: dict[str, Any] = {"splits": {s: int(sizes.get(s, 0)) for s in SPLITS}}
    for side in ("user", "item"):
        counts[f"{side}s_by_split"] = {
            split: edges.filter(pl.col("split") == split)[side].n_unique() for split in SPLITS
        }
    counts["users_without_train"] = users.height - train["user"].n_unique()
    counts["items_without_train"] = items.height - train["item"].n_unique()
    cold_test = edges.filter(pl.col("split") == "test").join(train, on="item", how="anti")
    counts["test_interactions_with_items_without_train"] = cold_test.height
    for table, source, side in ((users, raw.users, "user"), (items, raw.items, "item")):
        if source is not None and not raw.fixed_catalogue:
            known = table["_row"].count()
            counts[f"{side}s_not_in_table"] = table.height - known
            counts[f"{side}s_of_table_left_out"] = source.height - known
    return counts


def _fingerprint(
    protocol: dict[str, Any], edges: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame
) -> str:
    matrices = {}
    for split in SPLITS:
        part = edges.filter(pl.col("split") == split)
        matrices[split] = edges_to_csr(
            part["user"].to_numpy(), part["item"].to_numpy(), users.height, items.height
        )
    user_ids = np.array(users["user_id"].to_list(), dtype=np.str_)
    item_ids = np.array(items["item_id"].to_list(), dtype=np.str_)
    return content_fingerprint(protocol, user_ids, item_ids, matrices)


def _feature(raw: RawFeature, rows: pl.Series, source: str) -> Feature:
    """Bring a ready-made matrix into the order of the dense ids; repeated rows are stored once."""
    missing = rows.is_null().to_numpy()
    values = np.asarray(raw.values)[rows.fill_null(0).to_numpy()]
    if values.dtype not in (np.float16, np.float32):
        values = values.astype(np.float32)
    distinct, index = deduplicate(values, missing if missing.any() else None)
    side, group = cast("Side", raw.side), cast("Group", raw.group)
    return Feature(raw.name, side, group, distinct, index, info={"source": source})
