from __future__ import annotations

import argparse

import numpy as np
import pytest

from llmrec_pl.commands import describe
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, write_feature
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources.simulated import simulate
from llmrec_pl.errors import DatasetError


def run(*words):
    parser = argparse.ArgumentParser()
    describe.add_arguments(parser)
    describe.run(parser.parse_args([str(w) for w in words]))


@pytest.fixture
def folder(tmp_path):
    prepare_dataset(simulate(n_users=40, n_items=50), tmp_path / "films", Protocol(min_rating=4))
    return tmp_path / "films"


def test_the_summary_names_sizes_protocol_and_origin(folder, capsys):
    dataset = InteractionDataset.load(folder)
    run(folder, "--no-plot")
    shown = capsys.readouterr().out
    for part in (
        f"{dataset.train.nnz:,}",
        f"{dataset.meta['counts']['splits']['test']:,}",
        "sparsity",
        "min_rating",
        "simulated",
        "genres (100%)",
        "features: none",
    ):
        assert part in shown
    assert dataset.fingerprint in shown
    assert not (folder / "describe.png").exists()


def test_features_are_listed(folder, capsys):
    n_items = InteractionDataset.load(folder).n_items
    write_feature(folder, Feature("text", "item", "modality", np.ones((n_items, 7), np.float32)))
    run(folder, "--no-plot")
    shown = capsys.readouterr().out
    assert "modality" in shown
    assert "float32" in shown


def test_the_picture_lies_beside_and_breaks_no_checksum(folder, tmp_path):
    run(folder)
    assert (folder / "describe.png").read_bytes().startswith(b"\x89PNG")
    InteractionDataset.load(folder)
    run(folder, "--plot", tmp_path / "d.svg")
    assert b"<svg" in (tmp_path / "d.svg").read_bytes()


def test_what_cannot_be_done_is_named(folder, tmp_path):
    with pytest.raises(DatasetError, match="no data set at"):
        run(tmp_path / "nothing")
    for bad in (tmp_path / "no" / "folder.png", tmp_path / "d.docx"):
        with pytest.raises(DatasetError, match="cannot write the picture"):
            run(folder, "--plot", bad)


def test_gini():
    assert describe.gini(np.array([5, 5, 5])) == pytest.approx(0)
    assert describe.gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert describe.gini(np.array([0, 0])) == 0
    # mean absolute difference over twice the mean
    values = np.array([1, 2, 7, 10])
    mad = np.abs(values[:, None] - values).mean()
    assert describe.gini(values) == pytest.approx(mad / (2 * values.mean()))


def test_degrees_count_train_only(folder):
    dataset = InteractionDataset.load(folder)
    found = describe.degrees(dataset)
    dense = dataset.train.toarray()
    assert np.array_equal(found["users"], dense.sum(axis=1))
    assert np.array_equal(found["items"], dense.sum(axis=0))
