"""`sweep`: runs, resume, what it writes, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from llmrec_pl import progress_bar
from llmrec_pl.cli import main, run_plain
from llmrec_pl.errors import ConfigError
from llmrec_pl.sweeping.execute import execute
from llmrec_pl.sweeping.plan import folder_name, read_sweep
from llmrec_pl.sweeping.report import put_into

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs/models"


def written(folder, data, **changes):
    """A sweep of MF and LightGCN on the small data."""
    fast = folder / "fast.yaml"
    trainer = {"max_epochs": 3, "accelerator": "cpu"}
    fast.write_text(yaml.safe_dump({"trainer": trainer, "data": {"root": str(data)}}))
    content = {
        "base": [str(ROOT / "configs/ml-100k.yaml"), str(fast)],
        "seeds": [1, 2],
        "test": True,
        "out": str(folder / "runs"),
        "entries": {"MF": str(MODELS / "mf.yaml"), "Light GCN": [str(MODELS / "lightgcn.yaml")]},
        **changes,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_data):
    folder = tmp_path_factory.mktemp("sweep")
    path = written(folder, small_data)
    main(["sweep", str(path)])
    return folder, path


def test_means_deviations_and_per_user_rows_are_those_of_the_runs(finished):
    folder, _ = finished
    content = json.loads((folder / "runs/small.json").read_text())
    for split in ("val", "test"):
        rows = pl.read_parquet(folder / f"runs/small_{split}_per_user.parquet")
        for entry in content["splits"][split]:
            values = []
            for seed in (1, 2):
                run = folder / "runs" / folder_name(entry["name"]) / f"seed-{seed}"
                record = json.loads((run / f"metrics/{split}.json").read_text())["metrics"]
                values.append(record["ndcg@10"])
                of_run = rows.filter((pl.col("model") == entry["name"]) & (pl.col("seed") == seed))
                assert of_run["ndcg@10"].mean() == pytest.approx(record["ndcg@10"], abs=1e-6)
                assert len(of_run) == entry["users"]
            assert entry["mean"]["ndcg@10"] == pytest.approx(np.mean(values))
            assert entry["deviation"]["ndcg@10"] == pytest.approx(np.std(values, ddof=1))
            assert entry["seconds"] > 0
            assert entry["epochs"] == 3
    assert (folder / "runs/small_val.png").stat().st_size > 5_000


def rows_of(run):
    """Rows of the curve, of the epochs' validations and of the rest."""
    rows = pl.read_csv(run / "metrics.csv")
    validated = rows.filter(pl.col("val/recall@20").is_not_null()).drop(
        pl.selectors.starts_with("train/")
    )
    return validated, rows.filter(pl.col("val/recall@20").is_null())


def test_the_test_split_leaves_the_curve_of_training(finished):
    folder, _ = finished
    validated, trained = rows_of(folder / "runs/mf/seed-1")
    assert validated["epoch"].to_list() == [0, 1, 2, 3], "three epochs, and the selected one again"
    assert trained["epoch"].to_list() == [0, 1, 2]
    assert trained["train/bpr"].null_count() == 0


def test_a_finished_sweep_is_only_read(finished, capsys):
    folder, path = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.ckpt")}
    main(["sweep", str(path)])
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.ckpt")} == before
    assert "4 runs, 4 of them finished" in capsys.readouterr().out
    openings = json.loads((folder / "runs/mf/seed-1/metrics/test_openings.json").read_text())
    assert len(openings) == 1, "the test split is opened once for every run"


def test_the_table_shows_every_entry_and_goes_into_a_page(finished, capsys, tmp_path):
    _, path = finished
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: val -->\nold\n<!-- end -->\nafter\n")
    capsys.readouterr()
    main(["sweep", str(path), "--table", "--into", str(page)])
    out, text = capsys.readouterr().out, page.read_text()
    for name in ("MF", "Light GCN"):
        assert name in out
        assert f"| {name} |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    main(["sweep", str(path), "--table", "--into", str(page)])
    assert page.read_text() == text


