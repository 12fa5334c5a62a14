"""What ranking every item for every user costs, metrics and masks included.

Validates MF on made-up data of Netflix size, once as between epochs of training and once in
detail, with several sizes of tiles, each in a process of its own; holds it against a bare matrix
product with `topk` of the same tiles, and against what the released code takes.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --scale 0.02 --tiles 100x32768 64x50 --out small.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.memory import peak_gib
from benchmarks.processes import apart, console, cpu_seconds, machine
from benchmarks.synthetic import (
    NETFLIX_EDGES,
    NETFLIX_ITEMS,
    NETFLIX_USERS,
    hold_out,
    power_law_edges,
)
from benchmarks.trials import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.evaluation.callback import AllRankingEvaluator
    from llmrec_pl.models.base import Recommender

TILES = ("256x32768", "1024x32768", "4096x32768", "1024x4096")
"""Users and items scored at once; the second is the default."""
RELEASED_S = 84.0
"""CPU seconds of the released code's evaluation at Netflix size with one worker, measured once."""
MOST_RATIO, LEAST_TIMES = 1.4, 40.0
K = 50
PARTS = {"bare": "product + topk", "fitting": "while fitting", "validate": "validate"}


def main(args: Sequence[str] | None = None) -> None:
    """Measure each pair of tile sizes in a process of its own; print, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of Netflix size (%(default)s)")
    parser.add_argument(
        "--tiles", nargs="+", default=list(TILES), metavar="USERSxITEMS", help="tile sizes"
    )
    parser.add_argument("--measure", metavar="USERSxITEMS", help="measure one here, print JSON")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/evaluation.json"),
        metavar="FILE",
        help="figures go there, a picture beside it (%(default)s)",
    )
    options = parser.parse_args(args)
    if options.measure:
        print(json.dumps(measure(options.measure, options.scale)))
        return
    rows = [
        apart("benchmarks.evaluation", "--measure", tiles, "--scale", str(options.scale))
        for tiles in options.tiles
    ]
    equal = len({row["per_user_sha256"] for row in rows}) == 1
    show(rows, equal=equal, at_full_size=options.scale == 1)
    found = {
        "machine": machine(),
        "targets": {"times_bare": MOST_RATIO, "times_less_than_released": LEAST_TIMES},
        "released_cpu_s": RELEASED_S,
        "equal_for_all_tiles": equal,
        "rows": rows,
    }
    write_json(options.out, found)
    plot(rows, options.out.with_suffix(".png"))
    console().print(f"written to {options.out} and {options.out.with_suffix('.png')}")


def made_up(scale: float) -> InteractionDataset:
    """Make power-law data as large as the released Netflix data, with one held-out item a user."""
    from llmrec_pl.data.dataset import InteractionDataset

    users, items, edges = (
        max(int(n * scale), 60) for n in (NETFLIX_USERS, NETFLIX_ITEMS, NETFLIX_EDGES)
    )
    pairs = power_law_edges(users, items, edges + users, activity=0.1)
    return InteractionDataset.from_edges("made-up", users, items, *hold_out(pairs, users, users))


def measure(tiles: str, scale: float) -> dict[str, Any]:
    """Validate with tiles of one size, then do the bare work with the same tiles.

    Args:
        tiles: such as "1024x32768".
        scale: of Netflix size.
    """
    import torch

    from llmrec_pl.data.features import FeatureStore
    from llmrec_pl.evaluation.callback import AllRankingEvaluator
    from llmrec_pl.models.mf import MF

    users_at_once, items_at_once = (int(n) for n in tiles.split("x"))
    dataset, model = made_up(scale), MF()
    model.build_seeded(dataset, FeatureStore({}), seed=0)
    evaluator = AllRankingEvaluator(item_tile=items_at_once)
    before = peak_gib()
    seconds = evaluate(model, dataset, evaluator, users_at_once)
    peak = peak_gib()
    per_user = evaluator.metrics["per_user"].compute().numpy()

    def bare() -> None:
        for rows in user.split(users_at_once):
            for columns in item.split(items_at_once):
                (rows @ columns.T).topk(min(K, len(columns)), dim=1)

    with torch.no_grad():
        user, item = model.encode()
        user = user[torch.from_numpy(per_user[:, 0]).long()]
        seconds["bare"] = cpu_seconds(bare, repeats=2)
    return {
        "users_at_once": users_at_once,
        "items_at_once": items_at_once,
        "users": len(per_user),
        "items": dataset.n_items,
        "cpu_s": seconds,
        "peak_gib": peak,
        "before_gib": before,
        "scores_gib": 4 * len(per_user) * dataset.n_items / 2**30,
        "per_user_sha256": hashlib.sha256(per_user.tobytes()).hexdigest(),
    }


def evaluate(
    model: Recommender,
    dataset: InteractionDataset,
    evaluator: AllRankingEvaluator,
    users_at_once: int,
) -> dict[str, float]:
    """Validate twice while fitting and twice in detail; return the lesser CPU seconds of each.

    The clock runs from before the evaluator's start to after its end, the loader included.
    """
    import lightning as L

    from llmrec_pl.data.datamodule import RecDataModule
    from llmrec_pl.data.features import FeatureStore

    class GivenData(RecDataModule):
        def setup(self, stage: str | None = None) -> None:
            self._dataset, self._features = dataset, FeatureStore({})

    class Start(L.Callback):
        def on_validation_epoch_start(self, *_: object) -> None:
            spent.append(time.process_time())

    class Stop(L.Callback):
        def on_validation_epoch_end(self, *_: object) -> None:
            spent[-1] = time.process_time() - spent[-1]

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data, spent = GivenData("", eval_batch_size=users_at_once), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            callbacks=[Start(), evaluator, Stop()],
            default_root_dir=folder,
            max_epochs=2,
            limit_train_batches=1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        for _ in range(2):
            trainer.validate(model, data, verbose=False)
    return {"fitting": min(spent[:2]), "validate": min(spent[2:])}


def show(rows: Sequence[dict[str, Any]], *, equal: bool, at_full_size: bool) -> None:
    """Print one row a pair of tile sizes."""
    first = rows[0]
    table = Table(
        title=f"CPU seconds of one thread: {first['users']:,} users x {first['items']:,} items, "
        f"K = {K}, masks and metrics included"
    )
    names = ["users x items", *PARTS.values(), "fit / bare", "validate / bare", "MiB", "ok"]
    names.insert(-2, f"of {RELEASED_S:.0f} s")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        seconds = row["cpu_s"]
        ratios = [seconds[part] / seconds["bare"] for part in ("fitting", "validate")]
        times = RELEASED_S / seconds["fitting"]
        fine = max(ratios) <= MOST_RATIO and times >= LEAST_TIMES
        table.add_row(
            f"{row['users_at_once']:,} x {row['items_at_once']:,}",
            *(f"{seconds[part]:.2f}" for part in PARTS),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"1 / {times:.0f}" if at_full_size else "",
            f"{1024 * (row['peak_gib'] - row['before_gib']):.0f}",
            ("yes" if fine else "NO") if at_full_size else "",
        )
    out = console()
    out.print(table)
    out.print(
        f"targets: at most {MOST_RATIO} times the bare work of the same tiles, {LEAST_TIMES:.0f} "
        f"times less than the released code's {RELEASED_S:.0f} s. MiB: what evaluation adds to "
        f"the process; all scores would take {1024 * first['scores_gib']:,.0f}. Metrics of each "
        f"user are {'equal, bit for bit,' if equal else 'NOT EQUAL'} for all tiles."
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds beside the bare work, and memory beside all scores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    places = range(len(rows))
    colors = ("#b8b8b8", "#1f5fa8", "#8fb3d9")
    for number, (part, color) in enumerate(zip(PARTS, colors, strict=True)):
        left.bar(
            [place + 0.27 * (number - 1) for place in places],
            [row["cpu_s"][part] for row in rows],
            width=0.25,
            color=color,
            label=PARTS[part],
        )
    for place, row in enumerate(rows):
        limit = MOST_RATIO * row["cpu_s"]["bare"]
        left.plot([place - 0.42, place + 0.42], [limit] * 2, color="#c2410c", lw=2)
    left.set_title(f"CPU seconds; lines: {MOST_RATIO} times bare", loc="left", fontsize=9)
    left.set_ylim(0, 1.25 * max(MOST_RATIO * row["cpu_s"]["bare"] for row in rows))
    left.legend(fontsize=8, frameon=False, loc="upper center", ncols=3)
    added = [1024 * (row["peak_gib"] - row["before_gib"]) for row in rows]
    right.bar(places, added, color="#1f5fa8", width=0.5)
    for place, value in zip(places, added, strict=True):
        right.annotate(f"{value:.0f}", (place, value), (0, 3), ha="center", fontsize=8,
                       textcoords="offset points")  # fmt: skip
    right.set_title(
        f"MiB added; all scores take {1024 * rows[0]['scores_gib']:,.0f}", loc="left", fontsize=9
    )
    labels = [f"{row['users_at_once']:,} x\n{row['items_at_once']:,}" for row in rows]
    for axes in (left, right):
        axes.set_xticks(places, labels, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
