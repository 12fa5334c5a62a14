"""MICRO against a dense float64 re-derivation, and its limit cases."""

import math

import pytest
import torch

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.losses import two_view_contrast_loss
from llmrec_pl.models.lattice import LATTICE
from llmrec_pl.models.micro import MICRO
from tests.models.derivation import assert_terms_and_gradients, copies, ego_l2, mean_bpr
from tests.models.latent_graphs import (
    dense_lightgcn,
    mixed_graph,
    modalities,
    unit,
)

OURS = {
    "embedding_dim": 4,
    "n_neighbours": 3,
    "original_weight": 0.6,
    "contrast_weight": 0.3,
    "temperature": 0.4,
    "l2_weight": 0.1,
}


def built(dataset, features, **options):
    model = MICRO(**{**OURS, **options})
    model.build_seeded(dataset, features, seed=1)
    return model.double()


def contrast(view, other, temperature):
    v, o = unit(view), unit(other)
    terms = []
    for n in range(len(v)):
        total = sum(torch.exp(v[n] @ o[m] / temperature) for m in range(len(v)))
        total = total + sum(torch.exp(v[n] @ v[m] / temperature) for m in range(len(v)) if m != n)
        terms.append(torch.log(total) - v[n] @ o[n] / temperature)
    return sum(terms) / len(terms)


def reference(dataset, features, p, batch, options):
    user, q = p["user_embedding.weight"], p["item_embedding.weight"]
    views = []
    for m, feature in enumerate(features.values()):
        graph = mixed_graph(
            feature,
            p.get(f"item_graphs.{m}.projection.weight"),
            p.get(f"item_graphs.{m}.projection.bias"),
            options["n_neighbours"],
            options["original_weight"],
        )
        view = q
        for _ in range(options.get("n_item_layers", 1)):
            view = graph @ view
        views.append(view)
    rows = []
    for i in range(len(q)):
        if len(views) == 1:
            rows.append(views[0][i])
            continue
        w, b, v = (p[f"attention.{n}"] for n in ("0.weight", "0.bias", "2.weight"))
        share = torch.stack([torch.exp(v[0] @ torch.tanh(w @ x[i] + b)) for x in views])
        rows.append(sum(a / share.sum() * x[i] for a, x in zip(share, views, strict=True)))
    h = torch.stack(rows)
    users, items = dense_lightgcn(dataset, user, q, 2)
    items = items + unit(h)
    seen = sorted({*batch["pos_item"].tolist(), *batch["neg_item"].tolist()})
    terms = {"bpr": mean_bpr(users, items, batch)}
    if options["contrast_weight"]:
        found = sum(contrast(x[seen], h[seen], options["temperature"]) for x in views)
        terms["contrast"] = options["contrast_weight"] * found
    terms["l2"] = options["l2_weight"] * ego_l2(user, q, batch)
    return users, items, terms


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"original_weight": 1.0}, {"original_weight": 0.0, "n_item_layers": 2}],
    ids=str,
)
@pytest.mark.parametrize("contrast_weight", [0.3, 0.0])
def test_forward_losses_and_gradients(toy_dataset, toy_batch, count, changes, contrast_weight):
    options = {**OURS, **changes, "contrast_weight": contrast_weight}
    features = modalities(count)
    model = built(toy_dataset, features, **options)
    model.refresh()
    p = copies(model)
    users, items, expected = reference(toy_dataset, features, p, toy_batch, options)
    torch.testing.assert_close(model.encode().user, users, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.encode().item, items, rtol=1e-9, atol=1e-12)
    assert_terms_and_gradients(model, toy_batch, expected, p, atol=1e-11)


def test_with_one_modality_and_no_contrast_it_is_lattice(toy_dataset, toy_batch):
    model = built(toy_dataset, modalities(1), contrast_weight=0.0)
    options = {k: v for k, v in OURS.items() if k not in ("contrast_weight", "temperature")}
    lattice = LATTICE(**options)
    lattice.build_seeded(toy_dataset, modalities(1), seed=5)
    lattice.double().load_state_dict(model.state_dict())
    torch.testing.assert_close(model.encode(), lattice.encode(), rtol=1e-12, atol=0)
    found, expected = model.losses(toy_batch), lattice.losses(toy_batch)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(sum(found.values()), sum(expected.values()))


def test_equal_attention_is_lattice_with_equal_weights(toy_dataset):
    model = built(toy_dataset, modalities(3))
    torch.nn.init.zeros_(model.attention[2].weight)
    options = {k: v for k, v in OURS.items() if k not in ("contrast_weight", "temperature")}
    lattice = LATTICE(**options)
    lattice.build_seeded(toy_dataset, modalities(3), seed=5)
    lattice.double().load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model.encode(), lattice.encode(), rtol=1e-10, atol=1e-12)


def test_contrast_of_one_item_and_at_low_temperature_is_finite():
    view = torch.randn(1, 3, requires_grad=True)
    other = torch.randn(1, 3)
    loss = two_view_contrast_loss(view, other, 0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert view.grad.isfinite().all()
    same = torch.eye(4)
    assert float(two_view_contrast_loss(same, same, 1e-3)) == pytest.approx(0, abs=1e-6)
    repeated = torch.ones(5, 3)
    assert float(two_view_contrast_loss(repeated, repeated, 0.5)) == pytest.approx(math.log(9))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_item_layers", 0),
        ("n_neighbours", 0),
        ("original_weight", -0.1),
        ("contrast_weight", -1.0),
        ("temperature", 0.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=argument):
        MICRO(**{argument: value})


def test_without_a_modality_the_remedy_is_named(toy_dataset):
    with pytest.raises(ConfigError, match="MICRO needs at least one item modality"):
        built(toy_dataset, FeatureStore())