def test_other_list_lengths_give_their_own_columns(tmp_path, small_data, capsys):
    entries = {"MF": str(MODELS / "mf.yaml")}
    path = written(tmp_path, small_data, entries=entries, seeds=[1], test=False)
    main(
        [
            "sweep",
            str(path),
            "--",
            "--evaluation.ks",
            "[5]",
            "--checkpoint.monitor",
            "val/recall@5",
            "--early_stopping.monitor",
            "val/recall@5",
        ]
    )
    out = capsys.readouterr().out
    assert "R@5" in out
    assert "hits@5" in out
    assert "@20" not in out


def test_a_sweep_may_rank_cold_items_among_themselves(tmp_path, capsys):
    data = tmp_path / "data"
    main(["prepare", "simulated", "--out", str(data), "--cold-items", "0.2"])
    entries = {"MF": str(MODELS / "mf.yaml")}
    path = written(tmp_path, data, entries=entries, seeds=[1])
    more = ["--", "--evaluation.candidates=cold", "--evaluation.ks=[5,20]"]
    main(["sweep", str(path), *more])
    record = json.loads((tmp_path / "runs/mf/seed-1/metrics/test_cold.json").read_text())
    content = json.loads((tmp_path / "runs/small.json").read_text())
    assert content["splits"]["test"][0]["mean"]["recall@5"] == record["metrics"]["recall@5"]
    assert "cold items among themselves" in capsys.readouterr().out
    main(["sweep", str(path), *more])
    assert "1 runs, 1 of them finished" in capsys.readouterr().out


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    put_into(page, {"val": "table"})
    assert page.read_text() == "nothing here\n"


def test_a_folder_begun_with_another_config_is_refused(finished):
    folder, path = finished
    with pytest.raises(ConfigError, match="begun with another config"):
        run_plain("sweep", [str(path), "--", "--model.embedding_dim", "8"])
    assert (folder / "runs/small.json").is_file()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_in_the_middle_of_a_run(tmp_path, small_data):
    more = ("--", "--trainer.max_epochs", "12")
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    only = {"entries": {"MF": str(MODELS / "mf.yaml")}, "seeds": [1], "test": False}
    calm = written(tmp_path / "calm", small_data, **only)
    killed = written(tmp_path / "killed", small_data, **only)
    main(["sweep", str(calm), *more])
    command = [sys.executable, "-m", "llmrec_pl", "sweep", str(killed), *more]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    run = tmp_path / "killed/runs/mf/seed-1"
    last = run / "checkpoints/last.ckpt"
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "metrics/val.json").exists()
    stopped = torch.load(last, weights_only=True)["epoch"]
    assert stopped < 11
    main(["sweep", str(killed), *more])
    found, wanted = (
        json.loads((tmp_path / n / "runs/mf/seed-1/metrics/val.json").read_text())["metrics"]
        for n in ("killed", "calm")
    )
    assert found == wanted
    states = [
        torch.load(tmp_path / n / "runs/mf/seed-1/checkpoints/best.ckpt", weights_only=True)
        for n in ("killed", "calm")
    ]
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name])
    curves = [rows_of(tmp_path / n / "runs/mf/seed-1")[0] for n in ("killed", "calm")]
    assert curves[0].equals(curves[1])


def test_a_run_that_fails_leaves_the_others_and_is_named(tmp_path, small_data):
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {init_args: {embedding_dim: 0}}\n")
    entries = {"bad": [str(MODELS / "mf.yaml"), str(bad)], "good": str(MODELS / "mf.yaml")}
    path = written(tmp_path, small_data, entries=entries, seeds=[1], test=False)
    with pytest.raises(ConfigError, match=r"1 of 2 runs failed.*error\.txt"):
        run_plain("sweep", [str(path)])
    assert (tmp_path / "runs/good/seed-1/metrics/val.json").is_file()
    assert "embedding_dim" in (tmp_path / "runs/bad/seed-1/error.txt").read_text()


def test_a_run_in_a_worker_says_where_it_is_on_standard_error(
    tmp_path, small_data, monkeypatch, capsys
):
    monkeypatch.setattr(progress_bar, "PLAIN_INTERVAL", 0.0)
    entries = {"MF of ours": str(MODELS / "mf.yaml")}
    path = written(tmp_path, small_data, entries=entries, seeds=[7], test=False)
    (run,) = read_sweep(str(path), {}).runs([])
    run.folder.mkdir(parents=True)
    assert execute(run) is None
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("MF of ours, seed 7: epoch ")]
    steps = int(re.search(r"step 1/(\d+)$", lines[0])[1])
    assert len(lines) == 3 * steps
    record = run.metrics("val")["metrics"]
    number = r"val/recall@20 \d\.\d{4}"
    last = rf"MF of ours, seed 7: epoch 3/3, step {steps}/{steps}, {number}, best ({number})"
    found = re.fullmatch(last, lines[-1])[1]
    assert 0 < float(found.split()[1]) <= round(record["recall@20"], 4)
    assert out == ""


