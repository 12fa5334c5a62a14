"""What LATTICE and MICRO need in memory and seconds where items are many.

Trains each some steps on random data, one refresh of its item graphs included, in a process of
its own, and reports the highest resident memory beside the limit. CPU seconds do not depend on
who else uses the machine; divide by the cores for an idle one.

    python -m benchmarks.item_graph_memory
    python -m benchmarks.item_graph_memory --quick --out quick.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.memory import peak_gib
from benchmarks.trials import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
MODELS = ("lattice.LATTICE", "micro.MICRO")
WIDTHS = {"text": 384, "image": 512}
N_USERS, N_ITEMS, N_EDGES, STEPS, BATCH = 60_000, 60_000, 600_000, 5, 2048
MOST_GIB, MOST_REFRESH_S = 8.0, 120.0


def main() -> None:
    """Measure each model in a process of its own, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--model", choices=MODELS, help="measure one here and print its JSON")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/item_graph_memory.json"),
        metavar="FILE",
        help="figures go there (%(default)s)",
    )
    args = parser.parse_args()
    scale = 10 if args.quick else 1
    if args.model:
        print(json.dumps(measure(args.model, scale)))
        return
    found = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "size": {
            "users": N_USERS // scale,
            "items": N_ITEMS // scale,
            "edges": N_EDGES // scale,
            "features": WIDTHS,
            "batch": BATCH,
        },
        "limits": {"peak_gib": MOST_GIB, "refresh_cpu_s": MOST_REFRESH_S},
        "models": [apart(model, args.quick) for model in MODELS],
    }
    show(found["models"])
    write_json(args.out, found)


def apart(model: str, quick: bool) -> dict[str, Any]:
    """Run `measure` in a process of its own; peak memory is a process's."""
    command = [sys.executable, "-m", "benchmarks.item_graph_memory", "--model", model]
    command += ["--quick"] if quick else []
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(run.stdout)
    return said


def measure(name: str, scale: int) -> dict[str, Any]:
    """Build a model on random data, refresh it once and train some steps.

    Args:
        name: module and class under ``llmrec_pl.models``.
        scale: divides users, items and edges.
    """
    import torch

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Feature, FeatureStore
    from llmrec_pl.data.triplets import TripletSampler

    random = np.random.default_rng(0)
    n_users, n_items, n_edges = (n // scale for n in (N_USERS, N_ITEMS, N_EDGES))
    code = np.unique(random.integers(n_users * n_items, size=n_edges))
    edges = np.stack([code // n_items, code % n_items])
    dataset = InteractionDataset.from_edges("random", n_users, n_items, edges)
    features = FeatureStore(
        {
            n: Feature(n, "item", "modality", random.normal(size=(n_items, d)).astype(np.float32))
            for n, d in WIDTHS.items()
        }
    )
    before = peak_gib()
    module, _, model_class = name.partition(".")
    model = getattr(import_module(f"llmrec_pl.models.{module}"), model_class)()
    seconds = {"build": timed(lambda: model.build_seeded(dataset, features, seed=0))}
    seconds["refresh"] = timed(model.refresh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler = TripletSampler(dataset.train, BATCH, seed=0)

    def step(number: int) -> None:
        triplets = sampler.batch(0, number)
        batch = {
            key: torch.from_numpy(getattr(triplets, key))
            for key in ("user", "pos_item", "neg_item", "source")
        }
        optimizer.zero_grad()
        sum(model.losses(batch).values()).backward()
        optimizer.step()

    steps = timed(lambda: [step(n) for n in range(STEPS)])
    seconds["step"] = {clock: spent / STEPS for clock, spent in steps.items()}
    return {
        "model": model_class,
        "threads": torch.get_num_threads(),
        "data_gib": before,
        "peak_gib": peak_gib(),
        "seconds": seconds,
    }


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of a call: on the wall, and of the processor on all cores."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor}


def show(rows: list[dict[str, Any]]) -> None:
    """Print one row a model."""
    table = Table(title="memory, and CPU seconds of all cores")
    for column in ("model", "peak GiB", "of which data", "build s", "refresh s", "step s", "ok"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        seconds = {key: spent["cpu"] for key, spent in row["seconds"].items()}
        fine = row["peak_gib"] < MOST_GIB and seconds["refresh"] < MOST_REFRESH_S
        table.add_row(
            row["model"],
            f"{row['peak_gib']:.2f}",
            f"{row['data_gib']:.2f}",
            *(f"{seconds[key]:.1f}" for key in ("build", "refresh", "step")),
            "yes" if fine else "NO",
        )
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    main()
