"""What `large_graph` measures: one function a task, run in a process of its own."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.memory import peak_gib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.models.base import Recommender

DIM, LAYERS, TEXT_DIM, EVALUATED, EVALUATED_AT_ONCE, K = 64, 2, 64, 1000, 250, 20
WARM_STEPS, FEWEST_STEPS, MOST_STEPS = 3, 3, 200
TASKS = {
    "set-up": "the data set from parquet, checked; sampler with its first batch; graph",
    "MF lazy": "a step of MF with sparse gradients and LazyAdamW",
    "MF dense": "a step of MF with dense gradients and fused AdamW, for comparison",
    "VBPR lazy": "a step of VBPR with sparse gradients and LazyAdamW",
    "LightGCN rows": "a step of LightGCN over the rows the batch needs, fused AdamW",
    "LightGCN full": "a step of LightGCN over the whole graph, fused AdamW",
    "evaluation": "rank the whole catalogue for 1,000 users",
}


def run_task(task: str, folder: Path, batch_size: int, seconds: float) -> dict[str, Any]:
    """Measure one task.

    Args:
        task: a key of `TASKS`.
        folder: a canonical data set.
        batch_size: triplets a step.
        seconds: CPU seconds after which no further step begins.

    Returns:
        ``cpu_s`` by part with their ``total``, ``peak_gib``, and ``imports_gib`` before any work.
    """
    import torch

    import llmrec_pl.evaluation.ranking
    import llmrec_pl.models.vbpr  # noqa: F401 (imports are no part of the work)

    torch.set_num_threads(1)
    found: dict[str, Any] = {"imports_gib": peak_gib(), "torch": torch.__version__}
    if task == "set-up":
        return found | set_up(folder, batch_size)
    if task == "evaluation":
        return found | evaluation(folder)
    return found | training(task, folder, batch_size, seconds)


def set_up(folder: Path, batch_size: int) -> dict[str, Any]:
    """Do what precedes the first step, with the peak of memory after each part."""
    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.triplets import TripletSampler
    from llmrec_pl.graph import BipartiteGraph

    seconds, peaks = {}, {}

    def part(name: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401
        start = time.process_time()
        made = work()
        seconds[name], peaks[name] = time.process_time() - start, peak_gib()
        return made

    dataset = part("load", lambda: InteractionDataset.load(folder))
    sampler = part("sampler", lambda: TripletSampler(dataset.train, batch_size, seed=0))
    part("first batch", lambda: sampler.batch(0, 0))
    edges = part("graph edges", dataset.graph_edges)
    sizes = dataset.n_users, dataset.n_items
    graph = part("graph", lambda: BipartiteGraph(edges, *sizes))
    seconds["total"] = sum(seconds.values())
    stored = sum(b.nbytes for b in {b.data_ptr(): b for b in graph.buffers()}.values())
    return {
        "cpu_s": seconds,
        "peak_gib": peak_gib(),
        "peaks_gib": peaks,
        "graph_bytes_an_edge": stored / edges.shape[1],
    }


def training(task: str, folder: Path, batch_size: int, seconds: float) -> dict[str, Any]:
    """Measure the steps of a model: sampling, forward and backward pass, optimizer."""
    import torch

    from llmrec_pl.data.triplets import TripletSampler

    dataset, model = built(task, folder)
    optimizer = model.configure_optimizers()
    sampler = TripletSampler(dataset.train, batch_size, seed=0)
    model.train()
    spent: dict[str, list[float]] = {"sampling": [], "gradients": [], "optimizer": []}

    def step(number: int) -> None:
        marks = [time.process_time()]
        epoch, place = divmod(number, sampler.n_batches)
        triplets = sampler.batch(epoch, place)
        batch = {
            name: torch.from_numpy(getattr(triplets, name))
            for name in ("user", "pos_item", "neg_item", "source")
        }
        marks.append(time.process_time())
        optimizer.zero_grad()
        sum(model.losses(batch).values()).backward()  # type: ignore[union-attr]
        marks.append(time.process_time())
        optimizer.step()
        marks.append(time.process_time())
        for values, duration in zip(spent.values(), np.diff(marks), strict=True):
            values.append(float(duration))

    for number in range(WARM_STEPS):
        step(number)
    start, number = time.process_time(), WARM_STEPS
    while number < MOST_STEPS and (
        number < WARM_STEPS + FEWEST_STEPS or time.process_time() - start < seconds
    ):
        step(number)
        number += 1
    measured = {name: values[WARM_STEPS:] for name, values in spent.items()}
    parts = {name: statistics.median(values) for name, values in measured.items()}
    whole = [sum(values) for values in zip(*measured.values(), strict=True)]
    parts["total"] = statistics.median(whole)
    return {
        "cpu_s": parts,
        "cpu_s_quartiles": np.quantile(whole, [0.25, 0.75]).tolist(),
        "steps": len(whole),
        "peak_gib": peak_gib(),
    }


def built(task: str, folder: Path) -> tuple[InteractionDataset, Recommender]:
    """Load the data set and build a task's model on it."""
    import torch

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Feature, FeatureStore
    from llmrec_pl.models.base import Recommender
    from llmrec_pl.models.lightgcn import LightGCN
    from llmrec_pl.models.mf import MF
    from llmrec_pl.models.vbpr import VBPR
    from llmrec_pl.optimizers import LazyAdamW

    class WholeLightGCN(LightGCN):
        """Encodes everything in each step."""

        encode_rows = Recommender.encode_rows

    dataset = InteractionDataset.load(folder, verify=False)
    features = FeatureStore()
    settings: dict[str, Any] = {"embedding_dim": DIM}
    settings["optimizer"] = partial(torch.optim.AdamW, fused=True)
    if task.endswith("lazy"):
        settings |= {"sparse_gradients": True, "optimizer": LazyAdamW}
    if task.startswith("VBPR"):
        rng = np.random.default_rng(0)
        text = rng.standard_normal((dataset.n_items, TEXT_DIM), dtype=np.float32)
        features = FeatureStore({"text": Feature("text", "item", "modality", text)})
        model: Recommender = VBPR(projection_dim=DIM, **settings)
    elif task.startswith("MF"):
        model = MF(**settings)
    else:
        model_class = LightGCN if task == "LightGCN rows" else WholeLightGCN
        model = model_class(n_layers=LAYERS, **settings)
    model.build_seeded(dataset, features, seed=0)
    return dataset, model


def evaluation(folder: Path) -> dict[str, Any]:
    """Rank all items for some users by untrained MF vectors, train items masked."""
    import torch

    from llmrec_pl.evaluation.ranking import sparse_rows, top_k

    dataset, model = built("MF dense", folder)
    model.eval()
    rng = np.random.default_rng(0)
    users = rng.choice(dataset.n_users, size=min(EVALUATED, dataset.n_users), replace=False)
    start = time.process_time()
    for at in range(0, len(users), EVALUATED_AT_ONCE):
        some = users[at : at + EVALUATED_AT_ONCE]
        rows = model.ranking_rows(torch.from_numpy(some))
        top_k(rows.user, rows.item, min(K, dataset.n_items), sparse_rows(dataset.train, some))
    spent = time.process_time() - start
    return {"cpu_s": {"total": spent * EVALUATED / len(users)}, "peak_gib": peak_gib()}
