"""An LLM's features as item modalities, against loops over the train interactions."""

import numpy as np
import pytest

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature
from llmrec_pl.data.llm_modalities import as_item_modalities
from llmrec_pl.errors import ConfigError

N_USERS, N_ITEMS = 6, 5


@pytest.fixture
def dataset():
    """Item 3 is seen by user 5 alone, item 4 in the validation split only."""
    train = np.array([[0, 0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 2, 2, 3]])
    val = np.array([[0, 1], [4, 4]])
    return InteractionDataset.from_edges("toy", N_USERS, N_ITEMS, train, val)


def profile(index):
    values = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float16)
    return Feature("profile", "user", "profile", values, index, sha256="abc")


def test_profiles_are_averaged_over_the_train_users_that_have_one(dataset):
    # Users 0 and 2 have equal profiles, users 3 and 5 none.
    feature = profile(np.array([0, 1, 0, -1, 3, -1]))
    (found,) = as_item_modalities([feature], dataset.train)
    assert (found.name, found.side, found.group) == ("profile_mean", "item", "modality")
    assert found.values.dtype == np.float32
    assert found.index.tolist() == [0, 1, 2, -1, -1], "nobody known, and validation only"
    rows = feature.dense()
    for item, users in {0: [0], 1: [0, 1, 2], 2: [4]}.items():
        expected = np.mean([rows[u] for u in users], axis=0)
        np.testing.assert_allclose(found.dense()[item], expected, rtol=1e-6)


def test_profiles_without_an_index(dataset):
    values = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    feature = Feature("profile", "user", "profile", values)
    (found,) = as_item_modalities([feature], dataset.train)
    np.testing.assert_allclose(found.dense()[2], values[[3, 4]].mean(axis=0))
    np.testing.assert_allclose(found.dense()[4], 0)


def test_an_attribute_keeps_its_rows_and_is_told_apart(dataset):
    index = np.array([0, -1, 1, 1, 0])
    feature = Feature("director", "item", "attribute", np.eye(2, dtype=np.float32), index, "abc")
    (found,) = as_item_modalities([feature], dataset.train)
    assert (found.name, found.side, found.group) == ("director", "item", "modality")
    np.testing.assert_array_equal(found.dense(), feature.dense())
    assert found.sha256 != feature.sha256


def test_nothing_to_add_is_said(dataset):
    with pytest.raises(ConfigError, match="nothing to add"):
        as_item_modalities([], dataset.train)
