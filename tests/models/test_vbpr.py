"""VBPR against a dense float64 re-derivation and its limit case."""

import numpy as np
import pytest
import torch

from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.layers import FeatureTable
from llmrec_pl.models.mf import MF
from llmrec_pl.models.vbpr import VBPR
from tests.models.derivation import assert_terms_and_gradients, copies
from tests.models.odd_modalities import N_ITEMS, REPEATED, odd_modalities


def built(dataset, features, **arguments):
    model = VBPR(**{"embedding_dim": 4, "projection_dim": 3, **arguments})
    model.build_seeded(dataset, features, seed=1)
    for parameter in (model.item_bias.weight, *model.feature_bias.parameters()):
        torch.nn.init.normal_(parameter)
    return model.double()


def score(p, features, user, item):
    """Return the paper's score of one pair, with the modalities' features side by side."""
    total = p["user_embedding.weight"][user] @ p["item_embedding.weight"][item]
    total = total + p["item_bias.weight"][item, 0]
    raw, projection, bias = [], [], []
    for name, feature in features.items():
        raw.append(torch.tensor(feature.dense()[item], dtype=torch.float64))
        projection.append(p[f"projection.{name}.weight"])
        bias.append(p[f"feature_bias.{name}.weight"][0])
    f = torch.cat(raw)
    visual = p["user_preference.weight"][user] @ (torch.cat(projection, dim=1) @ f)
    return total + visual + torch.cat(bias) @ f


@pytest.mark.parametrize("n_modalities", [1, 2, 3])
def test_scores_losses_and_gradients_equal_a_dense_derivation(toy_dataset, toy_batch, n_modalities):
    features = odd_modalities(n_modalities)
    options = {"normalise_features": False, "l2_weight": 0.3, "projection_l2_weight": 0.2}
    model = built(toy_dataset, features, **options)
    p = copies(model)
    user, item = model.encode()
    expected = torch.stack(
        [torch.stack([score(p, features, u, i) for i in range(N_ITEMS)]) for u in range(7)]
    )
    torch.testing.assert_close(user @ item.T, expected, rtol=1e-9, atol=1e-12)

    likelihoods, squares = [], 0
    for u, i, j in zip(*(toy_batch[k] for k in ("user", "pos_item", "neg_item")), strict=True):
        likelihoods.append(torch.log(torch.sigmoid(expected[u, i] - expected[u, j])))
        for name, row in (("user_embedding", u), ("user_preference", u)):
            squares = squares + (p[f"{name}.weight"][row] ** 2).sum()
        for name in ("item_embedding", "item_bias"):
            for row in (i, j):
                squares = squares + (p[f"{name}.weight"][row] ** 2).sum()
    shared = sum((x**2).sum() for n, x in p.items() if n.startswith(("projection", "feature_bias")))
    wanted = {
        "bpr": -sum(likelihoods) / 8,
        "l2": 0.3 * squares / (2 * 8),
        "projection_l2": 0.2 * shared / 2,
    }
    assert_terms_and_gradients(model, toy_batch, wanted, p)


def test_without_projection_and_feature_bias_it_is_mf_with_item_bias(toy_dataset):
    model = built(toy_dataset, odd_modalities(3))
    for parameter in (*model.projection.parameters(), *model.feature_bias.parameters()):
        torch.nn.init.zeros_(parameter)
    mf = MF(embedding_dim=4)
    mf.build_seeded(toy_dataset, FeatureStore(), seed=2)
    mf.double().load_state_dict({n: model.state_dict()[n] for n in mf.state_dict()})
    user, item = mf.encode()
    expected = user @ item.T + model.item_bias.weight.T
    torch.testing.assert_close(
        model.encode().user @ model.encode().item.T, expected, rtol=1e-9, atol=1e-12
    )


