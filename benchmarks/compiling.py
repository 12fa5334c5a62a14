"""Does `torch.compile` pay on a CPU?

Takes steps of MF, LightGCN and LLMRec at Netflix size as they are and with compiled losses, on one
thread, and says after how many steps the compiler's own time is earned back, if ever.

    python -m benchmarks.compiling
    python -m benchmarks.compiling --models mf --scale 0.01 --steps 5 --out quick.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.processes import apart, console, machine
from benchmarks.trials import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrec_pl.models.base import Recommender

MODELS = ("mf", "lightgcn", "llmrec")
BATCH = 2048
WARM_UP = 3


def main(args: Sequence[str] | None = None) -> None:
    """Measure each model both ways in a process of its own, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--scale", type=float, default=1.0, help="of Netflix size (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="the median counts (%(default)s)")
    parser.add_argument("--measure", action="store_true", help="measure here and print JSON")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/compiling.json"),
        metavar="FILE",
        help="figures go there (%(default)s)",
    )
    options = parser.parse_args(args)
    if options.measure:
        print(json.dumps(measure(options.models[0], options.scale, options.steps)))
        return
    sizes = ["--scale", str(options.scale), "--steps", str(options.steps)]
    rows = [
        apart("benchmarks.compiling", "--measure", "--models", name, *sizes)
        for name in options.models
    ]
    show(rows)
    write_json(options.out, {"machine": machine(), "batch_size": BATCH, "rows": rows})
    console().print(f"written to {options.out}")


def measure(name: str, scale: float, steps: int) -> dict[str, Any]:
    """Return the CPU seconds of a step, plain and compiled, and of compiling.

    Args:
        name: one of `MODELS`.
        scale: of Netflix size.
        steps: how many are timed.
    """
    import torch

    from benchmarks.synthetic import netflix_size
    from llmrec_pl.data.triplets import TripletSampler

    dataset, features = netflix_size(repeated=True, scale=scale)
    sampler = TripletSampler(dataset.train, BATCH, seed=0)
    batches = []
    for number in range(WARM_UP + steps):
        triplets = sampler.batch(*divmod(number, sampler.n_batches))
        batches.append({key: torch.from_numpy(value) for key, value in vars(triplets).items()})
    found: dict[str, Any] = {"model": name, "torch": torch.__version__}
    for way in ("plain", "compiled"):
        model = made(name)
        model.expected_batch_size = BATCH
        model.build_seeded(dataset, features, seed=0)
        losses = model.losses
        if way == "compiled":
            losses = torch.compile(losses, dynamic=True)
        try:
            spent = timed(model.train(), losses, batches)
        except Exception as error:
            found[f"{way}_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        found[f"{way}_s"] = statistics.median(spent[WARM_UP:])
        found[f"{way}_start_s"] = sum(spent[:WARM_UP])
    return found


def timed(
    model: Recommender, losses: Callable[..., Any], batches: Sequence[dict[str, Any]]
) -> list[float]:
    """Take a step with each batch; return the seconds of each, of a clock on the wall.

    A compiler works in processes of its own, whose seconds this process does not count.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    spent = []
    for batch in batches:
        start = time.perf_counter()
        optimizer.zero_grad()
        sum(losses(batch).values()).backward()
        optimizer.step()
        spent.append(time.perf_counter() - start)
    return spent


def made(name: str) -> Recommender:
    """Return an unbuilt model at its defaults.

    Args:
        name: one of `MODELS`.
    """
    from llmrec_pl.models.lightgcn import LightGCN
    from llmrec_pl.models.llmrec import LLMRec
    from llmrec_pl.models.mf import MF

    classes: dict[str, type[Recommender]] = {"mf": MF, "lightgcn": LightGCN, "llmrec": LLMRec}
    return classes[name]()


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print one row a model."""
    table = Table(title="a step with and without torch.compile, one thread, wall clock")
    for column in ("model", "plain ms", "compiled ms", "first steps s", "earned back after"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        if "compiled_error" in row:
            plain = f"{1e3 * row['plain_s']:.1f}"
            table.add_row(row["model"], plain, "fails", "", "never")
            continue
        gained = row["plain_s"] - row["compiled_s"]
        lost = row["compiled_start_s"] - row["plain_start_s"]
        table.add_row(
            row["model"],
            f"{1e3 * row['plain_s']:.1f}",
            f"{1e3 * row['compiled_s']:.1f}",
            f"{row['compiled_start_s']:.1f}",
            f"{lost / gained:,.0f} steps" if gained > 0 else "never",
        )
    console().print(table)


if __name__ == "__main__":
    main()
