"""A small simulated data set with features and an augmentation, made once a session."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec_pl.cli import main
from llmrec_pl.data.augmentation import write_augmentation
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A canonical folder with a text feature; beside it ``augmentation``."""
    root = tmp_path_factory.mktemp("data") / "simulated"
    main(["prepare", "simulated", "--out", str(root)])
    main(["features", str(root), "--text", "title,genres", "--encoder", "tfidf", "--dim", "8"])
    dataset = InteractionDataset.load(root)
    random = np.random.default_rng(0)

    def rows(n):
        return random.normal(size=(n, 6)).astype(np.float32)

    features = [
        Feature("profile", "user", "profile", rows(dataset.n_users)),
        Feature("director", "item", "attribute", rows(dataset.n_items)),
        Feature("country", "item", "attribute", rows(dataset.n_items)),
    ]
    edges = np.stack([np.arange(dataset.n_users), *np.zeros((2, dataset.n_users), np.int64)])
    for user in range(dataset.n_users):
        unseen = np.setdiff1d(np.arange(dataset.n_items), dataset.train[[user]].indices)
        edges[1:, user] = random.choice(unseen, size=2, replace=False)
    manifest = {
        "provider": "random numbers",
        "model": "none",
        "prompt_set": "none",
        "counts": {},
    }
    write_augmentation(
        root.parent / "augmentation", dataset, edges=edges, features=features, manifest=manifest
    )
    return root


@pytest.fixture(scope="session")
def llmrec_arguments(small_data):
    """`fit` of LLMRec with every part on: augmentation, dropout, masks."""
    return [
        "fit",
        *("--config", str(ROOT / "configs/ml-100k.yaml")),
        *("--config", str(ROOT / "configs/models/llmrec.yaml")),
        *("--data.root", str(small_data)),
        *("--data.augmentation", str(small_data.parent / "augmentation")),
        *("--data.batch_size", "512"),
        *("--model.init_args.dropout", "0.2"),
        *("--model.init_args.embedding_dim", "16"),
        *("--trainer.accelerator", "cpu"),
        *("--evaluation.ks", "[5,20]"),
    ]


@pytest.fixture
def command():
    """Run ``python -m llmrec_pl`` in a process of its own."""

    def run(*arguments, check=True, **options):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        done = subprocess.run(
            [sys.executable, "-m", "llmrec_pl", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=240,
            check=False,
            **options,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run
