from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from llmrec_pl.commands import prepare
from llmrec_pl.data import download
from llmrec_pl.data.dataset import InteractionDataset, read_meta
from llmrec_pl.errors import DatasetError


def run(*words):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    prepare.run(parser.parse_args([str(w) for w in words]))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ml_100k(folder):
    folder.mkdir()
    rows = [f"{u}\t{i}\t{1 + (u + i) % 5}\t{900 + i}" for u in range(1, 9) for i in range(1, 13)]
    (folder / "u.data").write_text("\n".join(rows) + "\n")
    return folder


def test_simulated_data_with_defaults(capsys):
    run("simulated")
    meta = read_meta(Path("data/simulated"))
    assert meta["protocol"]["min_rating"] == 4
    assert meta["protocol"]["seed"] == 2026
    shown = capsys.readouterr().out
    assert meta["fingerprint"][:16] in shown
    assert f"{meta['counts']['removed']['rating below 4']:,}" in shown
    assert "python -m llmrec_pl describe data/simulated" in shown


def test_movielens_from_a_source_with_filters(tmp_path):
    source = ml_100k(tmp_path / "raw")
    run("ml-100k", "--source", source, "--out", "out", "--all-ratings", "--max-per-user", 6,
        "--k-core", 2, 3, "--split", "leave-last-out", "--name", "mini", "--seed", 5)  # fmt: skip
    meta = read_meta(Path("out"))
    assert meta["name"] == "mini"
    protocol = meta["protocol"]
    assert (protocol["k_core_users"], protocol["k_core_items"]) == (2, 3)
    assert protocol["min_rating"] is None
    assert protocol["split"] == "leave-last-out"
    assert meta["counts"]["removed"]["beyond 6 a user"] == 48
    assert InteractionDataset.load("out").train.nnz == meta["counts"]["splits"]["train"]


def test_cold_items_are_shown_and_recorded(capsys):
    run("simulated", "--cold-items", 0.25)
    meta = read_meta(Path("data/simulated"))
    assert meta["protocol"]["cold_items"] == 0.25
    assert meta["counts"]["items_without_train"] > 0
    assert "25% of items cold" in " ".join(capsys.readouterr().out.split())


def test_the_other_variant_is_mentioned(tmp_path, capsys):
    run("ml-1m", "--source", ml_100k(tmp_path / "raw"))
    assert "look like ml-100k, not ml-1m" in " ".join(capsys.readouterr().out.split())


def test_a_table_with_a_given_split(tmp_path):
    rows = [(u, i, "test" if i == 9 else "train") for u in range(20) for i in range(10)]
    pl.DataFrame(rows, schema=["who", "what", "part"], orient="row").write_csv("plays.csv")
    Path("songs.csv").write_text("id,title\n1,One\n")
    run("table", "--source", "plays.csv", "--user-column", "who", "--item-column", "what",
        "--split-column", "part", "--items", "songs.csv")  # fmt: skip
    meta = read_meta(Path("data/plays"))
    assert meta["protocol"]["split"] == "given"
    assert meta["protocol"]["carved"] == ["val"]
    assert meta["counts"]["splits"]["test"] == 20
    assert InteractionDataset.load("data/plays").titles()[:3] == ["0", "One", "2"]


def test_released_data(capsys):
    Path("netflix").mkdir()
    train = {str(u): [u % 7, 7 + u % 5, 12 + u % 3] for u in range(60)}
    test = {str(u): [15] for u in range(0, 60, 2)}
    for name, content in (("train", train), ("val", test), ("test", test)):
        Path(f"netflix/{name}.json").write_text(json.dumps(content))
    run("released", "--source", "netflix", "--n-items", 20)
    meta = read_meta(Path("data/netflix"))
    assert meta["n_items"] == 20
    assert meta["counts"]["splits"]["test"] == 30
    shown = " ".join(capsys.readouterr().out.split())
    assert "`val.json` equals `test.json`" in shown
    assert "val carved, seed 2026" in shown


def test_a_fetched_data_set(tmp_path, monkeypatch, capsys):
    source = ml_100k(tmp_path / "raw")

    def fetch(name, report):
        report(f"fetched {name}")
        return "movielens", source

    monkeypatch.setattr(download, "fetch_movielens", fetch)
    run("ml-100k")
    assert "fetched ml-100k" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["released"], "needs the raw data"),
        (["table", "--source", "missing.csv"], "is no file"),
        (["simulated", "--user-column", "x"], "--user-column only goes with `prepare table`"),
        (["simulated", "--n-items", "3"], "only go with `prepare released`"),
        (["simulated", "--k-core", "1", "2", "3"], "one or two numbers"),
        (["simulated", "--ratios", "0.5", "0.1", "0.1"], "sum to 1"),
        (["simulated", "--require-text", "poster"], "column `poster`"),
    ],
)
def test_wrong_arguments_are_sentences(words, message):
    with pytest.raises(DatasetError, match=message):
        run(*words)
    assert not Path("data").exists()


def test_an_existing_folder_is_refused_before_any_work(monkeypatch):
    run("simulated")

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(prepare, "_read", fail)
    with pytest.raises(DatasetError, match="--overwrite"):
        run("simulated")


def test_help_teaches_and_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import argparse, sys\n"
        "from llmrec_pl.commands import describe, prepare\n"
        "for module in (prepare, describe):\n"
        "    parser = argparse.ArgumentParser(description=module.__doc__)\n"
        "    module.add_arguments(parser)\n"
        "    print(parser.format_help())\n"
        "print(sorted({'torch', 'lightning', 'polars', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "python -m llmrec_pl prepare ml-100k" in done.stdout


@pytest.mark.real
def test_real_100k(real_data):
    run("ml-100k", "--source", real_data / "ml-100k")
    meta = read_meta(Path("data/ml-100k"))
    assert (meta["n_users"], meta["n_items"]) == (942, 1447)
    assert meta["counts"]["splits"] == {"train": 45_063, "val": 5_156, "test": 5_156}
