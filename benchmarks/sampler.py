"""How many verified triplets the sampler gives in a second of one core.

Draws batches of made-up data of Netflix size, and of ten times as much, which no cache holds;
looks the triplets of the last batches up in the data, by other means than the sampler's.

    python -m benchmarks.sampler
    python -m benchmarks.sampler --scale 0.02 --seconds 0.05 --out small.json
"""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from benchmarks.processes import console, cpu_seconds, machine
from benchmarks.synthetic import NETFLIX_EDGES, NETFLIX_ITEMS, NETFLIX_USERS, power_law_edges
from benchmarks.trials import write_json
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.triplets import LLM, TripletBatch, TripletSampler

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

TARGET = 1_000_000
"""Triplets a second and core."""
KEPT = 200
"""Batches of each case that are looked up in the data."""
CASES: dict[str, dict[str, Any]] = {
    "each interaction once": {"sampling": "edge", "batch_size": 1024},
    "distinct users": {"sampling": "user", "batch_size": 1024},
    "distinct users, LLM rate 0.1": {
        "sampling": "user",
        "batch_size": 1024,
        "llm_edge_rate": 0.1,
    },
    "batches of 4,096": {"sampling": "edge", "batch_size": 4096},
    "64 negatives": {"sampling": "edge", "batch_size": 1024, "n_negatives": 64},
}


def main(args: Sequence[str] | None = None) -> None:
    """Measure every case at both sizes, print a table, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of Netflix size (%(default)s); ten times beside"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="CPU seconds a case, three times (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/sampler.json"),
        metavar="FILE",
        help="figures go there, a picture beside it (%(default)s)",
    )
    options = parser.parse_args(args)
    rows = []
    for times in (1, 10):
        dataset = made_up(options.scale * times)
        rows += [
            {"case": name, **measure(dataset, case, options.seconds)}
            for name, case in CASES.items()
        ]
    show(rows)
    write_json(options.out, {"machine": machine(), "target": TARGET, "rows": rows})
    plot(rows, options.out.with_suffix(".png"))
    console().print(f"written to {options.out} and {options.out.with_suffix('.png')}")


def made_up(scale: float) -> InteractionDataset:
    """Make power-law data as large as the released Netflix data, times `scale`."""
    users, items, edges = (
        max(int(n * scale), 20) for n in (NETFLIX_USERS, NETFLIX_ITEMS, NETFLIX_EDGES)
    )
    pairs = power_law_edges(users, items, edges)
    return InteractionDataset.from_edges("made-up", users, items, pairs)


def measure(dataset: InteractionDataset, case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Draw batches for some seconds, three times, and keep the best rate.

    Args:
        dataset: the data.
        case: arguments of the sampler.
        seconds: CPU seconds of drawing.
    """
    llm = one_llm_edge_a_user(dataset) if "llm_edge_rate" in case else None
    set_up: list[TripletSampler] = []
    set_up_seconds = cpu_seconds(
        lambda: set_up.append(TripletSampler(dataset.train, seed=0, llm_edges=llm, **case))
    )
    sampler = set_up[0]
    sampler.batch(0, 0)
    one = cpu_seconds(lambda: sampler.batch(0, min(1, sampler.n_batches - 1)), repeats=3)
    n_batches = max(int(seconds / max(one, 1e-6)), 2)
    kept: deque[TripletBatch] = deque(maxlen=KEPT)
    n_triplets = 0

    def draw() -> None:
        nonlocal n_triplets
        n_triplets = 0
        # Over several epochs: the order of an epoch is part of what a triplet costs.
        for number in range(n_batches):
            epoch, step = divmod(number, sampler.n_batches)
            kept.append(sampler.batch(1 + epoch, step))
            n_triplets += negatives(kept[-1]).size

    spent = cpu_seconds(draw, repeats=3)
    verify(kept, dataset, llm)
    return {
        "users": dataset.n_users,
        "items": dataset.n_items,
        "edges": int(dataset.train.nnz),
        **case,
        "set_up_cpu_s": set_up_seconds,
        "batches": n_batches,
        "triplets": n_triplets,
        "triplets_a_second": n_triplets / spent,
        "batch_us": 1e6 * spent / n_batches,
    }


def one_llm_edge_a_user(dataset: InteractionDataset) -> NDArray[np.int64]:
    """Return (user, positive, negative) rows ``[3, n_users]``."""
    rng = np.random.default_rng(0)
    items = rng.integers(dataset.n_items, size=(2, dataset.n_users))
    return np.stack([np.arange(dataset.n_users), *items])


def negatives(batch: TripletBatch) -> NDArray[np.int64]:
    """Return all negatives of a batch, ``[B, n_negatives]``."""
    every: NDArray[np.int64] = getattr(batch, "neg_items", batch.neg_item[:, None])
    return every


def verify(
    batches: Iterable[TripletBatch],
    dataset: InteractionDataset,
    llm_edges: NDArray[np.int64] | None = None,
) -> None:
    """Look triplets up in the data.

    Raises:
        SystemExit: a positive is no interaction, a negative is one, or an LLM triplet is not
            among those given.
    """
    rows, columns = dataset.train.tocoo().coords
    known = rows.astype(np.int64) * dataset.n_items + columns
    user, positive, negative, is_llm = (
        np.concatenate(parts)
        for parts in zip(
            *((b.user, b.pos_item, negatives(b), b.source == LLM) for b in batches), strict=True
        )
    )
    if not np.isin((user * dataset.n_items + positive)[~is_llm], known).all():
        raise SystemExit("a positive item is no interaction of its user.")
    if np.isin((user[:, None] * dataset.n_items + negative)[~is_llm], known).any():
        raise SystemExit("a negative item is an interaction of its user.")
    if llm_edges is not None:
        # One edge a user, in the order of the users.
        given = llm_edges[1:, user[is_llm]]
        if not np.array_equal(given, np.stack([positive[is_llm], negative[is_llm, 0]])):
            raise SystemExit("an LLM triplet is not among those given.")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print one row a case and size."""
    table = Table(title=f"verified triplets a second of one core; target {TARGET:,}")
    for column in ("case", "edges", "B", "a second", "a batch", "set-up", "ok"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['edges']:,}",
            f"{row['batch_size']:,}",
            f"{row['triplets_a_second']:,.0f}",
            f"{row['batch_us']:,.0f} us",
            f"{1e3 * row['set_up_cpu_s']:.1f} ms",
            "yes" if row["triplets_a_second"] >= TARGET else "NO",
        )
    console().print(table)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rates against the target."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({row["edges"] for row in rows})
    for number, (edges, color) in enumerate(zip(sizes, ("#1f5fa8", "#8fb3d9"), strict=False)):
        rates = [row["triplets_a_second"] / 1e6 for row in rows if row["edges"] == edges]
        places = [place + 0.38 * number for place in range(len(rates))]
        axes.barh(places, rates, height=0.36, color=color, label=f"{edges:,} edges")
        for place, rate in zip(places, rates, strict=True):
            axes.annotate(f"{rate:.1f}", (rate, place), (3, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
    axes.axvline(TARGET / 1e6, color="#c2410c", lw=2)
    axes.set_yticks([place + 0.19 for place in range(len(CASES))], list(CASES), fontsize=8)
    axes.invert_yaxis()
    axes.set_title(
        "million verified triplets a second of one core; line: target", loc="left", fontsize=9
    )
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
