"""Models without gradients go through every command like the others."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

import llmrec_pl.training
from llmrec_pl.checkpoints import read_checkpoint
from llmrec_pl.cli import main
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.als import ALS
from llmrec_pl.models.ease import EASE
from tests.integration.conftest import ROOT


def arguments(name, small_data, root):
    return [
        *("--config", str(ROOT / "configs/ml-100k.yaml")),
        *("--config", str(ROOT / f"configs/models/{name}.yaml")),
        *("--data.root", str(small_data)),
        *("--trainer.accelerator", "cpu"),
        *("--trainer.default_root_dir", str(root)),
    ]


def found(root, pattern):
    return next(root.rglob(pattern))


@pytest.fixture(scope="module")
def ease(small_data, tmp_path_factory):
    """Fit EASE; return the folder, the command line's object, and the dense scores."""
    root = tmp_path_factory.mktemp("ease")
    cli = llmrec_pl.training.run(["fit", *arguments("ease", small_data, root)])
    dataset = InteractionDataset.load(small_data)
    x = dataset.train.toarray().astype(float)
    inverse = np.linalg.inv(x.T @ x + cli.model.l2_weight * np.eye(dataset.n_items))
    weights = np.eye(dataset.n_items) - inverse / np.diag(inverse)
    return root, cli, np.where(x > 0, -np.inf, x @ weights)


def recall_at_20(scores, held_out):
    values = []
    for row, wanted in zip(scores, held_out, strict=True):
        if wanted.any():
            best = np.argsort(-row, kind="stable")[:20]
            values.append(wanted[best].sum() / wanted.sum())
    return np.mean(values)


def test_one_step_is_enough_whatever_the_epochs(ease):
    root, cli, _ = ease
    assert cli.trainer.max_epochs > 1
    assert cli.trainer.global_step == 1
    assert len(list(root.rglob("*.ckpt"))) == 2


def test_validation_is_that_of_the_dense_scores(ease, small_data):
    root, _, scores = ease
    record = json.loads(found(root, "val.json").read_text())
    expected = recall_at_20(scores, InteractionDataset.load(small_data).val.toarray())
    assert record["metrics"]["recall@20"] == pytest.approx(expected, abs=1e-3)
    assert expected > 0.05


def test_predict_and_recommend_rank_by_the_dense_scores(ease, small_data, capsys):
    root, _, scores = ease
    dataset = InteractionDataset.load(small_data)
    checkpoint = str(found(root, "best.ckpt"))
    config = str(found(root, "config.yaml"))
    llmrec_pl.training.run(["predict", "--config", config, "--ckpt_path", checkpoint])
    pools = pl.read_parquet(found(root, "candidates.parquet"))
    for user in (0, 7, 399):
        items = pools.filter(user=user).sort("rank")["item"].to_numpy()
        # Float32 may swap near ties: the values must be those of the best.
        best = np.sort(scores[user])[::-1][: len(items)]
        np.testing.assert_allclose(scores[user][items], best, rtol=1e-3)
    capsys.readouterr()
    user_id = str(dataset.user_ids[7])
    main(["recommend", "--ckpt_path", checkpoint, "--user", user_id])
    lists = pl.read_parquet(found(root, "top_k.parquet"))
    first = lists.filter(user=7).sort("rank")["title"][0]
    assert first.split(":")[0][:20] in capsys.readouterr().out


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(ease, small_data, tmp_path):
    root, cli, _ = ease
    last = str(found(root, "last.ckpt"))
    more = llmrec_pl.training.run(
        ["fit", *arguments("ease", small_data, tmp_path), "--ckpt_path", last]
    )
    assert more.trainer.global_step <= 2
    torch.testing.assert_close(more.model.item_weights, cli.model.item_weights, rtol=0, atol=0)


def test_als_stopped_and_resumed_gives_the_factors_of_one_run(small_data, tmp_path):
    pytest.importorskip("implicit")

    def fit(folder, epochs, *more):
        root = tmp_path / folder
        line = arguments("als", small_data, root)
        line += ["--model.init_args.embedding_dim", "8", "--early_stopping.patience", "9"]
        cli = llmrec_pl.training.run(["fit", *line, "--trainer.max_epochs", epochs, *more])
        return cli, read_checkpoint(found(root, "last.ckpt"))["state_dict"]

    cli, whole = fit("whole", "3")
    assert len(cli.config_init["fit"]["evaluation"].history) == 3
    _, first = fit("first", "1")
    assert not torch.equal(first["item_factors"], whole["item_factors"])
    _, resumed = fit("rest", "3", "--ckpt_path", str(found(tmp_path / "first", "last.ckpt")))
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["popularity", "item_knn", "ease", "l3ae", "als"])
def test_the_screen_stays_quiet(command, small_data, tmp_path, name):
    if name == "als":
        pytest.importorskip("implicit")
    line = arguments(name, small_data, tmp_path)
    done = command("fit", *line, "--trainer.max_epochs", "2")
    assert "warn" not in (done.stdout + done.stderr).lower()
    assert "validation, " in done.stdout


@pytest.mark.parametrize("model_class", [EASE, ALS])
def test_several_processes_are_refused_in_training_only(model_class):
    def asked(stage):
        model = model_class()
        state = SimpleNamespace(fn=stage)
        model._trainer = SimpleNamespace(state=state, world_size=2, datamodule=None)
        model.configure_model()

    with pytest.raises(ConfigError, match=rf"{model_class.__name__}.*--trainer.devices 1"):
        asked(TrainerFn.FITTING)
    with pytest.raises(ConfigError, match="no data module"):
        asked(TrainerFn.VALIDATING)
