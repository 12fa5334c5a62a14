"""Compares groups of runs on per-user metrics: what stands in each line of the table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.errors import ConfigError
from llmrec_pl.evaluation.kept_runs import check_comparable
from llmrec_pl.evaluation.record import record_name
from llmrec_pl.evaluation.significance import (
    Interval,
    bootstrap_interval,
    detectable_difference,
    effect_size,
    holm,
    mcnemar_p,
    randomisation_p,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrec_pl.evaluation.kept_runs import RunGroup

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Levels of the Holm-adjusted p, and how tables mark them."""
_HIT_OR_MISS = ("hit", "recall")


@dataclasses.dataclass(frozen=True)
class Versus:
    """A model against the baseline, over users.

    Attributes:
        difference: mean per-user difference, model minus baseline.
        interval: 95 % BCa bootstrap interval of it.
        p: two-sided, paired randomisation test.
        p_holm: the same over the whole table.
        effect: d_z; NaN where it has none.
        detectable: smallest difference found with 80 % power at level 0.05.
        mcnemar: exact p; None where a user has several held-out items, or the metric has values
            between hit and miss.
    """

    difference: float
    interval: Interval
    p: float
    p_holm: float
    effect: float
    detectable: float
    mcnemar: float | None

    @property
    def under_powered(self) -> bool:
        """Whether a difference of the size seen would often be missed."""
        return self.detectable > abs(self.difference)

    @property
    def stars(self) -> str:
        """One to three stars by the adjusted p, none above 0.05."""
        return next((stars for level, stars in STARS if self.p_holm < level), "")


@dataclasses.dataclass(frozen=True)
class Line:
    """One model and one metric; `versus` is None for the baseline itself."""

    label: str
    metric: str
    seeds: list[int | None]
    run_means: list[float]
    n_users: int
    mean: float
    deviation: float | None
    versus: Versus | None
    note: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The whole table, and what it was made of.

    Attributes:
        lines: of each metric, best mean first.
        about: split, data, profile, baseline, draws and seed, as plain values.
        warnings: sentences for the reader.
    """

    lines: list[Line]
    about: dict[str, Any]
    warnings: list[str]

    def of(self, metric: str) -> list[Line]:
        """Return the lines of one metric."""
        return [line for line in self.lines if line.metric == metric]


def compare(
    groups: Sequence[RunGroup],
    metrics: Sequence[str],
    baseline: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Hold each group against the baseline, and adjust p over the whole table.

    Args:
        groups: at least two, of runs on the same users.
        metrics: names such as ``recall@20``; none for recall and NDCG at 20, or at the largest K.
        baseline: label of a group; by default the best but one on the first metric, so that the
            leading model is held against the best other.
        draws: of the randomisation test and of the bootstrap.
        seed: of both.
        step: called after each comparison.

    Raises:
        ConfigError: groups, metrics or the baseline do not do; the runs are not comparable.
    """
    if len(groups) < 2:
        names = ", ".join(repr(group.label) for group in groups)
        raise ConfigError(
            f"there is only {names} to compare; give runs of at least two models or settings, or "
            "name groups of your own with `NAME=RUN,RUN`."
        )
    if draws < 1:
        raise ConfigError(f"`--draws` must be positive, got {draws}.")
    if seed < 0:
        raise ConfigError(f"`--seed` must not be negative, got {seed}.")
    runs = [run for group in groups for run in group.runs]
    check_comparable(runs)
    metrics = _known_metrics(groups, metrics)
    reference, choice = _baseline(groups, metrics[0], baseline)
    found = []
    for metric in metrics:
        for group in groups:
            if group is not reference:
                found.append(_versus(group, reference, metric, draws, seed))
                step()
    adjusted = holm([one.p for one in found])
    tested = iter(dataclasses.replace(v, p_holm=p) for v, p in zip(found, adjusted, strict=True))
    lines: list[Line] = []
    for metric in metrics:
        of_metric = [_line(g, metric, None if g is reference else next(tested)) for g in groups]
        lines += sorted(of_metric, key=lambda line: -line.mean)
    record = runs[0].record
    about = {
        "split": record_name(record["stage"], record.get("candidates", "all")),
        "data": record["data"],
        "profile": record["profile"],
        "users": len(runs[0].user_ids),
        "metrics": list(metrics),
        "baseline": reference.label,
        "baseline_choice": choice,
        "comparisons": len(found),
        "draws": draws,
        "seed": seed,
        "runs": {group.label: [str(run.folder) for run in group.runs] for group in groups},
    }
    warnings = _warnings(groups)
    if len(found) / (1 + draws) >= STARS[-1][0]:
        warnings.append(
            f"{draws:,} draws are too few for {len(found)} comparisons: no adjusted p can be below "
            f"{STARS[-1][0]}; raise `--draws`."
        )
    return Comparison(lines, about, warnings)