def test_normalised_features_do_not_depend_on_their_scale(toy_dataset):
    features = odd_modalities(2)
    unit = {}
    for name, f in features.items():
        length = np.sqrt((f.values.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        rows = (f.values / length).astype(np.float32)
        unit[name] = Feature(name, f.side, f.group, rows, f.index)
    plain = built(toy_dataset, FeatureStore(unit), normalise_features=False)
    for model in (built(toy_dataset, features), built(toy_dataset, FeatureStore(unit))):
        model.load_state_dict(plain.state_dict())
        torch.testing.assert_close(model.encode().item, plain.encode().item, rtol=1e-5, atol=1e-6)
    raw = built(toy_dataset, features, normalise_features=False)
    raw.load_state_dict(plain.state_dict())
    assert not torch.allclose(raw.encode().item, plain.encode().item, rtol=1e-2)


def test_a_zero_feature_row_stays_zero_when_normalised(toy_dataset):
    feature = Feature("text", "item", "modality", np.zeros((N_ITEMS, 4), dtype=np.float32))
    assert (built(toy_dataset, FeatureStore({"text": feature})).tables["text"].values == 0).all()


def test_an_item_without_features_has_its_own_terms_only(toy_dataset):
    features = odd_modalities(2).only(["CLIP-ViT B/32"])
    item = built(toy_dataset, features).encode().item
    for row in np.flatnonzero(REPEATED < 0):
        assert (item[row, 4:7] == 0).all()
    assert (item[np.flatnonzero(REPEATED >= 0), 4:7] != 0).any(dim=1).all()


@pytest.mark.parametrize("n_modalities", [1, 2, 3])
def test_rows_equal_the_whole_and_project_distinct_features_once(toy_dataset, n_modalities):
    model = built(toy_dataset, odd_modalities(n_modalities))
    users, items = torch.tensor([6, 0, 0]), torch.tensor([8, 5, 3, 0, 3, 7, 2])
    whole, rows = model.encode(), model.encode_rows(users, items)
    torch.testing.assert_close(rows.user, whole.user[users], rtol=1e-12, atol=0)
    torch.testing.assert_close(rows.item, whole.item[items], rtol=1e-12, atol=1e-14)


def test_projecting_rows_reads_no_row_twice():
    feature = odd_modalities(2)["CLIP-ViT B/32"]
    table, read = FeatureTable(feature), []

    def project(rows):
        read.append(len(rows))
        return 2 * rows

    nodes = torch.tensor([0, 3, 7, 5, 0, 1])
    found = table.project_rows(nodes, project)
    torch.testing.assert_close(found, 2 * torch.from_numpy(feature.dense())[nodes])
    assert read == [2]


def test_rows_are_multiplied_as_if_they_were_dense():
    feature = odd_modalities(2)["CLIP-ViT B/32"]
    table = FeatureTable(feature).double()
    nodes = torch.tensor([0, 3, 7, 5, 0, 1])
    ours, plain = (torch.ones(3, feature.dim).double().requires_grad_() for _ in range(2))
    found = table.multiply_rows(nodes, ours)
    expected = torch.from_numpy(feature.dense()).double()[nodes] @ plain.T
    torch.testing.assert_close(found, expected)
    for product in (found, expected):
        (product * torch.arange(1.0, 19.0).view(6, 3).double()).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_what_a_zero_weight_switches_off_is_left_out(toy_dataset, toy_batch):
    model = built(toy_dataset, odd_modalities(1), l2_weight=0.0, projection_l2_weight=0.0)
    assert set(model.losses(toy_batch)) == {"bpr"}


def test_no_modality_is_named_as_the_cause(toy_dataset, toy_features):
    with pytest.raises(ConfigError, match=r"VBPR needs at least one item modality.*director"):
        built(toy_dataset, toy_features.without(["text", "image"]))


@pytest.mark.parametrize("argument", ["projection_dim", "embedding_dim"])
def test_widths_out_of_range_are_refused_by_name(argument):
    with pytest.raises(ConfigError, match=argument):
        VBPR(**{argument: 0})
