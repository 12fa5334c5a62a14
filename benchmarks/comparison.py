"""Runs a grid of trials of both libraries, chooses on validation, and shows one table.

What the two quality benchmarks share. Every trial is evaluated by `benchmarks.scoring`; the test
split is opened at the very end, for the chosen trials only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import statistics
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import recbole_side, scoring
from benchmarks.closed_form import evaluate_closed_form
from benchmarks.trials import TrialStore, write_json
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import DatasetError, LLMRecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.trials import Trial

Record = dict[str, Any]
Metrics = dict[str, float]
COSTS = (
    "epochs",
    "best_epoch",
    "evaluations",
    "cpu_seconds_training",
    "cpu_seconds_evaluation",
)
SELECT = "recall@20"
COUNTERPARTS = {
    "MF": "BPR",
    "LightGCN": "LightGCN",
    "NGCF": "NGCF",
    "EASE": "EASE",
    "ItemKNN": "ItemKNN",
    "LLMRec": None,
}
"""Names of this project's models, and of the same ones in RecBole."""
console = Console(width=None if Console().is_terminal else 132)


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments that both benchmarks take."""
    from pathlib import Path

    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".cache/benchmarks") / name,
        metavar="DIR",
        help="finished trials, so that a run that was stopped goes on (%(default)s)",
    )
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path(".cache/recbole-env"),
        metavar="DIR",
        help="RecBole's own environment, made if missing (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results") / f"{name}.json",
        metavar="FILE",
        help="where the results go (%(default)s)",
    )
    parser.add_argument("--skip-recbole", action="store_true", help="only this project's side")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(COUNTERPARTS),
        metavar="NAME",
        help="run these and their counterparts alone, and keep what `--out` holds of the others",
    )


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn an error that a user can mend into one message and status 1."""
    try:
        yield
    except LLMRecError as error:
        sys.exit(f"error: {error}")


def run(
    trials: Sequence[Trial], data: Path, args: argparse.Namespace, seeds: Sequence[int] = ()
) -> None:
    """Run what is not finished yet, then evaluate, print and write.

    Args:
        trials: the grids of all models.
        data: canonical data set folder.
        seeds: with which the chosen settings are trained, and which the results are the mean
            of; only the grid's own by default, and for closed forms.
        args: see `add_arguments`.
    """
    dataset = InteractionDataset.load(data)
    store = TrialStore(args.work, dataset.fingerprint)
    if args.skip_recbole:
        trials = [t for t in trials if t.library != "recbole"]
    kept: dict[str, list[Record]] = {"chosen": [], "trials": []}
    if args.models:
        kept = results_of_others(args, dataset.fingerprint)
        trials = [t for t in trials if is_selected(t.library, t.model, args.models)]
    records = [_run_trial(trial, store, dataset, data, args) for trial in trials]
    chosen = _choose(trials, records)
    opened = InteractionDataset.load(data, open_test=True)
    results: list[Record] = evaluate_closed_form(dataset, opened) + kept["chosen"]
    for trial, record in chosen:
        own = trial.is_solved or not seeds
        repeated = [trial] if own else [_with_seed(trial, seed) for seed in seeds]
        runs = [_run_trial(t, store, dataset, data, args) for t in repeated]
        tests = [scoring.evaluate_vectors(*store.vectors(t), opened, "test") for t in repeated]
        results.append({**over_seeds(runs, tests), "screening": record["validation"][SELECT]})
    for split in ("validation", "test"):
        console.print(quality_table(results, split))
    console.print(cost_table(results))
    content = {
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "protocol": dataset.meta["protocol"],
            "users": dataset.n_users,
            "items": dataset.n_items,
            "interactions": dataset.meta["counts"]["splits"],
        },
        "software": _software(args),
        "chosen": results,
        "speed_ratio": speed_ratios(results),
        "evaluator_difference": evaluator_difference(kept["trials"] + records),
        "trials": kept["trials"] + records,
    }
    write_json(args.out, content)
    _print_checks(content)
    console.print(f"written to {args.out}", markup=False, highlight=False)