def test_a_config_the_parser_refuses_ends_its_own_run_only(tmp_path, small_data, capfd):
    typo = tmp_path / "typo.yaml"
    typo.write_text("model: {init_args: {embeding_dim: 8}}\n")
    entries = {"typo": [str(MODELS / "mf.yaml"), str(typo)], "good": str(MODELS / "mf.yaml")}
    path = written(tmp_path, small_data, entries=entries, seeds=[1], test=False)
    with pytest.raises(ConfigError, match="1 of 2 runs failed"):
        run_plain("sweep", [str(path)])
    assert (tmp_path / "runs/good/seed-1/metrics/val.json").is_file()
    out, err = capfd.readouterr()
    assert f"unknown key `model.init_args.embeding_dim` in {str(typo)!r}" in out
    assert "usage:" not in out + err


def test_a_sweep_says_what_is_untuned_and_how_to_compare_by_its_names(finished, capsys):
    folder, path = finished
    (folder / "tuned").mkdir(exist_ok=True)
    other = folder / "other.yaml"
    other.write_text(path.read_text() + f"tuned: {folder / 'tuned'}\n")
    capsys.readouterr()
    main(["sweep", str(other), "--table", "--results", str(folder / "other")])
    out = capsys.readouterr().out
    assert f"note: no values in {folder / 'tuned'} for: MF, Light GCN" in out
    assert f"python -m llmrec_pl compare {folder / 'runs'}" in out
    main(["compare", str(folder / "runs"), "--baseline", "Light GCN", "--draws", "50"])
    assert "baseline Light GCN (as asked)" in " ".join(capsys.readouterr().out.split())


def test_a_folder_begun_before_names_were_kept_goes_on(tmp_path):
    runs = read_sweep(str(written(tmp_path, "data")), {}).runs([])
    record = runs[0].folder / "sweep.json"
    runs[0].check_unchanged()
    content = json.loads(record.read_text())
    assert content.pop("name") == "MF"
    record.write_text(json.dumps(content))
    runs[0].check_unchanged()
    assert json.loads(record.read_text())["name"] == "MF"


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="`--workers` must be positive, got 0"):
        run_plain("sweep", [str(written(tmp_path, "data")), "--workers", "0"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": {}}, "at least one seed"),
        ({"seeds": []}, "at least one seed"),
        ({"entries": {"A b": "x", "a-B": "y"}}, "share a folder"),
        ({"entriess": 1}, "unknown keys"),
        ({"entries": {"A": "configs/models/nowhere.yaml"}}, r"nowhere\.yaml"),
        ({"entries": ["mf.yaml"]}, r"`entries` must map names to config files, got \['mf.yaml'\]"),
        ({"seeds": 3}, "`seeds` must list distinct integers from 0 on, got 3"),
        ({"seeds": ["a"]}, "`seeds` must list"),
        ({"seeds": [1, 1]}, r"distinct integers from 0 on, got \[1, 1\]"),
        ({"test": "no"}, "`test` must be true or false, got 'no'"),
        ({"base": None}, "`base` must name one config file"),
        (
            {"tuned": "configs/tunedd"},
            "`tuned` must name a folder that exists, got 'configs/tunedd'",
        ),
    ],
)
def test_a_malformed_sweep_is_explained(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_sweep(str(written(tmp_path, "data", **changes)), {})


def test_tuned_values_follow_the_file_of_the_same_name(tmp_path):
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "mf.yaml").write_text("model: {init_args: {l2_weight: 0.5}}\n")
    sweep = read_sweep(str(written(tmp_path, "data", tuned=str(tuned))), {})
    assert sweep.configs("MF")[-2:] == (str(MODELS / "mf.yaml"), str(tuned / "mf.yaml"))
    assert sweep.configs("Light GCN")[-1] == str(MODELS / "lightgcn.yaml")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_sweeps_name_files_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert read_sweep(str(path), {}).runs([])
