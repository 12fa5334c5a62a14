r"""How much faster do two processes on two cores train than one held to one core?

Made-up data of Netflix size (13,187 users, 17,366 items, 68,933 edges, LLMRec's features), the
batch size of each model's config in every process. Each way runs in processes of its own, one
after another, in several rounds; a row is the median round. Seconds of the processor beside those
of the clock show what a busy machine cost: ``cpu`` is the ratio that idle cores would leave, if
no process waited for another. ``MiB`` is what a process holds at most in a step, without the data.

    python -m benchmarks.data_parallel
    python -m benchmarks.data_parallel --models mf lightgcn --ways one sharded \
        --size 400000 200000 800000 --steps 5 --rounds 1 --out sharded.json
    python -m benchmarks.data_parallel --quick --out quick.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.memory import resident_mib
from benchmarks.trials import write_json
from llmrec_pl.configs import read_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lightning as L

    from llmrec_pl.data.datamodule import RecDataModule
    from llmrec_pl.models.base import Recommender

ROOT = Path(__file__).parents[1]
MODELS = ("llmrec", "lightgcn", "mf", "mf, lazy")
WAYS = ("one", "ddp", "ddp, less copying", "sharded")
TARGET, TINY = 1.6, (300, 200, 1500)
WARM_UP, STEPS, ROUNDS = 10, 60, 3


def main() -> None:
    """Measure each model each way, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny data, one round")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("USERS", "ITEMS", "EDGES"),
        help="other data, without features",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/data_parallel.json"),
        metavar="FILE",
        help="figures go there, the plot beside them (%(default)s)",
    )
    parser.add_argument("--measure", nargs=3, metavar=("MODEL", "WAY", "FOLDER"), help="one only")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], args.measure[1], Path(args.measure[2]), args.steps, args.size)
        return
    if args.quick:
        args.rounds, args.steps, args.size = 1, min(args.steps, 5), args.size or TINY
    found = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "size": args.size or "Netflix",
        "steps": args.steps,
        "rounds": args.rounds,
        "target": TARGET,
        "trials": trials(args),
    }
    found["rows"] = summarise(found["trials"])
    show(found["rows"])
    write_json(args.out, found)
    plot(found["rows"], args.out.with_suffix(".png"))


