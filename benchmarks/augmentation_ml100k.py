"""What an augmentation does to LLMRec on ML-100K, beside its ablations and placebos.

Makes the data set, text features, candidate pools of a LightGCN, the augmentation and its
controls by the commands a user types, then trains each condition with several seeds. Settings are
those of configs/ml-100k.yaml throughout and nothing is tuned for a condition. The augmentation is
by heuristics unless a folder made by an LLM is named. A run that was stopped goes on.

    python -m benchmarks.augmentation_ml100k
    python -m benchmarks.augmentation_ml100k --items omdb.jsonl --augmentation augmentation/run
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of one thread are comparable
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from benchmarks import comparison, scoring
from benchmarks.trials import Budget, Trial, TrialStore, write_json
from llmrec_pl.data.augmentation import read_manifest
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import LLMRecError

SEEDS = (2026, 1, 2, 3, 4)
BUDGET = Budget(max_epochs=100, patience=15)
LLMREC: dict[str, Any] = {
    "lr": 3e-3,
    "weight_decay": 0.01,
    "sampling": "user",
    "batch_size": 1024,
}
PLACEBOS = ("shuffled-profiles", "random-embeddings")
CONFIG = Path("configs/augment/ml-100k.yaml")
Condition = tuple[str, dict[str, Any]]


def main() -> None:
    """Make what is missing, train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", metavar="PATH", help="ML-100K as a folder or zip")
    parser.add_argument("--items", metavar="FILE", help="further columns of the films")
    parser.add_argument(
        "--augmentation", type=Path, metavar="DIR", help="an export made by an LLM, of --data"
    )
    parser.add_argument("--model", default="counts", help="heuristic: counts or minilm")
    parser.add_argument("--embed-model", default="hashing-256", help="or minilm")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), metavar="N")
    parser.add_argument("--quick", action="store_true", help="simulated films, two epochs")
    name = "augmentation_ml100k"
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks") / name)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    args = parser.parse_args()
    with comparison.errors_for_people():
        data = prepare(args)
        measure(data, conditions(args, data), args)


def command(module: str, *arguments: object) -> None:
    """Run a command as a user would.

    Raises:
        LLMRecError: it failed; it has said why.
    """
    line = [sys.executable, "-m", module, *map(str, arguments)]
    if subprocess.run(line, check=False).returncode:
        raise LLMRecError(f"`{' '.join(line[1:])}` failed, see above.")


def prepare(args: argparse.Namespace) -> Path:
    """Make the data set and its text features, once."""
    data: Path = args.work / ("simulated" if args.quick else "ml-100k")
    if not (data / "dataset.json").is_file():
        options = [o for key in ("source", "items") for o in _option(key, getattr(args, key))]
        command("llmrec_pl", "prepare", data.name, *options, "--out", data)
        text = ["--text", "title,year,genres", "--encoder", "tfidf"]
        command("llmrec_pl", "features", data, *text)
    return data


def _option(name: str, value: object) -> list[object]:
    return [] if value is None else [f"--{name}", value]


def pool_of(data: Path, epochs: int) -> Path:
    """Train a LightGCN and write its candidates, once."""
    folder = data.parent / f"{data.name}-pool"
    pool = folder / "candidates.parquet"
    if not pool.is_file():
        run = folder / "run"
        config = ["--config", "configs/ml-100k.yaml", "--config", "configs/models/lightgcn.yaml"]
        limits = ["--trainer.max_epochs", epochs, "--trainer.default_root_dir", run]
        command("llmrec_pl", "fit", *config, "--data.root", data, *limits)
        made = max(run.rglob("best.ckpt"), key=lambda path: path.stat().st_mtime)
        trained = ["--config", made.parents[1] / "config.yaml", "--ckpt_path", made]
        command("llmrec_pl", "predict", *trained, "--predictions.out", folder)
    return pool


