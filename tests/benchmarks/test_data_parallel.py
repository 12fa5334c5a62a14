"""The benchmark of several processes runs from data to table and plot, at tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data_parallel import summarise

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ddp
@pytest.mark.slow
def test_quick_measures_one_and_two_processes(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    command = ["-m", "benchmarks.data_parallel", "--quick", "--out", str(out), "--models", "mf"]
    done = subprocess.run(
        [sys.executable, *command, "--ways", "one", "ddp, less copying", "sharded"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "target: 1.6" in done.stdout
    rows = {row["way"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert {way: row["processes"] for way, row in rows.items()} == {
        "one": 1,
        "ddp, less copying": 2,
        "sharded": 2,
    }
    for row in rows.values():
        batches = 2 if "ddp" in row["way"] else 1
        triplets = row["triplets_per_second"] * row["wall_ms_per_step"] / 1000
        assert triplets == pytest.approx(row["batch_size"] * batches)
    assert out.with_suffix(".png").stat().st_size > 1000


def test_ratios_are_medians_over_rounds() -> None:
    rows = [
        {
            "round": number,
            "model": "mf",
            "way": way,
            "triplets_per_second": rate,
            "triplets_per_cpu_second": 2 * rate,
        }
        for way, rates in (("one", (10, 20, 40)), ("ddp", (15, 20, 80)))
        for number, rate in enumerate(rates)
    ]
    one, ddp = summarise(rows)
    assert one["wall_ratio"] == 1
    assert ddp["wall_ratio"] == ddp["cpu_ratio"] == 1.5
    assert ddp["triplets_per_second"] == 20
