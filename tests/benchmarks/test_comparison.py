"""What the quality benchmarks choose, keep and hand to the other library."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import comparison, recbole_worker
from benchmarks.quality_ml100k import trials
from benchmarks.trials import Budget, Trial
from llmrec_pl.errors import DatasetError


def record(library: str, model: str) -> dict[str, Any]:
    return {"library": library, "model": model}


def arguments(out: Path, *models: str) -> argparse.Namespace:
    return argparse.Namespace(out=out, models=list(models), skip_recbole=True)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    own = arguments(tmp_path, "MF")
    trained = [record("llmrec_pl", "MF"), record("recbole", "BPR"), record("recbole", "EASE")]
    content = {
        "data": {"fingerprint": "abc"},
        "software": comparison._software(own),
        "chosen": [record("closed form", "popularity"), *trained],
        "trials": trained,
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_records_of_selected_models_and_counterparts_are_not_kept(written: Path) -> None:
    kept = comparison.results_of_others(arguments(written, "MF"), "abc")
    assert kept == {part: [record("recbole", "EASE")] for part in ("chosen", "trials")}
    kept = comparison.results_of_others(arguments(written, "EASE", "ItemKNN"), "abc")
    assert [r["model"] for r in kept["chosen"]] == ["MF", "BPR"]


def test_results_of_other_data_or_software_are_refused(written: Path) -> None:
    with pytest.raises(DatasetError, match=r"'fingerprint': 'abc'.*run without `--models`"):
        comparison.results_of_others(arguments(written, "MF"), "abd")
    with_recbole = arguments(written, "MF")
    with_recbole.skip_recbole = False
    with pytest.raises(DatasetError, match=r"'recbole': '1\.2\.1'"):
        comparison.results_of_others(with_recbole, "abc")
    with pytest.raises(DatasetError, match=r"there are no results in .*missing"):
        comparison.results_of_others(arguments(written.with_name("missing"), "MF"), "abc")


def test_both_libraries_get_as_many_trials_and_the_same_budget() -> None:
    grids: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials():
        grids.setdefault((trial.library, trial.model), []).append(trial)
    pairs = {(ours, comparison.COUNTERPARTS[ours]) for lib, ours in grids if lib == "llmrec_pl"}
    assert {theirs for _, theirs in pairs} == {m for lib, m in grids if lib == "recbole"}
    for ours, theirs in pairs:
        mine, other = grids["llmrec_pl", ours], grids["recbole", str(theirs)]
        assert len(mine) == len(other)
        assert [t.budget for t in mine] == [t.budget for t in other]
        assert [t.settings.get("lr") for t in mine] == [t.settings.get("lr") for t in other]


def test_recbole_gets_its_own_names_and_all_settings() -> None:
    job = {"data": "d", "name": "n", "out": "o/w", "budget": vars(Budget())}
    trained = recbole_worker.configuration(
        {**job, "model": "NGCF", "settings": {"lr": 0.5, "batch_size": 7, "reg_weight": 0.25}}
    )
    assert trained["learning_rate"] == 0.5
    assert trained["train_batch_size"] == 7
    assert trained["reg_weight"] == 0.25
    assert {"lr", "batch_size"}.isdisjoint(trained)
    solved = recbole_worker.configuration({**job, "model": "ItemKNN", "settings": {"k": 3}})
    assert solved["k"] == 3
    assert {"learning_rate", "train_batch_size"}.isdisjoint(solved)


def test_rows_come_back_in_our_numbering() -> None:
    rows = np.array([[0.0], [10.0], [20.0], [30.0]])
    tokens = np.array(["[PAD]", "2", "0", "1"])
    assert recbole_worker.in_our_order(rows, tokens).tolist() == [[20.0], [30.0], [10.0]]