def is_selected(library: str, model: str, names: Sequence[str]) -> bool:
    """Return whether a library's model is one of `names`, which are this project's."""
    return model in (names if library == "llmrec_pl" else [COUNTERPARTS[n] for n in names])


def results_of_others(args: argparse.Namespace, fingerprint: str) -> dict[str, list[Record]]:
    """Return the records in `args.out` of trained models that are not in `args.models`.

    Raises:
        DatasetError: the file is missing, or of other data or software.
    """
    remedy = "run without `--models`, or name another file with `--out`."
    if not args.out.is_file():
        raise DatasetError(f"there are no results in {str(args.out)!r} to keep; {remedy}")
    content = json.loads(args.out.read_text(encoding="utf-8"))
    was = {"fingerprint": content["data"]["fingerprint"], **content["software"]}
    now = {"fingerprint": fingerprint, **_software(args)}
    if was != now:
        raise DatasetError(f"{str(args.out)!r} was made with {was}, this run has {now}; {remedy}")
    return {
        part: [
            record
            for record in content[part]
            if record["library"] != "closed form"
            and not is_selected(record["library"], record["model"], args.models)
        ]
        for part in ("chosen", "trials")
    }


def _run_trial(
    trial: Trial,
    store: TrialStore,
    dataset: InteractionDataset,
    data: Path,
    args: argparse.Namespace,
) -> Record:
    record = store.get(trial)
    if record is None:
        if trial.library == "recbole":
            python = recbole_side.prepare_environment(args.environment)
            files = recbole_side.write_atomic_files(dataset, store.folder / "recbole-data")
            outcome = recbole_side.train(trial, python, files, store.folder / "worker")
        else:
            from benchmarks import ours

            outcome = ours.train(trial, data)
        metrics = scoring.evaluate_vectors(outcome.user, outcome.item, dataset, "val")
        record = store.put(trial, outcome, metrics)
    found = record["validation"]
    console.print(
        f"{trial.label()}: validation R@20 {found['recall@20']:.4f} N@20 {found['ndcg@20']:.4f}, "
        f"best epoch {record['best_epoch']} of {record['epochs']}",
        highlight=False,
        soft_wrap=True,
    )
    return record


def _choose(trials: Sequence[Trial], records: Sequence[Record]) -> list[tuple[Trial, Record]]:
    """Return the trial of each library and model with the best validation Recall@20."""
    best: dict[tuple[str, str], tuple[Trial, Record]] = {}
    for trial, record in zip(trials, records, strict=True):
        key = trial.library, trial.model
        if key not in best or record["validation"][SELECT] > best[key][1]["validation"][SELECT]:
            best[key] = trial, record
    return list(best.values())


def _with_seed(trial: Trial, seed: int) -> Trial:
    return dataclasses.replace(trial, budget=dataclasses.replace(trial.budget, seed=seed))


def over_seeds(runs: Sequence[Record], tests: Sequence[Metrics]) -> Record:
    """Average the runs of one setting; a deviation is the sample standard deviation of R@20."""
    validations = [run["validation"] for run in runs]
    result = {
        **runs[0],
        "seeds": [run["budget"]["seed"] for run in runs],
        "validation": {k: statistics.fmean(v[k] for v in validations) for k in validations[0]},
        "test": {k: statistics.fmean(t[k] for t in tests) for k in tests[0]},
        "validation_by_seed": [v[SELECT] for v in validations],
        "test_by_seed": [t[SELECT] for t in tests],
    }
    for name in COSTS:
        result[name] = statistics.fmean(run[name] for run in runs)
    many = len(runs) > 1
    for split, found in (("validation", validations), ("test", tests)):
        result[f"{split}_deviation"] = statistics.stdev(m[SELECT] for m in found) if many else None
    return result


# What a person reads.


