"""From a store to the folder the trainer reads: a pure function of store and data set."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from augment.answers import answers, find_spec
from augment.budget import read_ledger
from augment.faults import point
from augment.placebo import apply_placebo
from augment.providers import in_process
from augment.specs import KINDS, TaskSpec
from augment.store import State, open_readonly
from augment.store.claims import read_spec
from augment.store.vectors import VectorFile
from augment.votes import votes
from llmrec_pl.data.augmentation import load_augmentation, write_augmentation
from llmrec_pl.data.augmentation_edges import invalid_edges
from llmrec_pl.data.features import Feature
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import sqlite3

    from augment.config import AugmentConfig
    from augment.placebo import Placebo
    from augment.specs import Kind
    from llmrec_pl.data.augmentation import Augmentation
    from llmrec_pl.data.dataset import InteractionDataset

HEURISTIC_LABEL = "heuristic (no LLM)"
PICO = 10**12


def export(
    store: Path | str,
    config: AugmentConfig,
    dataset: InteractionDataset,
    *,
    out: Path | None = None,
    require_complete: float = 0.0,
    overwrite: bool = True,
    placebo: Placebo | None = None,
) -> Augmentation:
    """Write what a config's tasks have been answered.

    Args:
        store: folder of the journal.
        config: whose specs are taken.
        dataset: the data set.
        out: folder to make; the config's by default.
        require_complete: least share of answers among those asked for, of each task.
        overwrite: replace an augmentation there.
        placebo: damage the content on purpose, as a control.

    Raises:
        AugmentationError: nothing was answered yet, or too little.
    """
    with contextlib.closing(open_readonly(store)) as db:
        found = {kind: find_spec(db, kind, config, dataset) for kind in KINDS}
        specs = {kind: (i, read_spec(db, i)) for kind, i in found.items() if i is not None}
        if not specs:
            raise AugmentationError(
                f"store {str(store)!r} holds no answers for this config and data set "
                f"{dataset.name!r}. Run `python -m augment run` first."
            )
        content = _Content(db, Path(store), specs, dataset)
        content.check(require_complete)
        edges, features = content.edges(), content.features()
        manifest = content.manifest(config)
        if placebo is not None:
            features = apply_placebo(placebo, features)
            manifest["placebo"] = placebo
            manifest["provider"] = f"{manifest['provider']}, placebo {placebo}"
        with tempfile.TemporaryDirectory() as folder:
            attachments = content.tables(Path(folder))
            point("export")
            write_augmentation(
                out or config.out,
                dataset,
                edges=edges,
                features=features,
                manifest=manifest,
                attachments=attachments,
                overwrite=overwrite,
            )
    return load_augmentation(out or config.out, dataset, verify=False)


class _Content:
    def __init__(
        self,
        db: sqlite3.Connection,
        store: Path,
        specs: dict[Kind, tuple[int, TaskSpec]],
        dataset: InteractionDataset,
    ) -> None:
        self.db, self.store, self.specs, self.dataset = db, store, specs, dataset
        self.counts: dict[str, dict[str, Any]] = {}
        self.answered: dict[str, list[Any]] = {}
        for kind, (spec_id, _) in specs.items():
            tally: Counter[str] = Counter()
            kept = []
            for answer in answers(db, spec_id, kind):
                tally[_tally_name(answer)] += 1
                if answer.value is not None:
                    kept.append(answer)
            self.counts[kind] = dict(sorted(tally.items()))
            self.answered[kind] = kept

    def check(self, least: float) -> None:
        for kind, tally in self.counts.items():
            asked = sum(n for name, n in tally.items() if not name.startswith("skipped"))
            share = tally.get("done", 0) / asked if asked else 1.0
            if share < least:
                raise AugmentationError(
                    f"{kind}: {tally.get('done', 0)} of {asked} answers are there ({share:.1%}), "
                    f"{least:.1%} are required. Run again, see `python -m augment status`, or "
                    "lower `--require-complete`."
                )

    # Edges ---------------------------------------------------------------------------------

    def edges(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        draws: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for answer in self.answered.get("pairs", []):
            shown = answer.context["shown"]
            most, least = answer.value["most_liked"] - 1, answer.value["least_liked"] - 1
            draws[answer.entity].append((shown[most], shown[least]))
        chosen = [(user, vote) for user, pairs in sorted(draws.items()) if (vote := votes(pairs))]
        rows = np.array([(u, p, n) for u, (p, n) in chosen], dtype=np.int64).reshape(-1, 3).T
        found = invalid_edges(rows, self.dataset)
        if found:
            keep = ~np.logical_or.reduce(list(found.values()))
            reasons = {f"refused:{name}": int(bad.sum()) for name, bad in found.items()}
            self.counts["pairs"] |= reasons
            rows = rows[:, keep]
        return np.ascontiguousarray(rows)

    # Features ------------------------------------------------------------------------------

    def features(self) -> list[Feature]:
        if "embed" not in self.specs:
            return []
        names = self.specs["embed"][1].settings["fields"]
        by_field: dict[int, list[Any]] = defaultdict(list)
        for answer in self.answered["embed"]:
            by_field[answer.field].append(answer)
        made = []
        with contextlib.closing(VectorFile(self.store, readonly=True)) as vectors:
            for number, name in enumerate(names):
                if rows := by_field.get(number):
                    made.append(self._feature(number, name, rows, vectors))
        return made

    def _feature(self, number: int, name: str, rows: list[Any], vectors: VectorFile) -> Feature:
        side: Any = "user" if number == 0 else "item"
        n_rows = self.dataset.n_users if side == "user" else self.dataset.n_items
        index = np.full(n_rows, -1, dtype=np.int64)
        order: dict[bytes, int] = {}
        for answer in rows:
            index[answer.entity] = order.setdefault(answer.key, len(order))
        values = np.stack([_present(vectors.get(key), key) for key in order])
        group: Any = "profile" if side == "user" else "attribute"
        return Feature(f"{side}_{name}", side, group, values.astype(np.float32), index)

    # Tables and manifest -------------------------------------------------------------------

    def tables(self, folder: Path) -> dict[str, Path]:
        """Write answers with original ids and titles, for people and for other tools."""
        titles = self.dataset.titles()
        made = {}
        for kind in ("pairs", "profiles", "attributes"):
            rows = [self._row(kind, answer, titles) for answer in self.answered.get(kind, [])]
            if rows:
                file = folder / f"{kind}.parquet"
                pl.DataFrame(rows, infer_schema_length=None).write_parquet(file)
                made[file.name] = file
        return made

    def _row(self, kind: str, answer: Any, titles: list[str]) -> dict[str, Any]:
        key = answer.key.hex()
        if kind == "pairs":
            shown = answer.context["shown"]
            row: dict[str, Any] = {"user_id": str(self.dataset.user_ids[answer.entity])}
            row["draw"] = answer.field
            for name in ("most_liked", "least_liked"):
                item = shown[answer.value[name] - 1]
                row[name] = str(self.dataset.item_ids[item])
                row[f"{name}_title"] = titles[item]
            return {**row, "key": key}
        if kind == "profiles":
            value = {**answer.value, "age": _text_or_none(answer.value.get("age"))}
            return {"user_id": str(self.dataset.user_ids[answer.entity]), **value, "key": key}
        item = answer.entity
        head = {"item_id": str(self.dataset.item_ids[item]), "title": titles[item]}
        return {**head, **answer.value, "key": key}

    def manifest(self, config: AugmentConfig) -> dict[str, Any]:
        chat = next((s for k, (_, s) in self.specs.items() if k != "embed"), None)
        first = chat or self.specs["embed"][1]
        ledger = read_ledger(self.db)
        uuid = self.db.execute("SELECT v FROM meta WHERE k = 'store_uuid'").fetchone()[0]
        heuristic = chat is not None and in_process("pairs", config)
        pool = self.specs["pairs"][1].settings if "pairs" in self.specs else {}
        return {
            "provider": HEURISTIC_LABEL if heuristic else first.provider,
            "model": first.model,
            "prompt_set": first.prompt_set or "none",
            "store": uuid,
            "counts": {"tasks": self.counts},
            "cost": {
                "spent_usd": _usd(ledger.spent_pusd),
                "reserved_usd": _usd(ledger.reserved_pusd),
            },
            "specs": {
                k: {**s.model_dump(), "sha": s.sha.hex()} for k, (_, s) in self.specs.items()
            },
            "provenance": {
                "dataset_fp": self.dataset.fingerprint,
                "pool": pool.get("pool"),
                "pool_model": pool.get("pool_model"),
                "prompts": {k: s.prompt_sha for k, (_, s) in self.specs.items() if s.prompt_set},
                "embed_model": self.specs["embed"][1].model if "embed" in self.specs else None,
            },
        }


def _tally_name(answer: Any) -> str:
    if answer.skip is not None:
        return f"skipped:{answer.skip}"
    if answer.value is not None:
        return "done"
    if answer.state == State.QUARANTINED:
        return f"quarantined:{answer.code}"
    return str(answer.state.name).lower()


def _present(vector: Any, key: bytes) -> Any:
    if vector is None:
        raise AugmentationError(
            f"the vector of request {key.hex()[:12]}… is missing from the store; run `python -m "
            "augment doctor`."
        )
    return vector


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _usd(pico: int) -> str:
    whole, rest = divmod(pico, PICO)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".") or "0"
