import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from answered import (
    answer,
    config_of,
    fill,
    opened,
    profile,
    records,
)

from augment.export import export
from llmrec_pl.data.augmentation import MANIFEST, load_augmentation
from llmrec_pl.data.augmentation_fields import read_tensors

ROOT = Path(__file__).parents[2]


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# Same store, same bytes (P6) -------------------------------------------------------------------


def test_the_same_store_gives_the_same_bytes_in_another_process(tmp_path, config, data):
    fill(config, data)
    first, second = tmp_path / "first", tmp_path / "second"
    export(config.store, config, data, out=first)
    assert hashes(first) == hashes(export(config.store, config, data, out=second).path)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "augment", "export", "--config", str(file)]
    environment = {**os.environ, "POLARS_MAX_THREADS": "1", "PYTHONHASHSEED": "7"}
    for order in ([], ["--seed", "3"]):
        done = subprocess.run(
            [*command, *order, "--out", str(tmp_path / "third")],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert hashes(tmp_path / "third") == hashes(first)


def test_cost_time_and_order_of_answering_change_no_data_file(tmp_path, config, data):
    fill(config, data)
    made = export(config.store, config, data, out=tmp_path / "first")
    other = config_of(tmp_path / "again", data.root)
    (tmp_path / "again").mkdir()
    with opened(other) as store:  # another store, other order, other cost
        answer(store, other, data, "pairs", most=4)
        n = iter(range(10**6))
        answer(store, other, data, "profiles", lambda c, b: profile(next(n) % 7))
        answer(
            store,
            other,
            data,
            "attributes",
            lambda c, b: records(c, director=f"D{int(c['items'][0]) % 3}", country="Altoria"),
        )
        answer(store, other, data, "pairs")
        answer(store, other, data, "embed")
        store.do(lambda db: db.execute("UPDATE ledger SET spent_pusd = 12345").rowcount)
    again = export(other.store, other, data)
    assert again.content_id == made.content_id
    assert again.manifest["provenance"] == made.manifest["provenance"]
    assert again.manifest["cost"]["store_spent_usd"] == "0.000000012345"
    assert again.manifest["store"] != made.manifest["store"]


def test_any_other_answer_changes_content_id_and_hashes(tmp_path, config, data):
    fill(config, data)
    made = export(config.store, config, data)
    other = config_of(tmp_path / "again", data.root)
    (tmp_path / "again").mkdir()
    fill(other, data, country="Borea")
    again = export(other.store, other, data)
    assert again.content_id != made.content_id
    mine, theirs = made.manifest["provenance"], again.manifest["provenance"]
    different = {k for k in mine if mine[k] != theirs[k]}
    assert different == {"answers_sha", "embeddings_sha"}
    assert mine["answers_sha"]["pairs"] == theirs["answers_sha"]["pairs"]


# Crash -----------------------------------------------------------------------------------------


def test_kill_during_export_leaves_the_old_one_and_a_rerun_gives_the_same(tmp_path, config, data):
    fill(config, data)
    export(config.store, config, data)
    before = hashes(config.out)
    with opened(config) as store:
        answer(
            store,
            config_of(tmp_path, data.root, pairs={"n_candidates": 4}),
            data,
            "pairs",
        )
    other = config_of(tmp_path, data.root, pairs={"n_candidates": 4})
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(other.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "augment", "export", "--config", str(file)]
    killed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "AUGMENT_FAULT": "export"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert hashes(config.out) == before
    load_augmentation(config.out, data)
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    after = hashes(config.out)
    assert after != before
    export(other.store, other, data, out=tmp_path / "clean")
    assert hashes(tmp_path / "clean") == after


# The trainer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", [None, "no_llm_edges", "no_profile", "no_side_information"])
def test_the_trainer_fits_on_an_export_under_each_ablation(config, data, ablation):
    import llmrec_pl.training

    fill(config, data)
    export(config.store, config, data)
    overlay = ROOT / "configs" / "ablations" / f"{ablation}.yaml"
    configs = [ROOT / "configs" / "ml-100k.yaml", *([overlay] if ablation else [])]
    cli = llmrec_pl.training.run(
        [
            "fit",
            *(x for path in configs for x in ("--config", str(path))),
            *("--data.root", str(data.root), "--data.augmentation", str(config.out)),
            *("--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"),
        ]
    )
    groups = cli.model.groups
    assert cli.trainer.global_step == 1, "so few interactions are one batch"
    assert bool(cli.datamodule.effective_llm_edge_rate) == (ablation != "no_llm_edges")
    assert bool(groups["profile"]) == (ablation not in ("no_profile", "no_side_information"))
    assert bool(groups["attribute"]) == (ablation != "no_side_information")


def test_data_files_hold_no_times_or_cost(config, data):
    fill(config, data)
    export(config.store, config, data)
    assert set(read_tensors(config.out / "pairs.safetensors")) == {"user", "pos", "neg"}
    for name in ("pairs", "profiles", "attributes"):
        columns = set(pl.read_parquet(config.out / f"{name}.parquet").columns)
        assert not columns & {"t", "time", "created_at", "cost", "attempt"}
    assert json.loads((config.out / MANIFEST).read_text())["content_id"]
