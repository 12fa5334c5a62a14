"""Quality on ML-100K against RecBole: the same split, budget and evaluator for both libraries.

Rating >= 4 is a positive; 80/10/10 of each user's history at random. Makes the data set and an
environment of RecBole's own where they are missing. A run that was stopped goes on.

    python -m benchmarks.quality_ml100k
    python -m benchmarks.quality_ml100k --models EASE ItemKNN
    python -m benchmarks.quality_ml100k --quick --data data/simulated --out quick.json
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of one thread are comparable

from benchmarks import comparison
from benchmarks.trials import Budget, Trial, grid
from llmrec_pl.errors import DatasetError

PROTOCOL = {"min_rating": 4.0, "split": "random", "ratios": [0.8, 0.1, 0.1]}
# Recall@20 creeps up for 200 epochs with a noise of .003; less patience makes the choice a lottery.
BUDGET = Budget(max_epochs=300, patience=40, eval_every=1)
NGCF_BUDGET = Budget(max_epochs=120, patience=20, eval_every=1)
SEEDS = (2026, 1, 2)


def trials() -> list[Trial]:
    """Return as many trials for a model here as for its counterpart.

    RecBole's BPR has no L2 term, so both sides use the weight decay of Adam. `require_pow` makes
    the term of its LightGCN half the squared norm over the batch size, as it is here.
    """
    rates, decay, layers, weights = [1e-3, 3e-3], [1e-5, 3e-5], [2], [1e-4, 1e-3]
    batch = {"batch_size": [2048]}
    ours, theirs = partial(grid, "llmrec_pl"), partial(grid, "recbole")
    return [
        *ours(
            "MF", BUDGET, lr=rates, weight_decay=decay, optimizer=["Adam"], l2_weight=[0.0], **batch
        ),
        *theirs("BPR", BUDGET, lr=rates, weight_decay=decay, **batch),
        *ours("LightGCN", BUDGET, n_layers=layers, lr=[3e-3], l2_weight=weights, **batch),
        *theirs(
            "LightGCN",
            BUDGET,
            n_layers=layers,
            lr=[3e-3],
            reg_weight=weights,
            require_pow=[True],
            **batch,
        ),
        *_ngcf_trials(),
        *_closed_form_trials(),
    ]


def _ngcf_trials() -> list[Trial]:
    """Return trials of NGCF with the paper's L2 term, of all parameters: the weight decay of Adam.

    The terms of both libraries differ, ours of embeddings and RecBole's of final vectors, and
    are off.
    """
    shared: dict[str, list[Any]] = {
        "lr": [5e-3],
        "weight_decay": [1e-6, 1e-5, 3e-5, 1e-4],
        "message_dropout": [0.1],
        "batch_size": [2048],
    }
    return [
        *grid(
            "llmrec_pl",
            "NGCF",
            NGCF_BUDGET,
            **shared,
            n_layers=[2],
            l2_weight=[0.0],
            optimizer=["Adam"],
        ),
        *grid(
            "recbole", "NGCF", NGCF_BUDGET, **shared, hidden_size_list=[[64, 64]], reg_weight=[0.0]
        ),
    ]


def _closed_form_trials() -> list[Trial]:
    """Return trials of EASE and ItemKNN, which take no budget; RecBole's has plain cosine only."""
    ours, theirs = partial(grid, "llmrec_pl"), partial(grid, "recbole")
    weights, sizes, shrinkages = [100.0, 200.0, 300.0, 500.0], [20, 50, 100, 200], [0.0, 50.0]
    return [
        *ours("EASE", BUDGET, l2_weight=weights),
        *theirs("EASE", BUDGET, reg_weight=weights),
        *ours("ItemKNN", BUDGET, n_neighbours=sizes, shrinkage=shrinkages, weighting=["none"]),
        *theirs("ItemKNN", BUDGET, k=sizes, shrink=shrinkages),
    ]


def quick_trials() -> list[Trial]:
    """Return tiny trials of this project's side, trained and in closed form."""
    budget = Budget(max_epochs=3, patience=3)
    settings = {"lr": 1e-2, "batch_size": 512}
    trained = [Trial("llmrec_pl", name, dict(settings), budget) for name in ("MF", "LightGCN")]
    return [*trained, Trial("llmrec_pl", "EASE", {"l2_weight": 100.0}, budget)]


def prepare(data: Path, source: Path | None) -> None:
    """Make the data set unless it is there.

    Raises:
        DatasetError: what is there was made with another protocol.
    """
    from llmrec_pl.cli import main

    if not (data / "dataset.json").exists():
        arguments = ["prepare", "ml-100k", "--out", str(data), "--min-rating", "4"]
        main([*arguments, *(["--source", str(source)] if source else [])])
    protocol = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["protocol"]
    for key, value in PROTOCOL.items():
        if protocol[key] != value:
            raise DatasetError(
                f"data set {str(data)!r} was made with {key} {protocol[key]!r}, the benchmark "
                f"needs {value!r}; name another folder with `--data`."
            )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality_ml100k",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), metavar="DIR")
    parser.add_argument("--source", type=Path, metavar="PATH", help="raw ML-100K, else fetched")
    parser.add_argument("--quick", action="store_true", help="tiny trials, only this project's")
    comparison.add_arguments(parser, "quality_ml100k")
    args = parser.parse_args()
    with comparison.errors_for_people():
        if args.quick:
            args.skip_recbole = True
        else:
            prepare(args.data, args.source)
        if args.quick:
            comparison.run(quick_trials(), args.data, args)
        else:
            comparison.run(trials(), args.data, args, SEEDS)


if __name__ == "__main__":
    main()
