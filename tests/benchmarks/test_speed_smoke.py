"""The speed benchmarks run from command line to picture, at tiny size."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compiling, evaluation, memory, processes, sampler, startup
from llmrec_pl.data.triplets import TripletBatch

ROOT = Path(__file__).resolve().parents[2]


Main = Callable[[Sequence[str]], None]


def run(main: Main, out: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark; return what it wrote."""
    main([*arguments, "--out", str(out)])
    assert out.with_suffix(".png").stat().st_size > 1000
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


# The sampler.


def test_sampler_gives_a_rate_for_every_case_at_two_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--scale", "0.01", "--seconds", "0.02"
    found = run(sampler.main, tmp_path / "sampler.json", *arguments)
    rows = found["rows"]
    assert [row["case"] for row in rows] == [*sampler.CASES] * 2
    assert all(row["triplets_a_second"] > 0 for row in rows)
    small, large = rows[0], rows[len(sampler.CASES)]
    assert large["edges"] == pytest.approx(10 * small["edges"], rel=0.01)
    assert "verified triplets a second" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["pos_item", "neg_item", "user", None])
def test_a_wrong_triplet_is_noticed(damage: str | None) -> None:
    dataset = sampler.made_up(0.01)
    draw = sampler.TripletSampler(dataset.train, 16, seed=0)
    batch = draw.batch(0, 0)
    fields = {name: getattr(batch, name).copy() for name in ("user", "pos_item", "neg_item")}
    met = dataset.train[[int(batch.user[5])]].indices
    if damage == "neg_item":
        fields["neg_item"][5] = met[0]
    elif damage == "pos_item":
        fields["pos_item"][5] = np.setdiff1d(np.arange(dataset.n_items), met)[0]
    elif damage == "user":
        strangers = np.setdiff1d(
            np.arange(dataset.n_users), dataset.train.T.tocsr()[[int(batch.pos_item[5])]].indices
        )
        fields["user"][5] = strangers[0]
    batches = [draw.batch(0, 1), TripletBatch(**fields, source=batch.source)]
    if damage is None:
        sampler.verify(batches, dataset)
        return
    with pytest.raises(SystemExit, match="item is"):
        sampler.verify(batches, dataset)


def test_a_wrong_llm_triplet_is_noticed() -> None:
    dataset = sampler.made_up(0.01)
    llm = sampler.one_llm_edge_a_user(dataset)
    draw = sampler.TripletSampler(
        dataset.train, 64, seed=0, sampling="user", llm_edges=llm, llm_edge_rate=0.5
    )
    batch = draw.batch(0, 0)
    sampler.verify([batch], dataset, llm)
    batch.neg_item[-1] += 1
    with pytest.raises(SystemExit, match="not among those given"):
        sampler.verify([batch], dataset, llm)


# Evaluation.


@pytest.mark.slow
def test_evaluation_is_the_same_for_all_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--scale", "0.01", "--tiles", "50x32768", "64x60"
    found = run(evaluation.main, tmp_path / "evaluation.json", *arguments)
    assert found["equal_for_all_tiles"] is True
    assert [row["items_at_once"] for row in found["rows"]] == [32768, 60]
    for row in found["rows"]:
        assert set(row["cpu_s"]) == {"bare", "fitting", "validate"}
        assert row["peak_gib"] >= row["before_gib"] > 0
    assert "equal, bit for bit" in capsys.readouterr().out


# Start-up.


@pytest.mark.slow
def test_startup_times_a_command_beside_its_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--repeats", "1", "--commands", "llmrec_pl --help"
    found = run(startup.main, tmp_path / "startup.json", *arguments)
    assert [row["command"] for row in found["rows"]] == [
        "python",
        "import lightning",
        "llmrec_pl --help",
    ]
    assert found["rows"][2]["limit_s"] == startup.MOST_S
    assert "llmrec_pl --help" in capsys.readouterr().out


def test_commands_that_train_are_held_against_lightning_and_all_others_against_seconds() -> None:
    every = startup.commands()
    limits = {command: startup.limit(command, lightning=5.0) for command in every}
    assert limits.pop("llmrec_pl fit --help") == pytest.approx(6.5)
    assert set(limits.values()) == {startup.MOST_S}
    assert {"llmrec_pl --help", "llmrec_pl describe --help", "augment --help"} <= set(every)


# Measuring.


def test_a_process_of_its_own_has_a_peak_of_its_own() -> None:
    ballast = np.ones(300 * 2**17)  # 300 MiB here are not the other process's
    code = "import json; from benchmarks.memory import peak_gib; print(json.dumps(peak_gib()))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert memory.peak_gib() > ballast.nbytes / 2**30
    assert 0 < json.loads(run.stdout) < 0.2


def test_a_failed_measurement_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.nothing"):
        processes.apart("benchmarks.nothing")


# The compiler.


def test_models_are_timed_without_and_with_the_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.compile", lambda losses, **_: losses)  # takes half a minute
    found = compiling.measure("mf", 0.01, 2)
    assert found["plain_s"] > 0
    assert found["compiled_s"] > 0
    broken = {"model": "x", "plain_s": 0.1, "compiled_error": "E: no"}
    quick = found | {"plain_s": 0.2, "compiled_s": 0.1, "plain_start_s": 0, "compiled_start_s": 9}
    compiling.show([quick, broken])
    said = capsys.readouterr().out
    assert "90 steps" in said
    assert "fails" in said
