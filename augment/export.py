"""From a store to the folder the trainer reads: a pure function of store, config and data set.

Neither cost nor time goes into a data file, so equal answers give equal bytes and one content id,
whether they were paid for or replayed.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polars.exceptions import ComputeError

from augment.answers import answers, choose_specs, described, stored_specs
from augment.errors import StoreFullStop
from augment.export_content import read_content
from augment.faults import point
from augment.placebo import HIDDEN, apply_placebo, placebos_of
from augment.provenance import provenance
from augment.recall import Recall, summary
from augment.store import open_readonly
from llmrec_pl.data.augmentation import MANIFEST, load_augmentation, write_augmentation
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from augment.config import AugmentConfig
    from augment.export_content import Content
    from augment.placebo import Placebo
    from augment.specs import Kind, TaskSpec
    from llmrec_pl.data.augmentation import Augmentation
    from llmrec_pl.data.dataset import InteractionDataset


def export(
    store: Path | str,
    config: AugmentConfig,
    dataset: InteractionDataset,
    *,
    out: Path | None = None,
    require_complete: float = 0.0,
    overwrite: bool = True,
    placebo: Placebo | None = None,
    seed: int = 0,
    specs: Sequence[str] = (),
) -> Augmentation:
    """Write what a config's tasks have been answered.

    Args:
        store: folder of the journal.
        config: whose specs are taken.
        dataset: the data set.
        out: folder to make; by default the config's, for a placebo with its name added.
        require_complete: least share, in [0, 1], of answers among those asked for, of each task
            that the config has.
        overwrite: replace any augmentation there; one of the same store and placebo always is.
        placebo: damage the content on purpose, as a control.
        seed: of the placebo.
        specs: first letters of the sha of specs to take instead of the config's.

    Raises:
        AugmentationError: nothing was answered yet, or too little; the place is taken.
        StoreFullStop: the place cannot be written.
    """
    if not 0 <= require_complete <= 1:
        raise AugmentationError(
            f"`--require-complete` is a share in [0, 1], got {require_complete}; write 0.98."
        )
    if out is None:
        out = config.out.with_name(f"{config.out.name}-{placebo}") if placebo else config.out
    with contextlib.closing(open_readonly(store)) as db:
        db.execute("BEGIN")  # one snapshot, also while a run goes on
        chosen = choose_specs(db, config, dataset, specs)
        probe = chosen.pop("memorisation", None)
        if not chosen:
            raise AugmentationError(_nothing(store, dataset, db))
        content = read_content(db, Path(store), chosen, dataset)
        manifest = provenance(db, chosen, content, config, dataset)
        if probe is not None:
            spec_id, spec = probe
            found = Recall(spec, dataset).measure(answers(db, spec_id, spec.kind))
            manifest["memorisation"] = summary(found, spec)
    _check_complete(manifest["coverage"], require_complete)
    return _write(out, dataset, content, manifest, chosen, placebo, seed, overwrite=overwrite)


def _write(
    out: Path,
    dataset: InteractionDataset,
    content: Content,
    manifest: dict[str, Any],
    chosen: dict[Kind, tuple[int, TaskSpec]],
    placebo: Placebo | None,
    seed: int,
    *,
    overwrite: bool,
) -> Augmentation:
    features, hidden = content.features, frozenset[str]()
    if placebo is not None:
        features = apply_placebo(placebo, features, dataset, seed)
        hidden = HIDDEN[placebo]
        manifest["placebo_seed"] = seed
    if names := placebos_of((spec for _, spec in chosen.values()), placebo):
        manifest["placebo"] = label = ", ".join(names)
        for key in ("provider", "prompt_set"):
            manifest[key] = f"{manifest[key]}, placebo {label}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            attachments = {
                name: table
                for name, table in content.write_tables(Path(folder)).items()
                if name not in hidden
            }
            point("export")
            write_augmentation(
                out,
                dataset,
                edges=content.edges,
                features=features,
                manifest=manifest,
                attachments=attachments,
                overwrite=overwrite or _of_this_store(out, manifest),
            )
    except (OSError, ComputeError) as error:  # the latter is a full disk in the words of polars
        raise StoreFullStop(
            f"the export {str(out)!r} cannot be written: {error}. What was there before is left; "
            "make space or give permission, and run `python -m augment export` again."
        ) from error
    return load_augmentation(out, dataset, verify=False)


def _of_this_store(out: Path, manifest: dict[str, Any]) -> bool:
    """Return whether an export stands there that this one is the next state of."""
    try:
        old = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        return all(old.get(k) == manifest.get(k) for k in ("store", "placebo", "placebo_seed"))
    except (OSError, ValueError, AttributeError):
        return False


def _nothing(store: Path | str, dataset: InteractionDataset, db: sqlite3.Connection) -> str:
    there = stored_specs(db, dataset)
    text = f"store {str(store)!r} holds no answers for this config and data set {dataset.name!r}. "
    if not there:
        return f"{text}Run `python -m augment run` first."
    return (
        f"{text}What was asked for this data set: {described(there)}. Give the config that "
        "asked, or name them with `--spec`."
    )


def _check_complete(coverage: dict[str, dict[str, Any]], least: float) -> None:
    if not least:
        return
    for kind, found in coverage.items():
        if found["share"] >= least and found["planned_in_full"]:
            continue
        why = "" if found["planned_in_full"] else ", and not all of them were planned yet"
        raise AugmentationError(
            f"{kind}: {found['done']:,} of {found['asked']:,} answers are there "
            f"({found['share']:.1%}), {least:.1%} are required{why}. Run again, see `python -m "
            "augment status`, or lower `--require-complete`."
        )
