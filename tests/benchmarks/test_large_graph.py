"""The growth benchmark runs every task at tiny size, and compares sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.large_graph import growth, limit_of
from benchmarks.large_graph_tasks import TASKS, run_task
from benchmarks.synthetic import write_folder

ROOT = Path(__file__).resolve().parents[2]
STEP = {"sampling", "gradients", "optimizer", "total"}
SET_UP = {"load", "sampler", "first batch", "graph edges", "graph", "total"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "tiny", 300, 90, 3000)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_says_what_its_parts_cost(task: str, folder: Path) -> None:
    found = run_task(task, folder, batch_size=64, seconds=0.0)
    parts = {"set-up": SET_UP, "evaluation": {"total"}}.get(task, STEP)
    assert set(found["cpu_s"]) == parts
    assert all(value >= 0 for value in found["cpu_s"].values())
    assert found["cpu_s"]["total"] > 0
    assert found["peak_gib"] >= found["imports_gib"] > 0
    if task == "set-up":
        # Indices and weights of both directions, and the pointers of few edges a node.
        assert 16 <= found["graph_bytes_an_edge"] < 17


def record(task: str, users: int, total: float, peak: float) -> dict[str, Any]:
    sizes = {"users": users, "items": users, "edges": 20 * users}
    return {
        "task": task,
        **sizes,
        "cpu_s": {"total": total},
        "peak_gib": peak,
        "imports_gib": 0.5,
    }


def test_growth_compares_neighbouring_sizes_of_one_task() -> None:
    records = [
        record("MF lazy", 10, 1.0, 1.0),
        record("set-up", 10, 3.0, 1.5),
        record("MF lazy", 100, 1.2, 2.5),
        record("MF lazy", 10_000, 3.0, 4.5),
    ]
    first, second = growth(records)
    assert (first["cpu"], first["memory"], first["edges"]) == (1.2, 4.0, 10.0)
    assert (second["cpu"], second["memory"], second["edges"]) == (2.5, 2.0, 100.0)
    assert limit_of(first) == pytest.approx(1.5)
    assert limit_of(second) == pytest.approx(1.5**2)
    assert limit_of({**first, "task": "LightGCN rows"}) == 10
    assert limit_of({**first, "task": "MF dense"}) is None


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_figures(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.large_graph", "--users", "200", "600"),
            *("--tasks", "evaluation", "--seconds", "0", "--batch-size", "64"),
            *("--work", str(tmp_path / "work"), "--out", str(out)),
        ],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "growth from one size to the next" in result.stdout
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(r["users"], r["items"], r["edges"]) for r in found["records"]] == [
        (200, 60, 4000),
        (600, 180, 12_000),
    ]
    assert out.with_suffix(".png").stat().st_size > 1000
