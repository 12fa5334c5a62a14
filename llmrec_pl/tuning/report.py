"""What a search leaves: a log as data, the chosen values as a config, a table and a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from llmrec_pl.configs import merged
from llmrec_pl.tuning.search import best_trial
from llmrec_pl.tuning.space import overlay
from llmrec_pl.tuning.storage import counted

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

    from llmrec_pl.tuning.search import Search


def short_name(key: str) -> str:
    """Return the last part of a dotted key, as a column heading."""
    return key.rpartition(".")[2]


def shown_value(value: object) -> str:
    """Return a value as a person reads it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trials_table(study: optuna.Study, metric: str) -> Table:
    """Return all trials in the order they began, the chosen one in bold."""
    trials, best = sorted(counted(study), key=lambda t: t.number), best_trial(study)
    table = Table(title=f"trials by validation {metric}", title_justify="left")
    table.add_column("trial", justify="right")
    for key in best.params:
        table.add_column(short_name(key), justify="right", overflow="fold")
    for name in (metric, "best epoch", "CPU s"):
        table.add_column(name, justify="right")
    table.add_column("ended by", style="dim")
    for trial in trials:
        result = trial.user_attrs.get("result", {})
        value = result.get("value")
        table.add_row(
            str(trial.number),
            *(shown_value(trial.params.get(key)) for key in best.params),
            "-" if value is None else f"{value:.4f}",
            f"{result.get('best_epoch', 0)} of {result.get('epochs', 0)}",
            f"{result.get('cpu_seconds', 0):.0f}",
            result.get("error") or result.get("stopped", "running"),
            style="bold" if trial.number == best.number else None,
        )
    return table


def write_log(path: Path, study: optuna.Study, plan: Search, data: dict[str, Any]) -> None:
    """Write every trial as JSON.

    Args:
        path: file to write.
        study: the study.
        plan: the search.
        data: name and fingerprint of the data set.
    """
    trials = [
        {
            "number": t.number,
            "state": t.state.name.lower(),
            "values": t.params,
            **t.user_attrs.get("result", {}),
        }
        for t in sorted(counted(study), key=lambda t: t.number)
    ]
    content = {
        "data": data,
        "configs": list(plan.configs),
        "space": plan.space,
        "metric": plan.metric,
        "cpu_seconds_a_trial": plan.seconds,
        "seed": plan.seed,
        "chosen": best_trial(study).number,
        "trials": trials,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_chosen(path: Path, study: optuna.Study, plan: Search, data: dict[str, Any]) -> None:
    """Write the chosen values as a config overlay."""
    best = best_trial(study)
    head = (
        f"# Validation {plan.metric} {best.value:.4f} on {data['name']} "
        f"({data['fingerprint'][:12]}), trial {best.number} of {len(counted(study))}\n"
        f"# by `python -m llmrec_pl tune`, space {plan.space}, {plan.seconds:g} CPU seconds a "
        "trial.\n"
    )
    body = yaml.safe_dump(overlay(merged(plan.configs), best.params), sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + body, encoding="utf-8")


def plot_trials(path: Path, study: optuna.Study, metric: str, title: str) -> None:
    """Draw the validation curve of every trial, the chosen one on top."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    best = best_trial(study)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for trial in sorted(counted(study), key=lambda t: t.number == best.number):
        curve = trial.user_attrs.get("result", {}).get("curve") or []
        chosen = trial.number == best.number
        color, width = ("#1f5fa8", 2.2) if chosen else ("#b8bcc4", 1.0)
        axes.plot(range(1, len(curve) + 1), curve, color=color, lw=width)
        if not curve:
            continue
        axes.annotate(
            f"trial {trial.number}: {max(curve):.4f}" if chosen else str(trial.number),
            (len(curve), curve[-1]),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color if chosen else "#8a8f98",
        )
    axes.set(xlabel="evaluation", ylabel=f"validation {metric}")
    axes.margins(x=0.12)
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