def quality_table(results: Sequence[Record], split: str) -> Table:
    """Return recall and NDCG of every chosen trial on one split."""
    first = results[0][split]
    title = f"{split}: {first['users']:,.0f} users, every item ranked"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    table.add_column("library", style="dim")
    for k in scoring.KS:
        table.add_column(f"R@{k}", justify="right")
        if f"recall@{k}" == SELECT:
            table.add_column("± seeds", justify="right", style="dim")
        table.add_column(f"N@{k}", justify="right")
        table.add_column(f"hits@{k}", justify="right", style="dim")
    best = max(record[split][SELECT] for record in results)
    for record in results:
        metrics = record[split]
        cells = []
        for k in scoring.KS:
            cells.append(f"{metrics[f'recall@{k}']:.4f}")
            if f"recall@{k}" == SELECT:
                deviation = record.get(f"{split}_deviation")
                cells.append("" if deviation is None else f"{deviation:.4f}")
            cells += [f"{metrics[f'ndcg@{k}']:.4f}", f"{metrics[f'hits@{k}']:,.0f}"]
        style = "bold" if metrics[SELECT] == best else None
        table.add_row(record["model"], record["library"], *cells, style=style)
    return table


def cost_table(results: Sequence[Record]) -> Table:
    """Return the chosen settings and what the chosen trials cost."""
    table = Table(title="chosen settings and CPU seconds", title_justify="left")
    for name in ("model", "library", "settings"):
        table.add_column(name, overflow="fold")
    for name in ("epochs", "best", "s / epoch", "s / evaluation"):
        table.add_column(name, justify="right")
    for record in results:
        settings = ", ".join(f"{k} {v}" for k, v in record["settings"].items())
        cells = [record["model"], record["library"], settings]
        if "epochs" in record:
            epoch, evaluation = seconds(record)
            cells += [f"{record['epochs']:.0f}", f"{record['best_epoch']:.0f}"]
            cells += [f"{epoch:.3f}", f"{evaluation:.3f}"]
        table.add_row(*cells)
    return table


def seconds(record: Record) -> tuple[float, float]:
    """Return CPU seconds of one training epoch and of one evaluation."""
    return (
        record["cpu_seconds_training"] / record["epochs"],
        record["cpu_seconds_evaluation"] / record["evaluations"],
    )


def speed_ratios(results: Sequence[Record]) -> dict[str, float]:
    """Return RecBole's CPU time over ours, of an epoch and its evaluation, for trained models.

    Both must have been run at the same batch size; a pair with different ones is left out.
    """
    cost = {
        (r["library"], r["model"]): (sum(seconds(r)), r["settings"]["batch_size"])
        for r in results
        if "batch_size" in r["settings"]
    }
    ratios = {}
    for ours, theirs in COUNTERPARTS.items():
        mine, other = cost.get(("llmrec_pl", ours)), cost.get(("recbole", theirs))
        if mine and other and mine[1] == other[1]:
            ratios[ours] = other[0] / mine[0]
    return ratios


def evaluator_difference(records: Sequence[Record]) -> dict[str, float]:
    """Return how far a library's own validation R@20 is from this evaluator's, at most."""
    differences: dict[str, float] = {}
    for record in records:
        library = record["library"]
        found = record["validation"][SELECT] - record["reported_by_the_library"][SELECT]
        differences[library] = max(differences.get(library, 0.0), abs(found))
    return differences


def _print_checks(content: Record) -> None:
    for library, difference in content["evaluator_difference"].items():
        console.print(
            f"{library}'s own validation R@20 is within {difference:.1e} of this evaluator's",
            highlight=False,
        )
    for model, ratio in content["speed_ratio"].items():
        console.print(
            f"{model}: RecBole takes {ratio:.2f} times the CPU time an epoch with its evaluation",
            highlight=False,
        )


def _software(args: argparse.Namespace) -> dict[str, str]:
    names = ["torch", "lightning", "numpy", "scipy"]
    versions = {name: importlib.metadata.version(name) for name in names}
    if not args.skip_recbole:
        versions["recbole"] = recbole_side.VERSION
        versions["recbole environment"] = ", ".join(
            r for r in recbole_side.REQUIREMENTS if "==" in r
        )
    return {"python": platform.python_version(), **versions}
