"""What one training step of LLMRec costs at Netflix size, by every path of its features.

Made-up data as large as the released ones (text 768, image 512, profile 1,536, five attributes of
1,536), once with all rows distinct and once with attributes that repeat as those of real films
do; B = 1,024 and LLM triplets at rate 0.1. The model is that of configs/released.yaml, which does
what the released code does, and that of configs/netflix.yaml, whose masked features cost more. Each
path is measured in a process of its own; then every operation of its step is held against what
this machine computes and moves at best.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --configs netflix --features repeated --paths auto/float32
    python -m benchmarks.training_step --paths auto/float32 --trace step.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import peak_gib
from benchmarks.processes import apart, console, machine
from benchmarks.training_step_report import PARTS, plot, show
from benchmarks.trials import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import FeatureStore
    from llmrec_pl.data.triplets import TripletSampler
    from llmrec_pl.models.llmrec import LLMRec

CONFIGS = ("released", "netflix")
"""Without masks, as the released code trains by default, and with them."""
FEATURES = ("distinct", "repeated")
PATHS = ("plain/float32", "auto/float32", "auto/float16")
"""`propagation` and `feature_storage` of the model."""
BATCH, LLM_RATE = 1024, 0.1
TARGETS = {
    "distinct_cpu_s": 0.26,
    "repeated_cpu_s": 1.3 / 8,
    "float32_peak_gib": 2.0,
    "float16_peak_gib": 1.3,
}
"""Of the paths that are not plain; the released code takes 1.3 CPU seconds on one thread.

Masks are no part of what it does by default, so its times are a target for ``released`` alone."""


def main(args: Sequence[str] | None = None) -> None:
    """Measure every path with both kinds of features; print, write JSON and a picture."""
    options = parse(args)
    if options.prepare:
        write_data(Path(options.prepare), options.features[0], options.scale)
        print("{}")
        return
    if options.measure:
        named = options.paths[0], options.configs[0]
        found = measure(Path(options.measure), *named, options.steps, options.trace)
        print(json.dumps(found))
        return
    if options.rates:
        from benchmarks.roofline import machine_rates

        print(json.dumps(machine_rates()))
        return
    module, rows = "benchmarks.training_step", []
    rates = apart(module, "--rates")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for features in options.features:
            data = str(Path(folder) / features)
            scale = str(options.scale)
            apart(module, "--prepare", data, "--features", features, "--scale", scale)
            for config, path in itertools.product(options.configs, options.paths):
                command = ["--measure", data, "--configs", config, "--paths", path]
                command += ["--steps", str(options.steps)]
                command += ["--trace", str(options.trace)] if options.trace else []
                rows.append({"features": features, **apart(module, *command)})
    found = {
        "machine": machine(),
        "batch_size": BATCH,
        "llm_edge_rate": LLM_RATE,
        "targets": TARGETS,
        "rates": rates,
        "rows": rows,
    }
    show(found)
    write_json(options.out, found)
    plot(found, options.out.with_suffix(".png"))
    console().print(f"written to {options.out} and {options.out.with_suffix('.png')}")


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--steps", type=int, default=10, help="the median counts (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of Netflix size (%(default)s)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write torch's profile of the last path there"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="1.1 GB of data lie there for a while"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/training_step.json"),
        metavar="FILE",
        help="figures go there, a picture beside it (%(default)s)",
    )
    inner = parser.add_mutually_exclusive_group()
    inner.add_argument("--prepare", metavar="DIR", help="write data there and stop")
    inner.add_argument("--measure", metavar="DIR", help="measure one path here, print JSON")
    inner.add_argument("--rates", action="store_true", help="print the machine's rates as JSON")
    return parser.parse_args(args)


# Data, in files: a process that maps them holds only what its model keeps.


def write_data(folder: Path, features: str, scale: float) -> None:
    """Write made-up edges and features.

    Args:
        folder: made.
        features: one of `FEATURES`.
        scale: of Netflix size.
    """
    import numpy as np

    from benchmarks.synthetic import netflix_size

    dataset, store = netflix_size(repeated=features == "repeated", scale=scale)
    folder.mkdir(parents=True)
    np.save(folder / "edges.npy", np.stack(dataset.train.tocoo().coords).astype(np.int64))
    described = []
    for feature in store.values():
        np.save(folder / f"{feature.name}.npy", feature.values)
        if feature.index is not None:
            np.save(folder / f"{feature.name}.index.npy", feature.index)
        described.append([feature.name, feature.side, feature.group])
    sizes = dataset.n_users, dataset.n_items
    write_json(folder / "data.json", {"sizes": sizes, "features": described})


def read_data(folder: Path) -> tuple[InteractionDataset, FeatureStore]:
    """Open what `write_data` wrote, features memory-mapped."""
    import numpy as np

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import Feature, FeatureStore

    content = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    features = {}
    for name, side, group in content["features"]:
        index = folder / f"{name}.index.npy"
        features[name] = Feature(
            name,
            side,
            group,
            np.load(folder / f"{name}.npy", mmap_mode="r"),
            np.load(index) if index.exists() else None,
        )
    edges = np.load(folder / "edges.npy")
    dataset = InteractionDataset.from_edges("netflix-size", *content["sizes"], edges)
    return dataset, FeatureStore(features)


# Steps.


def make_model(path: str, config: str) -> tuple[LLMRec, Callable[..., torch.optim.Optimizer]]:
    """Return LLMRec as its config has it, and what makes its optimizer.

    Args:
        path: one of `PATHS`.
        config: one of `CONFIGS`.
    """
    from functools import partial

    import torch
    import yaml

    from llmrec_pl.models.llmrec import LLMRec

    text = Path(f"configs/{config}.yaml").read_text(encoding="utf-8")
    arguments = yaml.safe_load(text)["model"]["init_args"]
    optimizer = arguments.pop("optimizer")
    assert optimizer["class_path"] == "torch.optim.AdamW"
    propagation, storage = path.split("/")
    arguments |= {"propagation": propagation, "feature_storage": storage}
    return LLMRec(**arguments), partial(torch.optim.AdamW, **optimizer["init_args"])


def make_step(
    model: LLMRec, optimizer: torch.optim.Optimizer, sampler: TripletSampler
) -> Callable[[int], tuple[dict[str, float], float]]:
    """Return a function from the step's number to the CPU seconds of its parts, and its loss."""
    import dataclasses

    import torch

    def step(number: int) -> tuple[dict[str, float], float]:
        # Masks of equal steps are equal in every path.
        torch.manual_seed(number)
        clock = [time.process_time()]
        triplets = sampler.batch(*divmod(number, sampler.n_batches))
        fields = dataclasses.fields(triplets)
        batch = {f.name: torch.from_numpy(getattr(triplets, f.name)) for f in fields}
        clock.append(time.process_time())
        loss = torch.stack(list(model.losses(batch).values())).sum()
        clock.append(time.process_time())
        optimizer.zero_grad()
        loss.backward()
        clock.append(time.process_time())
        optimizer.step()
        clock.append(time.process_time())
        spent = [b - a for a, b in itertools.pairwise(clock)]
        return dict(zip(PARTS, spent, strict=True)), float(loss.detach())

    return step


