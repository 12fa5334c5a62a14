"""A toy graph with every kind of feature, for float64 re-derivations."""

import numpy as np
import pytest
import torch

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore

N_USERS, N_ITEMS = 7, 9


@pytest.fixture
def toy_dataset():
    """7 users, 9 items; user 6 has no train interaction, item 8 neither."""
    random = np.random.default_rng(5)
    dense = random.random((N_USERS, N_ITEMS)) < 0.35
    dense[:6, 0] = True
    dense[np.arange(6), np.arange(1, 7)] = True
    dense[6] = False
    dense[:, 8] = False
    return InteractionDataset.from_edges("toy", N_USERS, N_ITEMS, np.stack(np.nonzero(dense)))


@pytest.fixture
def toy_features():
    """Two modalities, one profile, two attributes (one with repeated and unknown rows)."""
    random = np.random.default_rng(6)

    def rows(n, dim):
        return random.normal(size=(n, dim)).astype(np.float32)

    index = np.array([0, 1, 1, 0, 2, -1, 2, 0, 1], dtype=np.int64)
    return FeatureStore(
        {
            "text": Feature("text", "item", "modality", rows(N_ITEMS, 6)),
            "image": Feature("image", "item", "modality", rows(N_ITEMS, 5)),
            "profile": Feature("profile", "user", "profile", rows(N_USERS, 4)),
            "director": Feature("director", "item", "attribute", rows(3, 3), index),
            "country": Feature("country", "item", "attribute", rows(N_ITEMS, 3)),
        }
    )


@pytest.fixture
def toy_batch():
    """Eight triplets with repeated users and items, six observed and two from an LLM."""
    return {
        "user": torch.tensor([0, 1, 2, 3, 4, 5, 0, 3]),
        "pos_item": torch.tensor([0, 2, 0, 4, 0, 6, 1, 8]),
        "neg_item": torch.tensor([7, 7, 8, 7, 3, 1, 8, 2]),
        "source": torch.tensor([0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.int8),
    }
