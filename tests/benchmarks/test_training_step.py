"""The training step's benchmark: what it counts, and that it runs from end to end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_step, training_step_report
from benchmarks.roofline import CostOfOperations, machine_rates
from benchmarks.sampler import one_llm_edge_a_user
from llmrec_pl.data.triplets import TripletSampler
from llmrec_pl.graph import BipartiteGraph


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training_step") / "repeated"
    training_step.write_data(folder, "repeated", 0.01)
    return folder


def test_products_count_as_torch_counts_them(data: Path) -> None:
    dataset, features = training_step.read_data(data)
    model, make_optimizer = training_step.make_model("plain/float32", "netflix")
    model.build_seeded(dataset, features, seed=0)
    edges = one_llm_edge_a_user(dataset)
    sampler = TripletSampler(dataset.train, 64, 0, "user", edges, 0.1)
    step = training_step.make_step(model.train(), make_optimizer(model.parameters()), sampler)
    with FlopCounterMode(display=False) as expected:
        step(0)
    with CostOfOperations() as found:
        step(0)
    products = sum(cost.flop for name, cost in found.costs.items() if "mm" in name)
    assert products == expected.get_total_flops() > 0


def test_sums_gathers_scatters_and_other_operations_count_by_their_formulas() -> None:
    x, rows = torch.randn(10, 4), torch.tensor([1, 2, 3])
    graph = BipartiteGraph(np.array([[0, 0, 1], [0, 1, 2]]), 2, 3)
    with CostOfOperations() as found:
        x[rows]
        x.index_add_(0, rows, x[:3].clone())
        graph.to_user(x[:3])
        torch.exp(x)
    costs = found.costs
    assert costs["index"].n_bytes == 2 * 3 * 4 * 4 + 3 * 8
    assert costs["index_add_"].n_bytes == 3 * (3 * 4 * 4) + 3 * 8
    bag = costs["_embedding_bag_forward_only"]
    assert bag.flop == 2 * 3 * 4
    assert bag.n_bytes == 3 * 4 * 4 + 3 * 4 + 3 * 4 + 3 * 4 + 2 * 4 * 4
    assert costs["exp"].flop == 40
    assert costs["exp"].n_bytes == 2 * 40 * 4
    assert costs["slice"].n_bytes == 0


def test_the_machine_has_rates() -> None:
    rates = machine_rates(repeats=1)
    assert rates["gflop_s"] > 0
    assert rates["gb_s"] > 0


def test_data_come_back_from_their_files(data: Path) -> None:
    dataset, features = training_step.read_data(data)
    assert dataset.train.nnz == 689
    assert len(features) == 8
    assert isinstance(features["text"].values, np.memmap)
    assert features["director"].n_rows == dataset.n_items
    assert len(features["director"].values) == 50


@pytest.mark.parametrize("path", ["plain/float32", "auto/float16"])
def test_a_path_is_measured(data: Path, path: str) -> None:
    found = training_step.measure(data, path, "netflix", steps=1, trace=None)
    assert set(found["step_cpu_s"]) == {"total", *training_step_report.PARTS}
    assert found["peak_gib"] >= found["built_gib"] >= found["before_gib"] > 0
    assert found["operations"]["mm"]["gflop"] > 0
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("path", "config", "edges", "seconds", "gib", "expected"),
    [
        ("auto/float32", "released", 68_933, 0.2, 1.9, "yes"),
        ("auto/float32", "released", 68_933, 0.3, 1.9, "NO"),
        ("auto/float16", "released", 68_933, 0.2, 1.9, "NO"),
        ("auto/float32", "netflix", 68_933, 0.3, 1.9, "GiB yes"),
        ("auto/float16", "netflix", 68_933, 0.2, 1.9, "GiB NO"),
        ("plain/float32", "released", 68_933, 9.0, 9.0, ""),
        ("auto/float32", "released", 689, 9.0, 9.0, ""),
    ],
)
def test_a_path_meets_its_targets_or_not(
    path: str, config: str, edges: int, seconds: float, gib: float, expected: str
) -> None:
    row: dict[str, Any] = {"path": path, "config": config, "edges": edges, "peak_gib": gib}
    row |= {"features": "distinct", "step_cpu_s": {"total": seconds}}
    assert training_step_report.verdict(row, training_step.TARGETS) == expected


@pytest.mark.slow
def test_runs_from_command_line_to_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    arguments = "--scale 0.01 --steps 1 --configs netflix --features repeated"
    arguments += " --paths plain/float32 auto/float32"
    trace = tmp_path / "trace.json"
    training_step.main([*arguments.split(), "--trace", str(trace), "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    plain, auto = found["rows"]
    # The same masks, batch and weights: the same loss.
    assert auto["first_loss"] == pytest.approx(plain["first_loss"], rel=1e-4)
    assert out.with_suffix(".png").stat().st_size > 1000
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert "operations of a step" in capsys.readouterr().out