def _known_metrics(groups: Sequence[RunGroup], wanted: Sequence[str]) -> list[str]:
    known = list(groups[0].runs[0].values)
    if not wanted:
        ks = groups[0].runs[0].record["ks"]
        k = 20 if 20 in ks else max(ks)
        wanted = [f"recall@{k}", f"ndcg@{k}"]
    for metric in wanted:
        if metric not in known:
            raise ConfigError(f"`--metric` {metric!r} was not kept; the runs have {known}.")
    return list(dict.fromkeys(wanted))


def _baseline(groups: Sequence[RunGroup], metric: str, wanted: str | None) -> tuple[RunGroup, str]:
    """Return the baseline, and in words how it was chosen."""
    labels = {group.label: group for group in groups}
    if wanted is not None:
        if wanted not in labels:
            raise ConfigError(f"`--baseline` {wanted!r} is none of the groups {list(labels)}.")
        return labels[wanted], "as asked"
    runs = [run for group in groups for run in group.runs]
    validated = all(run.validation and metric in run.validation for run in runs)

    def mean(group: RunGroup) -> float:
        if not validated:
            return float(group.matrix(metric).mean())
        return float(np.mean([run.validation[metric] for run in group.runs if run.validation]))

    split = "validation" if validated else runs[0].record["stage"]
    ranked = sorted(groups, key=mean, reverse=True)
    return ranked[1], f"the best but one by {metric} on {split}"


def _versus(group: RunGroup, reference: RunGroup, metric: str, draws: int, seed: int) -> Versus:
    differences = group.per_user(metric) - reference.per_user(metric)
    p = randomisation_p(differences, draws, seed)
    single = bool((group.runs[0].n_relevant == 1).all())
    mcnemar = None
    if single and metric.split("@")[0] in _HIT_OR_MISS:
        mcnemar = mcnemar_p(*(_majority(g.matrix(metric)) for g in (group, reference)))
    return Versus(
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences, draws, seed),
        p=p,
        p_holm=p,
        effect=effect_size(differences),
        detectable=detectable_difference(differences),
        mcnemar=mcnemar,
    )


def _majority(hits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Join seeds for McNemar, which knows hit and miss only: hit by more than half of them."""
    return np.asarray(hits.mean(axis=0) > 0.5)


def _line(group: RunGroup, metric: str, versus: Versus | None) -> Line:
    means = [float(value) for value in group.matrix(metric).mean(axis=1)]
    notes = ["baseline"] if versus is None else []
    if versus and versus.under_powered:
        notes.append("under-powered")
    if versus and versus.mcnemar is not None:
        joined = "" if len(means) == 1 else " (majority of seeds)"
        notes.append(f"McNemar p {format_p(versus.mcnemar)}{joined}")
    return Line(
        label=group.label,
        metric=metric,
        seeds=[run.seed for run in group.runs],
        run_means=means,
        n_users=len(group.runs[0].user_ids),
        mean=float(np.mean(means)),
        deviation=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        versus=versus,
        note="; ".join(notes),
    )


def format_p(p: float) -> str:
    """Write p with four digits."""
    return "<0.0001" if p < 0.00005 else f"{p:.4f}"


def _warnings(groups: Sequence[RunGroup]) -> list[str]:
    counts = {group.label: len(group.runs) for group in groups}
    warnings = []
    if len(set(counts.values())) > 1:
        of_each = ", ".join(f"{label} {n}" for label, n in counts.items())
        warnings.append(f"the numbers of seeds differ: {of_each}.")
    alone = [label for label, n in counts.items() if n == 1]
    if alone:
        warnings.append(
            f"one seed only, so that its luck is part of the difference: {', '.join(alone)}."
        )
    opened = [
        f"{run.folder} ({run.record['test_openings']} times)"
        for group in groups
        for run in group.runs
        if run.record.get("test_openings", 1) > 1
    ]
    if opened:
        warnings.append(f"the test split was opened more than once by {', '.join(opened)}.")
    return warnings
