"""Popularity counts, and scores everybody alike."""

import numpy as np

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.models.popularity import Popularity


def test_every_user_sees_the_counts_of_train(toy_dataset):
    model = Popularity()
    model.build_seeded(toy_dataset, FeatureStore(), seed=1)
    model.double().refresh()
    user, item = model.encode()
    count = toy_dataset.train.toarray().sum(axis=0).astype(float)
    np.testing.assert_array_equal((user @ item.T).numpy(), np.tile(count, (7, 1)))