def measure(folder: Path, path: str, config: str, steps: int, trace: Path | None) -> dict[str, Any]:
    """Build the model, train some steps, then look at every operation of three more.

    Args:
        folder: of `write_data`.
        path: one of `PATHS`.
        config: one of `CONFIGS`.
        steps: how many are timed, after one that is not.
        trace: where torch's own profile goes.
    """
    import numpy as np

    from benchmarks.roofline import CostOfOperations
    from benchmarks.sampler import one_llm_edge_a_user
    from llmrec_pl.data.triplets import TripletSampler

    dataset, features = read_data(folder)
    sampler = TripletSampler(
        dataset.train, BATCH, 0, "user", one_llm_edge_a_user(dataset), LLM_RATE
    )
    before, start = peak_gib(), time.process_time()
    model, make_optimizer = make_model(path, config)
    model.expected_batch_size = BATCH
    model.build_seeded(dataset, features, seed=0)
    built, build_s = peak_gib(), time.process_time() - start
    step = make_step(model.train(), make_optimizer(model.parameters()), sampler)
    _, first_loss = step(0)
    timed = [step(1 + number)[0] for number in range(steps)]
    peak = peak_gib()
    median = sorted(timed, key=lambda parts: sum(parts.values()))[steps // 2]
    n_looked_at, start = 3, time.process_time()
    with CostOfOperations() as looked_at:
        for number in range(n_looked_at):
            step(1 + steps + number)
    if trace is not None:
        write_trace(step, trace)
    return {
        "path": path,
        "config": config,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "edges": int(dataset.train.nnz),
        "distinct_rows": {f.name: len(f.values) for f in features.values()},
        "ways": {name: type(way).__name__ for name, way in model.paths.items()},
        "build_cpu_s": build_s,
        "step_cpu_s": {"total": sum(median.values()), **median},
        "steps_cpu_s": [sum(parts.values()) for parts in timed],
        "before_gib": before,
        "built_gib": built,
        "peak_gib": peak,
        "parameters": int(np.sum([p.numel() for p in model.parameters()])),
        "first_loss": first_loss,
        "operations": {name: cost.a_step(n_looked_at) for name, cost in looked_at.costs.items()},
    }


def write_trace(step: Callable[[int], object], path: Path) -> None:
    """Profile a step with torch's profiler: a trace for chrome://tracing, and its table.

    Its seconds are those of a clock on the wall; on a busy machine read its shares only.
    """
    import sys

    from torch.profiler import profile

    with profile(record_shapes=True) as profiler:
        step(0)
    profiler.export_chrome_trace(str(path))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)
    sys.stderr.write(table + "\n")


if __name__ == "__main__":
    main()
