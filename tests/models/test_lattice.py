"""LATTICE against a dense float64 re-derivation, and its limit cases."""

import numpy as np
import pytest
import torch

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.lattice import LATTICE
from llmrec_pl.models.lightgcn import LightGCN
from tests.models.derivation import assert_terms_and_gradients, copies, ego_l2, mean_bpr
from tests.models.latent_graphs import (
    dense_lightgcn,
    mixed_graph,
    modalities,
    unit,
)

OURS = {"embedding_dim": 4, "n_neighbours": 3, "original_weight": 0.6, "l2_weight": 0.1}


def built(dataset, features, **options):
    model = LATTICE(**{**OURS, **options})
    model.build_seeded(dataset, features, seed=1)
    return model.double()


def reference(dataset, features, p, batch, options):
    graphs = [
        mixed_graph(
            feature,
            p.get(f"item_graphs.{m}.projection.weight"),
            p.get(f"item_graphs.{m}.projection.bias"),
            options["n_neighbours"],
            options["original_weight"],
        )
        for m, feature in enumerate(features.values())
    ]
    weight = p.get("modality_weight", torch.zeros(1, dtype=torch.float64)).exp()
    mixed = sum(a / weight.sum() * g for a, g in zip(weight, graphs, strict=True))
    user, q = p["user_embedding.weight"], p["item_embedding.weight"]
    h = q
    for _ in range(options.get("n_item_layers", 1)):
        h = mixed @ h
    users, items = dense_lightgcn(dataset, user, q, options.get("n_layers", 2))
    items = items + unit(h)
    l2 = options["l2_weight"] * ego_l2(user, q, batch)
    return users, items, {"bpr": mean_bpr(users, items, batch), "l2": l2}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"original_weight": 1.0}, {"original_weight": 0.0}, {"n_item_layers": 2, "n_layers": 3}],
    ids=str,
)
def test_forward_loss_and_gradients(toy_dataset, toy_batch, count, changes):
    options, features = {**OURS, **changes}, modalities(count)
    model = built(toy_dataset, features, **options)
    if model.modality_weight is not None:
        torch.nn.init.normal_(model.modality_weight)
    model.refresh()
    p = copies(model)
    users, items, expected = reference(toy_dataset, features, p, toy_batch, options)
    torch.testing.assert_close(model.encode().user, users, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.encode().item, items, rtol=1e-9, atol=1e-12)
    assert_terms_and_gradients(model, toy_batch, expected, p, atol=1e-11)


def test_without_item_layers_it_is_lightgcn_and_needs_no_features(toy_dataset, toy_batch):
    model = built(toy_dataset, FeatureStore(), n_item_layers=0)
    light = LightGCN(n_layers=2, embedding_dim=4, l2_weight=0.1)
    light.build_seeded(toy_dataset, FeatureStore(), seed=5)
    light.double().load_state_dict(model.state_dict())
    torch.testing.assert_close(model.encode(), light.encode(), rtol=0, atol=0)
    assert model.losses(toy_batch) == light.losses(toy_batch)


def test_what_is_not_used_is_not_built(toy_dataset):
    ego = {"user_embedding.weight", "item_embedding.weight"}
    assert set(built(toy_dataset, modalities(1), original_weight=1.0).state_dict()) == ego
    learned = set(built(toy_dataset, modalities(2)).state_dict()) - ego
    assert {n.rpartition(".")[2] for n in learned} == {
        "modality_weight",
        "weight",
        "bias",
        "neighbours",
    }
    alone = built(toy_dataset, modalities(1), original_weight=0.0)
    assert alone.item_graphs[0].original is None


def test_refresh_follows_the_projection_and_is_kept_in_the_state(toy_dataset):
    model = built(toy_dataset, modalities(1))
    graph = model.item_graphs[0]
    before = graph.neighbours.clone()
    torch.nn.init.normal_(graph.projection.weight)
    torch.testing.assert_close(graph.neighbours, before, rtol=0, atol=0)
    model.refresh()
    assert not torch.equal(graph.neighbours, before)
    other = built(toy_dataset, modalities(1))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.encode(), model.encode(), rtol=0, atol=0)


def test_an_item_without_the_feature_keeps_its_lightgcn_vector(toy_dataset):
    model = built(toy_dataset, modalities(2))
    light = dense_lightgcn(
        toy_dataset, model.user_embedding.weight, model.item_embedding.weight, 2
    )[1]
    moved = (model.encode().item - light).detach()
    assert float(moved[4].abs().max()) < 1e-12
    np.testing.assert_allclose(np.delete(moved.norm(dim=1).numpy(), 4), 1.0, rtol=1e-9)


def test_more_neighbours_than_items_means_all(toy_dataset):
    model = built(toy_dataset, modalities(1), n_neighbours=50)
    assert model.item_graphs[0].neighbours.shape == (9, 9)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_layers", -1), ("n_item_layers", -1), ("n_neighbours", 0), ("original_weight", 1.2)],
)
def test_values_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=argument):
        LATTICE(**{argument: value})


def test_without_a_modality_the_remedy_is_named(toy_dataset):
    with pytest.raises(ConfigError, match="LATTICE needs at least one item modality"):
        built(toy_dataset, FeatureStore())
