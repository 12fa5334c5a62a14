"""MF and LightGCN against dense re-derivations, and their limit cases."""

import numpy as np
import pytest
import torch

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.lightgcn import LightGCN
from llmrec_pl.models.mf import MF


def built(model, dataset):
    model.build_seeded(dataset, FeatureStore(), seed=1)
    return model.double()


def dense_lightgcn(dataset, user, item, n_layers):
    r = torch.tensor(dataset.train.toarray(), dtype=torch.float64)
    n = dataset.n_users + dataset.n_items
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    adjacency[: dataset.n_users, dataset.n_users :] = r
    adjacency[dataset.n_users :, : dataset.n_users] = r.T
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1) ** -0.5, 0.0)
    normal = (scale[:, None] * adjacency * scale[None, :]).float().double()
    layers = [torch.cat([user, item])]
    for _ in range(n_layers):
        layers.append(normal @ layers[-1])
    mean = sum(layers) / len(layers)
    return mean[: dataset.n_users], mean[dataset.n_users :]


@pytest.mark.parametrize("n_layers", [0, 1, 2, 4])
def test_lightgcn_forward_loss_and_gradients(toy_dataset, toy_batch, n_layers):
    model = built(LightGCN(n_layers=n_layers, embedding_dim=4, l2_weight=0.1), toy_dataset)
    user = model.user_embedding.weight.detach().clone().requires_grad_()
    item = model.item_embedding.weight.detach().clone().requires_grad_()
    hu, hi = dense_lightgcn(toy_dataset, user, item, n_layers)
    u, i, j = (toy_batch[k] for k in ("user", "pos_item", "neg_item"))
    difference = (hu[u] * hi[i]).sum(1) - (hu[u] * hi[j]).sum(1)
    squares = (user[u] ** 2).sum() + (item[i] ** 2).sum() + (item[j] ** 2).sum()
    expected = -torch.log(torch.sigmoid(difference)).mean() + 0.1 * squares / (2 * len(u))
    found = sum(model.losses(toy_batch).values())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found.backward()
    expected.backward()
    torch.testing.assert_close(model.user_embedding.weight.grad, user.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.item_embedding.weight.grad, item.grad, rtol=1e-9, atol=1e-12)


def test_lightgcn_without_layers_is_mf(toy_dataset, toy_batch):
    flat, mf = LightGCN(n_layers=0, embedding_dim=4), MF(embedding_dim=4)
    built(flat, toy_dataset)
    built(mf, toy_dataset).load_state_dict(flat.state_dict())
    torch.testing.assert_close(
        sum(flat.losses(toy_batch).values()), sum(mf.losses(toy_batch).values())
    )


def test_lightgcn_initial_values_have_the_configured_deviation(toy_dataset):
    model = built(LightGCN(embedding_dim=512, embedding_std=0.3), toy_dataset)
    assert float(model.user_embedding.weight.std()) == pytest.approx(0.3, rel=0.1)


def test_the_same_seed_gives_the_same_initial_weights(toy_dataset):
    torch.manual_seed(1)
    first = built(MF(), toy_dataset)
    torch.manual_seed(2)
    second = built(MF(), toy_dataset)
    np.testing.assert_array_equal(
        first.user_embedding.weight.detach(), second.user_embedding.weight.detach()
    )


@pytest.mark.parametrize("arguments", [{"n_layers": -1}, {"embedding_dim": 0}])
def test_sizes_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        LightGCN(**arguments)