def conditions(args: argparse.Namespace, data: Path) -> list[Condition]:
    """Return what is compared: names, and what each gives to the data module."""
    made = args.work / f"augmentation-{args.model}-{args.embed_model}"
    base = ["--config", CONFIG, "--dataset", data, "--embed-model", args.embed_model]
    base += ["--provider", "heuristic", "--model", args.model, "--store", f"{made}.store"]
    found = {"augmented": made}
    if args.augmentation is not None:
        found = {"augmented": args.augmentation}
    else:
        found |= {name: Path(f"{made}-{name}") for name in (*PLACEBOS, "random-pool")}
        pool = ["--pool", pool_of(data, 2 if args.quick else 60)]
        command("augment", "run", *base, *pool, "--out", made)
        for placebo in PLACEBOS:
            out = ["--out", found[placebo], "--placebo", placebo]
            command("augment", "export", *base, *pool, *out)
        command("augment", "run", *base, "--pool", "random", "--out", found["random-pool"])
    whole = {"augmentation": str(found.pop("augmented")), "llm_edge_rate": 0.1}
    ablations = {
        "augmented": whole,
        "w/o-u-i": {**whole, "llm_edge_rate": 0.0},
        "w/o-u": {**whole, "llm_parts": ["edges", "attributes"]},
        "w/o-u&i": {**whole, "llm_parts": ["edges"]},
    }
    placebos = {f"placebo {n}": {**whole, "augmentation": str(p)} for n, p in found.items()}
    return [("none", {}), *ablations.items(), *placebos.items()]


def measure(data: Path, given: list[Condition], args: argparse.Namespace) -> None:
    """Train every condition with every seed, then open the test split once."""
    dataset = InteractionDataset.load(data)
    store = TrialStore(args.work / "trials", dataset.fingerprint)
    seeds = SEEDS[: args.seeds]
    budget = Budget(max_epochs=2, patience=2) if args.quick else BUDGET
    trials = [
        [_trial(name, settings, Budget(**{**vars(budget), "seed": seed})) for seed in seeds]
        for name, settings in given
    ]
    runs = [[_run(trial, store, dataset, data) for trial in row] for row in trials]
    opened = InteractionDataset.load(data, open_test=True)
    results = []
    for (name, _), row, records in zip(given, trials, runs, strict=True):
        tests = [scoring.evaluate_vectors(*store.vectors(t), opened, "test") for t in row]
        results.append({**comparison.over_seeds(records, tests), "model": name, "library": ""})
        results[-1]["settings"] = {**records[0]["settings"], "augmentation": None}  # a place
    for split in ("validation", "test"):
        comparison.console.print(comparison.quality_table(results, split))
    manifest = read_manifest(Path(given[1][1]["augmentation"]))
    by = {key: manifest[key] for key in ("provider", "model", "prompt_set", "content_id")}
    comparison.console.print(f"augmented by {by['provider']}, {by['model']}", highlight=False)
    about = {"name": dataset.name, "fingerprint": dataset.fingerprint}
    coverage = {"coverage": manifest["coverage"], "fields": manifest["fields"]}
    write_json(args.out, {"data": about, "augmentation": {**by, **coverage}, "results": results})
    comparison.console.print(f"written to {args.out}", markup=False, highlight=False)


def _trial(name: str, settings: dict[str, Any], budget: Budget) -> Trial:
    content = None
    if "augmentation" in settings:
        content = read_manifest(Path(settings["augmentation"]))["content_id"]
    label = {"condition": name, "content_id": content}
    return Trial("llmrec_pl", "LLMRec", {**LLMREC, **settings, **label}, budget)


def _run(
    trial: Trial, store: TrialStore, dataset: InteractionDataset, data: Path
) -> dict[str, Any]:
    record = store.get(trial)
    if record is None:
        from benchmarks import ours

        outcome = ours.train(trial, data)
        metrics = scoring.evaluate_vectors(outcome.user, outcome.item, dataset, "val")
        record = store.put(trial, outcome, metrics)
    comparison.console.print(
        f"{trial.settings['condition']}, seed {trial.budget.seed}: validation R@20 "
        f"{record['validation']['recall@20']:.4f}, best epoch {record['best_epoch']}",
        highlight=False,
    )
    return record


if __name__ == "__main__":
    main()
