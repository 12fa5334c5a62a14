"""The quality benchmark runs from data to table, at tiny size, without RecBole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def by_model(results: dict[str, Any], part: str, *names: str) -> list[dict[str, Any]]:
    return [record for record in results[part] if record["model"] in names]


def test_quick_writes_results_and_skips_finished_trials(tmp_path: Path) -> None:
    data, out = tmp_path / "simulated", tmp_path / "quick.json"
    run("llmrec_pl", "prepare", "simulated", "--out", str(data))
    command = ["benchmarks.quality_ml100k", "--quick", "--data", str(data), "--out", str(out)]
    command += ["--work", str(tmp_path / "work")]
    printed = run(*command)
    assert "validation" in printed
    results = json.loads(out.read_text(encoding="utf-8"))
    models = [record["model"] for record in results["chosen"]]
    assert models == ["popularity", "item-kNN", "MF", "LightGCN", "EASE"]
    for record in results["chosen"]:
        assert 0 < record["validation"]["recall@20"] <= 1
        assert 0 < record["test"]["recall@20"] <= 1
    # The trainer's evaluator and the benchmark's rank the same lists.
    for record in results["trials"]:
        for name, value in record["reported_by_the_library"].items():
            assert record["validation"][name] == pytest.approx(value, abs=1e-6)
    finished = sorted((tmp_path / "work").glob("*.json"))
    stamps = [path.stat().st_mtime_ns for path in finished]
    run(*command)
    assert len(finished) == 3
    assert [path.stat().st_mtime_ns for path in finished] == stamps
    # Only what was asked for is done again; the other records stay as they were.
    for path in (tmp_path / "work").iterdir():
        if path.is_file():
            path.unlink()
    run(*command, "--models", "EASE")
    assert len(list((tmp_path / "work").glob("*.json"))) == 1
    again = json.loads(out.read_text(encoding="utf-8"))
    assert [r["model"] for r in again["chosen"]] == models
    assert by_model(again, "trials", "MF", "LightGCN") == by_model(
        results, "trials", "MF", "LightGCN"
    )
    assert by_model(again, "chosen", "MF", "LightGCN") == by_model(
        results, "chosen", "MF", "LightGCN"
    )
    assert again["speed_ratio"] == {}  # the other library did not run
