"""What a run says of its cost."""

import json
from pathlib import Path

import pytest

from llmrec_pl.training import run

CONFIGS = Path(__file__).parents[2] / "configs"


def fit(small_data, folder, epochs, *more):
    configs = (CONFIGS / "ml-100k.yaml", CONFIGS / "models/mf.yaml")
    words = [x for c in configs for x in ("--config", str(c))]
    trainer = {"max_epochs": epochs, "accelerator": "cpu", "default_root_dir": folder}
    words += [x for k, v in trainer.items() for x in (f"--trainer.{k}", str(v))]
    cli = run(["fit", *words, "--data.root", str(small_data), *more])
    written = json.loads((Path(cli.trainer.log_dir) / "metrics/cost.json").read_text())
    return cli, written


def test_epochs_evaluations_and_seconds_are_counted_over_a_resume(small_data, tmp_path, capsys):
    # A constant learning rate of zero makes the first epoch the best, which must not set the clock
    # back when it is validated at the end.
    zero = ("--model.optimizer.init_args.lr", "0.0")
    cli, first = fit(small_data, tmp_path, 3, *zero)
    assert (first["epochs"], first["evaluations"]) == (3, 3)
    assert cli.cost.record() == first
    assert "3 epochs" in capsys.readouterr().out
    last = Path(cli.trainer.log_dir) / "checkpoints/last.ckpt"
    _, second = fit(small_data, tmp_path, 5, *zero, "--ckpt_path", str(last))
    assert (second["epochs"], second["evaluations"]) == (5, 5)
    assert second["cpu_training"] > first["cpu_training"] * 0.9
    for clock in ("cpu", "wall"):
        whole = second[f"{clock}_seconds_per_epoch"] * 5
        assert whole == pytest.approx(second[f"{clock}_training"])
