"""What a user does from end to end: the demo without a network, and recommendations."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

import llmrec_pl.training
from llmrec_pl.cli import main
from llmrec_pl.commands.recommend import _about
from llmrec_pl.data import download
from llmrec_pl.data.dataset import InteractionDataset
from tests.canonical_folder import write_folder

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def run(llmrec_arguments, tmp_path_factory):
    """Train two epochs and return the run's folder."""
    root = tmp_path_factory.mktemp("run")
    arguments = ["--trainer.max_epochs", "2", "--trainer.default_root_dir", str(root)]
    llmrec_pl.training.run([*llmrec_arguments, *arguments])
    return next(root.rglob("best.ckpt")).parents[1]


def test_a_run_leaves_its_config_metrics_and_curve(run):
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"]
    for name in ("metrics/val.json", "metrics/val_per_user.parquet", "metrics.csv"):
        assert (run / name).stat().st_size > 0
    assert (run / "metrics/curve.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("events.out.tfevents.*"))
    assert not (run / "metrics/test.json").exists(), "fit never opens the test split"


def test_validate_and_test_repeat_the_runs_own_numbers(run, capsys):
    common = [
        "--config",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(run / "checkpoints/best.ckpt"),
    ]
    own = json.loads((run / "metrics/val.json").read_text())["metrics"]
    main(["validate", *common])
    assert json.loads((run / "metrics/val.json").read_text())["metrics"] == own
    main(["test", *common])
    first = json.loads((run / "metrics/test.json").read_text())
    main(["test", *common])
    second = json.loads((run / "metrics/test.json").read_text())
    assert first["metrics"] == second["metrics"]
    assert (first["test_openings"], second["test_openings"]) == (1, 2)
    shown = capsys.readouterr().out
    assert f"{first['metrics']['recall@20']:.4f}" in shown
    assert "opened 2 time(s)" in " ".join(shown.split())


def test_recommend_shows_titles_and_nothing_known(run, small_data, capsys):
    dataset = InteractionDataset.load(small_data)
    user_id = str(dataset.user_ids[3])
    main(["recommend", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--user", user_id])
    shown = capsys.readouterr().out
    assert f"user {user_id}" in shown
    lists = recommended(run)
    titles = dataset.titles()
    known = {titles[i] for i in (dataset.train + dataset.val)[[3]].indices}
    best = lists.filter(user=3).sort("rank")["title"].to_list()[:10]
    assert not known & set(best)
    for title in best:
        assert title.split(":")[0][:20] in shown


def recommended(run):
    common = [
        "--config",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(run / "checkpoints/best.ckpt"),
    ]
    main(["predict", *common])
    return pl.read_parquet(run / "predictions/top_k.parquet")


def test_recommend_for_an_unknown_user_names_known_ids(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["recommend", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--user", "nobody"])
    assert stop.value.code == 1
    assert "'nobody'" in capsys.readouterr().err


def test_recommend_needs_no_user_table(tmp_path):
    assert _about(InteractionDataset.load(write_folder(tmp_path)))(0) == ""


def test_recommend_from_moved_data(run, small_data, tmp_path, capsys):
    moved = shutil.copytree(small_data, tmp_path / "elsewhere")
    path = str(run / "checkpoints/best.ckpt")
    main(["recommend", "--ckpt_path", path, "--random", "1", "--data-root", str(moved)])
    assert "recommended" in capsys.readouterr().out


def test_features_made_later_do_no_harm(run, small_data, tmp_path, capsys):
    grown = shutil.copytree(small_data, tmp_path / "grown")
    main(["features", str(grown), "--text", "genres", "--name", "later", "--encoder", "tfidf"])
    checkpoint = str(run / "checkpoints/best.ckpt")
    own = json.loads((run / "metrics/val.json").read_text())["metrics"]
    common = ["--config", str(run / "config.yaml"), "--ckpt_path", checkpoint]
    main(["validate", *common, "--data.root", str(grown)])
    assert json.loads((run / "metrics/val.json").read_text())["metrics"] == own
    main(["recommend", "--ckpt_path", checkpoint, "--random", "1", "--data-root", str(grown)])
    assert "recommended" in capsys.readouterr().out


def test_the_config_of_a_resumed_run_names_no_checkpoint(llmrec_arguments, run, tmp_path):
    last = ["--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs", "3"]
    llmrec_pl.training.run([*llmrec_arguments, *last, "--trainer.default_root_dir", str(tmp_path)])
    config = next(tmp_path.rglob("config.yaml"))
    assert yaml.safe_load(config.read_text())["ckpt_path"] is None
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", str(config)])
    assert stop.value.code == 1


def test_the_demo_goes_on_with_simulated_films_when_nothing_can_be_fetched(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    # Nobody listens at the first address, and the package index is switched off.
    monkeypatch.setattr(download, "GROUPLENS", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    config = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    config["trainer"]["max_epochs"] = 2
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(config))
    main(["demo", "--config", "short.yaml"])
    shown = capsys.readouterr().out
    assert "simulated" in shown
    assert "opened 1 time(s)" in " ".join(shown.split())
    assert shown.count("liked so far") == 3
