"""Quality on the released LLMRec Netflix interactions: graph models against RecBole's.

Reads the authors' `train.json` alone and carves validation and test out of it, so that the split
is the same whichever of their files are at hand. No features: what is compared is the graph-only
part. All of the 17,366 items are ranked. A run that was stopped goes on.

    python -m benchmarks.quality_netflix --source PATH
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of one thread are comparable

from benchmarks import comparison
from benchmarks.trials import Budget, Trial, grid
from llmrec_pl.errors import DatasetError

BUDGET = Budget(max_epochs=150, patience=4, eval_every=5)
N_ITEMS = 17_366


def trials() -> list[Trial]:
    """Return two trials for each trained model."""
    rate, batch, layers, weights = [3e-3], [2048], [3], [1e-4, 1e-3]
    ours, theirs = partial(grid, "llmrec_pl"), partial(grid, "recbole")
    return [
        *ours("MF", BUDGET, lr=rate, l2_weight=[1e-3, 1e-2], batch_size=batch),
        *ours("LightGCN", BUDGET, lr=rate, l2_weight=weights, n_layers=layers, batch_size=batch),
        *ours("LLMRec", BUDGET, lr=rate, prune_rate=[0.0, 0.71], batch_size=batch),
        *theirs("BPR", BUDGET, lr=rate, weight_decay=[1e-6, 1e-5], batch_size=batch),
        *theirs(
            "LightGCN",
            BUDGET,
            lr=rate,
            reg_weight=weights,
            n_layers=layers,
            require_pow=[True],
            batch_size=batch,
        ),
    ]


def prepare(data: Path, source: Path | None) -> None:
    """Make the data set unless it is there.

    Raises:
        DatasetError: it is missing and `source` does not hold ``train.json``.
    """
    from llmrec_pl.cli import main

    if (data / "dataset.json").exists():
        return
    if source is None or not (source / "train.json").is_file():
        raise DatasetError(
            f"there is no data set in {str(data)!r} and `--source` is {str(source)!r}; name the "
            "folder of the LLMRec release that holds `train.json`."
        )
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source / "train.json", folder)
        arguments = ["--source", folder, "--name", data.name, "--out", str(data)]
        sizes = ["--n-items", str(N_ITEMS), "--split", "given", "--ratios", "0.8", "0.1", "0.1"]
        main(["prepare", "released", *arguments, *sizes])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality_netflix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", type=Path, metavar="PATH", help="folder of the release, with train.json"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(".cache/benchmarks/data/netflix-carved"),
        metavar="DIR",
        help="data set folder, made if missing (%(default)s)",
    )
    comparison.add_arguments(parser, "quality_netflix")
    args = parser.parse_args()
    with comparison.errors_for_people():
        prepare(args.data, args.source)
        comparison.run(trials(), args.data, args)


if __name__ == "__main__":
    main()
