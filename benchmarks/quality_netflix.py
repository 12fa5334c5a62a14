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
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of one thread are comparable

from benchmarks import comparison
from benchmarks.trials import Budget, Trial, grid
from llmrec_pl.errors import DatasetError

BUDGET = Budget(max_epochs=80, patience=3, eval_every=8)  # RecBole's evaluation is slow here
N_ITEMS = 17_366


def trials() -> list[Trial]:
    """Return two trials for each trained model: two learning rates at one regularisation."""
    shared: dict[str, list[Any]] = {"lr": [3e-3, 1e-2], "batch_size": [2048]}
    layers: dict[str, list[Any]] = {"n_layers": [3]}
    decay: dict[str, list[Any]] = {"weight_decay": [1e-5]}
    ours, theirs = partial(grid, "llmrec_pl"), partial(grid, "recbole")
    return [
        *ours("MF", BUDGET, **shared, **decay, optimizer=["Adam"], l2_weight=[0.0]),
        *ours("LightGCN", BUDGET, **shared, **layers, l2_weight=[1e-3]),
        *ours("LLMRec", BUDGET, **shared, sampling=["user"]),
        *theirs("BPR", BUDGET, **shared, **decay),
        *theirs("LightGCN", BUDGET, **shared, **layers, reg_weight=[1e-3], require_pow=[True]),
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
