"""MMGCN against a dense float64 re-derivation and its limit cases."""

import pytest
import torch

from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.mmgcn import MMGCN
from tests.models.derivation import assert_terms_and_gradients, copies, ego_l2, mean_bpr
from tests.models.odd_modalities import N_ITEMS, REPEATED, odd_modalities


def built(dataset, features, **arguments):
    model = MMGCN(**{"embedding_dim": 4, "latent_dim": 3, "normalise": "none", **arguments})
    model.build_seeded(dataset, features, seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.double()


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def mean_of_neighbours(dataset):
    """Return the mean over neighbours of users, then items, as a dense matrix."""
    train, n = dataset.train.toarray(), dataset.n_users
    dense = torch.zeros(n + dataset.n_items, n + dataset.n_items, dtype=torch.float64)
    for user, item in zip(*train.nonzero(), strict=True):
        dense[user, n + item] = 1 / int(train[user].sum())
        dense[n + item, user] = 1 / int(train[:, item].sum())
    # The model keeps graph weights in float32; everything after them is float64.
    return dense.float().double()


def dense_mmgcn(model, dataset, features, normalise):
    """Return users and items, and the parameters the derivation has gradients for."""
    p = copies(model)
    mean = mean_of_neighbours(dataset)
    ids = torch.cat([p["user_embedding.weight"], p["item_embedding.weight"]])
    total = 0
    for name, feature in features.items():
        q = {n.removeprefix(f"modality.{name}."): x for n, x in p.items() if f".{name}." in n}
        known = (
            torch.ones(N_ITEMS, 1)
            if feature.index is None
            else torch.tensor(feature.index >= 0)[:, None]
        )
        raw = torch.tensor(feature.dense(), dtype=torch.float64)
        item = (raw @ q["projection.weight"].T + q["projection.bias"]) * known
        x = torch.cat([q["preference.weight"], item])
        if normalise == "projected":
            x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        for layer in range(model.n_layers):
            w1, w2, w3 = (
                q[f"layers.{layer}.{part}.weight"] for part in ("neighbour", "itself", "combine")
            )
            h = leaky((mean @ x) @ w1.T)
            x_hat = leaky(x @ w2.T + q[f"layers.{layer}.itself.bias"]) + ids
            x = leaky(h @ w3.T + q[f"layers.{layer}.combine.bias"] + x_hat)
        total = total + x / len(features)
    return total[: dataset.n_users], total[dataset.n_users :], p


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("n_modalities", [1, 2, 3])
@pytest.mark.parametrize("normalise", ["none", "projected"])
def test_forward_loss_and_gradients_equal_a_dense_derivation(
    toy_dataset, toy_batch, n_modalities, n_layers, normalise
):
    features = odd_modalities(n_modalities)
    model = built(toy_dataset, features, n_layers=n_layers, l2_weight=0.1, normalise=normalise)
    user, item, p = dense_mmgcn(model, toy_dataset, features, normalise)
    torch.testing.assert_close(model.encode().user, user, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.encode().item, item, rtol=1e-9, atol=1e-12)

    preferences = [p[f"modality.{name}.preference.weight"] for name in features]
    users = torch.cat([p["user_embedding.weight"], *preferences], dim=1)
    l2 = 0.1 * ego_l2(users, p["item_embedding.weight"], toy_batch)
    expected = {"bpr": mean_bpr(user, item, toy_batch), "l2": l2}
    assert_terms_and_gradients(model, toy_batch, expected, p)


def test_ids_and_preferences_are_trained_parameters(toy_dataset, toy_batch):
    model = built(toy_dataset, odd_modalities(2))
    before = {n: x.detach().clone() for n, x in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sum(model.losses(toy_batch).values()).backward()
    optimizer.step()
    names = {"user_embedding.weight", "item_embedding.weight"}
    names |= {f"modality.{m}.preference.weight" for m in odd_modalities(2)}
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before.pop(name)), name
        names.discard(name)
    assert not names | set(before)


def test_of_one_modality_given_twice_the_mean_is_that_modality(toy_dataset):
    feature = odd_modalities(1)["text, shortened"]
    single = built(toy_dataset, FeatureStore({"text, shortened": feature}))
    again = Feature("text2", "item", "modality", feature.values)
    double = built(toy_dataset, FeatureStore({"text, shortened": feature, "text2": again}))
    state = single.state_dict()
    copies = {n.replace(".text, shortened.", ".text2."): x for n, x in state.items()}
    double.load_state_dict(state | copies)
    torch.testing.assert_close(double.encode().item, single.encode().item, rtol=1e-12, atol=0)
    torch.testing.assert_close(double.encode().user, single.encode().user, rtol=1e-12, atol=0)


def test_with_zero_weights_the_last_layer_is_the_activated_id(toy_dataset):
    model = built(toy_dataset, odd_modalities(2))
    for name, parameter in model.named_parameters():
        if ".layers." in name:
            torch.nn.init.zeros_(parameter)
    user, item = model.encode()
    torch.testing.assert_close(user, leaky(model.user_embedding.weight), rtol=1e-12, atol=0)
    torch.testing.assert_close(item, leaky(model.item_embedding.weight), rtol=1e-12, atol=0)


def test_an_item_without_a_feature_starts_as_zeros(toy_dataset):
    features = odd_modalities(2).only(["CLIP-ViT B/32"])
    model = built(toy_dataset, features)
    starts = []
    model.modality["CLIP-ViT B/32"].layers[0].register_forward_hook(
        lambda _, inputs, __: starts.append(inputs[0].item)
    )
    model.encode()
    assert (starts[0][REPEATED < 0] == 0).all()
    assert (starts[0][REPEATED >= 0] != 0).all()


def test_normalised_features_do_not_depend_on_their_scale(toy_dataset):
    features = odd_modalities(2)
    scaled = FeatureStore(
        {n: Feature(n, f.side, f.group, 16 * f.values, f.index) for n, f in features.items()}
    )
    one, other = (built(toy_dataset, f, normalise="features") for f in (features, scaled))
    raw = built(toy_dataset, scaled)
    for model in (other, raw):
        model.load_state_dict(one.state_dict())
    torch.testing.assert_close(one.encode().item, other.encode().item, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one.encode().item, raw.encode().item, rtol=1e-2)


def test_no_modality_is_named_as_the_cause(toy_dataset, toy_features):
    with pytest.raises(ConfigError, match=r"MMGCN needs at least one item modality.*director"):
        built(toy_dataset, toy_features.without(["text", "image"]))


@pytest.mark.parametrize("argument", ["n_layers", "latent_dim", "embedding_dim"])
def test_sizes_out_of_range_are_refused_by_name(argument):
    with pytest.raises(ConfigError, match=argument):
        MMGCN(**{argument: 0})


def test_an_unknown_normalisation_lists_the_known():
    with pytest.raises(ConfigError, match="projected"):
        MMGCN(normalise="rows")
