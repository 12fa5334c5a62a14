"""Reads what runs kept of their evaluations, and joins the runs that differ by the seed alone.

Only files of the ``metrics`` folders and ``config.yaml`` are read: no data set is opened, and
no split.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.errors import ConfigError
from llmrec_pl.evaluation.candidates import CANDIDATES
from llmrec_pl.evaluation.record import record_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SPLITS = ("val", "test")
_NAMES = [record_name(split, candidates) for split in SPLITS for candidates in CANDIDATES]
_VERBS = {"val": "validate", "test": "test"}
_ID_COLUMNS = ("user", "user_id", "n_relevant")
_RECORD_KEYS = ("stage", "model", "profile", "ks", "metrics", "data")
_NOT_A_SETTING = re.compile(
    r"seed_everything|ckpt_path|weights_only|(evaluation|resume|predictions)\..*"
    r"|data\.(root|seed|num_workers|verify|eval_batch_size)"
    r"|data\.(augmentation|llm_edge_rate|llm_parts|exclude_features)"  # the record says it better
    r"|trainer\.(default_root_dir|accelerator|logger|logger\..*|log_every_n_steps|profiler|deterministic"
    r"|benchmark|num_sanity_val_steps|enable_.*)|checkpoint\.dirpath|.*\.verbose"
)
"""Keys of a config that change where and how a run is made, not what is trained."""


@dataclasses.dataclass(frozen=True)
class KeptRun:
    """One evaluation of one run.

    Attributes:
        folder: the run's folder.
        record: the means and what was evaluated.
        settings: what was trained, flat; without the seed and places.
        seed: of the run; None where it kept no config.
        user_ids: original ids, sorted, ``[n_users]``.
        n_relevant: held-out items of each, ``[n_users]``.
        values: ``[n_users]`` float64 of each metric.
        validation: the means on validation; None where they were not kept.
        entry: what a sweep calls it; None where none trained it.
    """

    folder: Path
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int | None
    user_ids: NDArray[np.str_]
    n_relevant: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]
    validation: Mapping[str, Any] | None
    entry: str | None = None


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """The seeds of one model under one setting."""

    label: str
    runs: Sequence[KeptRun]

    def per_user(self, metric: str) -> NDArray[np.float64]:
        """Return the values of `metric` averaged over seeds, ``[n_users]``."""
        mean: NDArray[np.float64] = self.matrix(metric).mean(axis=0)
        return mean

    def matrix(self, metric: str) -> NDArray[np.float64]:
        """Return the values of `metric`, ``[n_runs, n_users]``."""
        return np.stack([run.values[metric] for run in self.runs])


def find_runs(path: Path) -> list[Path]:
    """Return `path` if it is a run's folder, else the runs below it, by version number.

    Raises:
        ConfigError: there is none.
    """
    if _is_run(path):
        return [path]
    found = {p.parent for p in path.rglob("config.yaml")}
    found |= {p.parents[1] for n in _NAMES for p in path.rglob(f"metrics/{n}.json")}
    if not found:
        what = "holds no run" if path.is_dir() else "does not exist"
        raise ConfigError(
            f"{str(path)!r} {what}; give folders that `fit` made, such as "
            "`lightning_logs/ml-100k-MF/version_0`, or a folder above them."
        )
    parts = {path: re.split(r"(\d+)", str(path)) for path in found}
    return sorted(found, key=lambda p: [int(s) if s.isdigit() else s for s in parts[p]])


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "metrics").is_dir()


def has_kept(folder: Path, split: str, candidates: str = "all") -> bool:
    """Return whether the run kept its per-user metrics of the split."""
    metrics, name = folder / "metrics", record_name(split, candidates)
    return (metrics / f"{name}_per_user.parquet").is_file() and (metrics / f"{name}.json").exists()


def read_run(folder: Path, split: str, candidates: str = "all") -> KeptRun:
    """Read one run.

    Args:
        folder: the run's folder.
        split: "val" or "test".
        candidates: which items were ranked: "all", "cold" or "warm".

    Raises:
        ConfigError: the files are missing, damaged, or of two evaluations.
    """
    import polars as pl

    name = record_name(split, candidates)
    if not has_kept(folder, split, candidates):
        option = "" if candidates == "all" else f" --evaluation.candidates {candidates}"
        raise ConfigError(
            f"run {str(folder)!r} keeps no per-user metrics of {name!r}; make them with "
            f"`python -m llmrec_pl {_VERBS[split]} --config {folder}/config.yaml "
            f"--ckpt_path {folder}/checkpoints/best.ckpt{option}`"
            + (", which opens its sealed test split." if split == "test" else ".")
        )
    path = folder / "metrics" / f"{name}_per_user.parquet"
    record = _read_record(folder / "metrics" / f"{name}.json")
    try:
        frame = pl.read_parquet(path).with_columns(pl.col("user_id").cast(pl.String))
        frame = frame.sort("user_id")
        names = [name for name in frame.columns if name not in _ID_COLUMNS]
        values = {name: frame[name].cast(pl.Float64).to_numpy() for name in names}
        n_relevant = frame["n_relevant"].to_numpy()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}; evaluate the run again.") from error
    _check_one_evaluation(path, record, values)
    config = _read_config(folder / "config.yaml")
    validation = folder / "metrics" / f"{record_name('val', candidates)}.json"
    return KeptRun(
        folder=folder,
        record=record,
        settings=_settings(config, record),
        seed=config.get("seed_everything"),
        user_ids=frame["user_id"].to_numpy().astype(np.str_),
        n_relevant=n_relevant,
        values=values,
        validation=_read_record(validation)["metrics"] if validation.exists() else None,
        entry=_read_config(folder / "sweep.json").get("name"),  # JSON is YAML
    )


def _check_one_evaluation(
    path: Path, record: Mapping[str, Any], values: Mapping[str, NDArray[np.float64]]
) -> None:
    """Hold the means of the per-user values against the record beside them."""
    for name, column in values.items():
        mean = float(column.mean()) if len(column) else float("nan")
        stated = record["metrics"].get(name)
        if stated is None or not abs(mean - stated) < 1e-6:
            raise ConfigError(
                f"{str(path)!r} has a mean {name} of {mean:.6f} over {len(column)} users, but "
                f"the record beside it says {stated}; evaluate the run again."
            )


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _RECORD_KEYS if key not in record]
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is no record: {error}; evaluate the run again."
        ) from error
    if missing:
        raise ConfigError(f"{str(path)!r} lacks {missing}; evaluate the run again.")
    return record


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        return {}
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"config {str(path)!r} is not valid YAML: {error}") from error


def _settings(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what was trained: the config's settings, the features and the augmentation."""
    flat = {k: v for k, v in _flatten(config) if not _NOT_A_SETTING.fullmatch(k)}
    augmentation = record.get("augmentation") or {}
    return {
        **flat,
        "model": record["model"],
        "features": "+".join(record.get("features") or []) or "none",
        "augmentation": (augmentation.get("content_id") or "none")[:12],
        "llm_parts": "+".join(augmentation.get("llm_parts") or []) or "none",
        "w3": augmentation.get("llm_edge_rate", 0),
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def check_comparable(runs: Sequence[KeptRun]) -> None:
    """Refuse runs whose users cannot be paired.

    Raises:
        ConfigError: data, protocol or users of two runs differ.
    """
    first = runs[0]
    for run in runs[1:]:
        pair = f"{str(first.folder)!r} and {str(run.folder)!r}"
        for key, what, remedy in (
            ("data", "data", "train both on one data set folder"),
            ("profile", "the metric profile", "evaluate both with one `--evaluation.profile`"),
            ("ks", "the list lengths", "evaluate both with one `--evaluation.ks`"),
        ):
            one, other = (_protocol(r.record, key) for r in (first, run))
            if one != other:
                raise ConfigError(f"runs {pair} differ in {what}: {one!r} and {other!r}; {remedy}.")
        same = np.array_equal(first.user_ids, run.user_ids)
        if not same or not np.array_equal(first.n_relevant, run.n_relevant):
            shared = np.intersect1d(first.user_ids, run.user_ids)
            raise ConfigError(
                f"runs {pair} were evaluated on different users or held-out items "
                f"({len(first.user_ids):,} and {len(run.user_ids):,} users, {len(shared):,} "
                "shared); evaluate both on the whole split."
            )


def _protocol(record: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401
    if key != "data":
        return record[key]
    return f"{record['data']['name']} ({record['data']['fingerprint'][:12]})"


def group_runs(
    unnamed: Sequence[KeptRun], named: Mapping[str, Sequence[KeptRun]]
) -> tuple[list[RunGroup], list[str]]:
    """Join runs that differ by the seed alone, and keep the groups that have a name.

    Args:
        unnamed: runs to be joined by their settings; labelled by their entry of a sweep, else by
            the model, and by what differs where one of these has several settings.
        named: groups with labels of the user's own.

    Returns:
        The groups, and what a person should know of them.

    Raises:
        ConfigError: a run or a seed stands twice, or two groups have one label.
    """
    joined: dict[str, list[KeptRun]] = {}
    for run in unnamed:
        joined.setdefault(json.dumps(run.settings, sort_keys=True, default=str), []).append(run)
    labels = _labels(list(joined.values()))
    groups = [RunGroup(label, r) for label, r in zip(labels, joined.values(), strict=True)]
    warnings = []
    for label, runs in named.items():
        groups.append(RunGroup(label, runs))
        differing = _differing([run.settings for run in runs])
        if differing:
            warnings.append(f"the runs of {label!r} differ in more than the seed: {differing}.")
    _check_groups(groups)
    return groups, warnings


def _check_groups(groups: Sequence[RunGroup]) -> None:
    labels: set[str] = set()
    owners: dict[Path, str] = {}
    for group in groups:
        if group.label in labels:
            raise ConfigError(f"two groups are called {group.label!r}; give one another name.")
        labels.add(group.label)
        seeds: dict[int, Path] = {}
        for run in group.runs:
            owner = owners.setdefault(run.folder.resolve(), group.label)
            if owner != group.label:
                raise ConfigError(
                    f"run {str(run.folder)!r} stands in {owner!r} and in {group.label!r}; "
                    "leave it out of one."
                )
            if run.seed is None:
                continue
            other = seeds.setdefault(run.seed, run.folder)
            if other != run.folder:
                raise ConfigError(
                    f"seed {run.seed} of {group.label!r} stands twice: {str(other)!r} and "
                    f"{str(run.folder)!r}; a repeated seed is no further one. Leave one out by "
                    f"naming the others: `{group.label}=RUN,RUN`."
                )


def _labels(groups: Sequence[Sequence[KeptRun]]) -> list[str]:
    """Name each group by its entry or its model, and by what tells it from its namesakes."""
    names = [_name(runs) for runs in groups]
    labels: list[str] = []
    for name, runs in zip(names, groups, strict=True):
        one = runs[0].settings
        same = [g[0].settings for other, g in zip(names, groups, strict=True) if other == name]
        keys = _differing(same)
        words = [f"{key.rsplit('.', 1)[-1]} {one.get(key, '-')}" for key in keys[:3]]
        words += ["…"] if len(keys) > 3 else []
        label = name + (f" ({', '.join(words)})" if words else "")
        labels.append(f"{label} #{labels.count(label) + 1}" if label in labels else label)
    return labels


def _name(runs: Sequence[KeptRun]) -> str:
    entry = runs[0].entry
    shared = entry is not None and all(run.entry == entry for run in runs)
    return str(entry if shared else runs[0].settings["model"])


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [k for k in keys if any(one.get(k) != settings[0].get(k) for one in settings)]