def trials(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every way once a round, so that slow hours of a machine meet all of them."""
    rows = []
    for number in range(args.rounds):
        for model in args.models:
            for way in args.ways:
                if way == "sharded" and "lazy" in model:
                    continue  # sharded tables have dense gradients
                row = {"round": number, "model": model, "way": way, "load": os.getloadavg()[0]}
                rows.append(row | apart(model, way, args.steps, args.size))
                rate = rows[-1]["triplets_per_second"]
                print(f"{model}, {way}: {rate:,.0f} triplets a second", flush=True)
    return rows


def apart(model: str, way: str, steps: int, size: Sequence[int] | None) -> dict[str, Any]:
    """Run `measure` in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.data_parallel", "--steps", str(steps)]
        command += ["--measure", model, way, folder]
        command += ["--size", *map(str, size)] if size else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{model}, {way} failed:\n{done.stderr}")
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank*.json"))]
    wall = max(rank["wall"] for rank in ranks)
    cpu = max(rank["cpu"] for rank in ranks)
    triplets = ranks[0]["batch_size"] * ranks[0]["batches_a_step"] * steps
    return {
        "processes": len(ranks),
        "batch_size": ranks[0]["batch_size"],
        "triplets_per_second": triplets / wall,
        "triplets_per_cpu_second": triplets / cpu,
        "wall_ms_per_step": 1000 * wall / steps,
        "cpu_ms_per_step": 1000 * cpu / steps,
        "peak_mib": max(rank["peak_mib"] for rank in ranks),
    }


# One measurement.


def measure(model: str, way: str, folder: Path, steps: int, size: Sequence[int] | None) -> None:
    """Train some steps with Lightning's trainer and write each process's seconds.

    Args:
        model: one of `MODELS`.
        way: one of `WAYS`.
        folder: ``rank<n>.json`` goes there.
        steps: timed steps, after `WARM_UP` others.
        size: users, items and edges; of Netflix with features if None.
    """
    import lightning as L
    import torch

    torch.set_num_threads(1)
    hold_to_a_core()
    data, built = data_of(model, size), model_of(model)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1 if way == "one" else 2,
        strategy=strategy_of(way),
        max_steps=WARM_UP + steps,
        callbacks=[clock(folder, data.batch_size)],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(built, data)


def hold_to_a_core() -> None:
    """Bind this process to one core of its own, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        # The first process starts the second, which inherits the single core.
        every = [int(c) for c in os.environ.get("BENCHMARK_CORES", "").split(",") if c] or cores
        os.environ["BENCHMARK_CORES"] = ",".join(map(str, every))
        os.sched_setaffinity(0, {every[rank % len(every)]})


def strategy_of(way: str) -> Any:  # noqa: ANN401
    """Build what the overlays in ``configs/parallel`` ask for."""
    if way in ("one", "ddp"):
        return {"one": "auto"}.get(way, way)
    name = {"sharded": "row_sharded", "ddp, less copying": "ddp"}[way]
    return instance(read_yaml(ROOT / f"configs/parallel/{name}.yaml")["trainer"]["strategy"])


def instance(section: dict[str, Any], **more: Any) -> Any:  # noqa: ANN401
    """Make an object of a config's ``class_path`` and ``init_args``."""
    return class_of(section)(**{**section["init_args"], **more})


def class_of(section: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the class that a config names."""
    module, _, name = section["class_path"].rpartition(".")
    return getattr(import_module(module), name)


def model_of(model: str) -> Recommender:
    """Build a model as its config does, with its optimizer; "lazy" with sparse gradients."""
    from functools import partial

    name, _, lazy = model.partition(", ")
    section = read_yaml(ROOT / f"configs/models/{name}.yaml")["model"]
    chosen = section["init_args"].pop("optimizer")
    more: dict[str, Any] = {"optimizer": partial(class_of(chosen), **chosen["init_args"])}
    if lazy:
        from llmrec_pl.optimizers import LazyAdamW

        more = {"optimizer": partial(LazyAdamW, lr=1e-3), "sparse_gradients": True}
    built: Recommender = instance(section, **more)
    return built


def data_of(model: str, size: Sequence[int] | None) -> RecDataModule:
    """Give the made-up data to a data module, with the batch size of the model's config."""
    from benchmarks.synthetic import netflix_size, power_law_edges
    from llmrec_pl.data.datamodule import RecDataModule
    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import FeatureStore

    if size:
        n_users, n_items, n_edges = size
        edges = power_law_edges(n_users, n_items, n_edges)
        dataset = InteractionDataset.from_edges("made-up", n_users, n_items, edges)
        features = FeatureStore({})
    else:
        dataset, features = netflix_size(repeated=True)
    batch_size = read_yaml(ROOT / f"configs/models/{model.partition(', ')[0]}.yaml")["data"][
        "batch_size"
    ]

    class InMemory(RecDataModule):
        """Has what `setup` would read from a folder."""

        def setup(self, stage: str | None = None) -> None:
            self._dataset, self._features = dataset, features

    return InMemory("made-up", batch_size=min(batch_size, len(dataset.train.data) // 20))


def clock(folder: Path, batch_size: int) -> L.Callback:
    """Return a callback that measures the steps after the first `WARM_UP`; make it after data."""
    import lightning as L

    from llmrec_pl.data.shares import batch_share

    before = resident_mib("VmRSS")

    class Clock(L.Callback):
        """Starts where all processes have warmed up, and writes where training ends."""

        def on_train_batch_start(self, trainer: L.Trainer, *rest: object) -> None:
            if trainer.global_step == WARM_UP and not hasattr(self, "wall"):
                trainer.strategy.barrier()
                reset_peak()
                self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_train_end(self, trainer: L.Trainer, *rest: object) -> None:
            spent = {
                "wall": time.perf_counter() - self.wall,
                "cpu": time.process_time() - self.cpu,
                "batch_size": batch_size,
                "batches_a_step": batch_share(trainer).size,
                "peak_mib": resident_mib("VmHWM") - before,
            }
            write_json(folder / f"rank{trainer.global_rank}.json", spent)

    return Clock()


def reset_peak() -> None:
    """Begin a new peak of resident memory, where Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# What comes out.


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the median of the rounds, and ratios to one process within each round."""
    result = []
    for model, way in dict.fromkeys((row["model"], row["way"]) for row in rows):
        own = [r for r in rows if (r["model"], r["way"]) == (model, way)]
        one = {r["round"]: r for r in rows if (r["model"], r["way"]) == (model, "one")}
        summary = {"model": model, "way": way}
        for key in own[0].keys() - {"round", "model", "way"}:
            summary[key] = statistics.median(r[key] for r in own)
        for ratio, key in (("wall", "triplets_per_second"), ("cpu", "triplets_per_cpu_second")):
            of_rounds = [r[key] / one[r["round"]][key] for r in own if r["round"] in one]
            summary[f"{ratio}_ratio"] = statistics.median(of_rounds) if of_rounds else None
        result.append(summary)
    return result


def show(rows: list[dict[str, Any]]) -> None:
    """Print one row for each model and way."""
    table = Table(title="triplets a second, and how many times those of one process")
    for column in ("model", "way", "triplets / s", "times", "cpu", "step ms", "cpu ms", "MiB"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for row in rows:
        ratios = [row["wall_ratio"], row["cpu_ratio"]]
        table.add_row(
            *(row["model"], row["way"], f"{row['triplets_per_second']:,.0f}"),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            *(f"{row[f'{kind}_ms_per_step']:.1f}" for kind in ("wall", "cpu")),
            f"{row['peak_mib']:,.0f}",
        )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print(f"target: {TARGET} times the triplets of one process")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw both ratios of each model and way beside the target."""
    from matplotlib.figure import Figure

    bars = [row for row in rows if row["way"] != "one" and row["wall_ratio"] is not None]
    figure = Figure(figsize=(8.0, 0.9 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(bars)):
        axes.barh(place, row["wall_ratio"], color="#1f5fa8", height=0.6)
        axes.plot([row["cpu_ratio"]] * 2, [place - 0.3, place + 0.3], color="black", lw=2)
        axes.annotate(f"{row['wall_ratio']:.2f}", (0.02, place), color="white", va="center")
    axes.axvline(TARGET, color="#c2410c", lw=2)
    axes.set_yticks(range(len(bars)), [f"{r['model']}: {r['way']}" for r in reversed(bars)])
    axes.set_title(
        "triplets a second of two processes, times those of one;\n"
        "black: by seconds of the processor; red: target",
        loc="left",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
