"""NGCF against a dense float64 re-derivation, its limit cases, and an independent library."""

import pytest
import torch

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.lightgcn import LightGCN
from llmrec_pl.models.mf import MF
from llmrec_pl.models.ngcf import NGCF
from tests.models.derivation import assert_terms_and_gradients, copies, ego_l2, mean_bpr


def built(model, dataset):
    model.build_seeded(dataset, FeatureStore(), seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.double()


def without_dropout(**arguments):
    return NGCF(**{"embedding_dim": 4, "message_dropout": 0.0, **arguments})


def laplacian(dataset):
    """Return D^-1/2 A D^-1/2 over users, then items, by a loop over pairs."""
    train, n = dataset.train.toarray(), dataset.n_users
    dense = torch.zeros(n + dataset.n_items, n + dataset.n_items, dtype=torch.float64)
    for user, item in zip(*train.nonzero(), strict=True):
        weight = (train[user].sum() * train[:, item].sum()) ** -0.5
        dense[user, n + item] = dense[n + item, user] = float(weight)
    # The model keeps graph weights in float32; everything after them is float64.
    return dense.float().double()


def dense_ngcf(model, dataset, slope):
    """Return users and items, and the parameters the derivation has gradients for."""
    p = copies(model)
    ell = laplacian(dataset)
    eye = torch.eye(len(ell), dtype=torch.float64)
    rows = torch.cat([p["user_embedding.weight"], p["item_embedding.weight"]])
    blocks = [rows]
    for layer in range(model.n_layers):
        first = (ell + eye) @ rows @ p[f"layers.{layer}.sum.weight"].T
        second = ((ell @ rows) * rows) @ p[f"layers.{layer}.product.weight"].T
        total = first + second + p[f"layers.{layer}.sum.bias"]
        rows = torch.where(total > 0, total, slope * total)
        blocks.append(rows / rows.square().sum(1, keepdim=True).sqrt())
    whole = torch.cat(blocks, dim=1)
    return whole[: dataset.n_users], whole[dataset.n_users :], p


@pytest.mark.parametrize("slope", [0.2, 0.5])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
def test_forward_loss_and_gradients_equal_a_dense_derivation(
    toy_dataset, toy_batch, n_layers, slope
):
    model = without_dropout(n_layers=n_layers, negative_slope=slope, l2_weight=0.1)
    built(model, toy_dataset).train()
    user, item, p = dense_ngcf(model, toy_dataset, slope)
    found = model.encode()
    assert found.user.shape == (7, 4 * (n_layers + 1))
    torch.testing.assert_close(found.user, user, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.item, item, rtol=1e-9, atol=1e-12)

    l2 = 0.1 * ego_l2(p["user_embedding.weight"], p["item_embedding.weight"], toy_batch)
    expected = {"bpr": mean_bpr(user, item, toy_batch), "l2": l2}
    assert_terms_and_gradients(model, toy_batch, expected, p)


def test_without_layers_it_is_mf(toy_dataset, toy_batch):
    flat, mf = without_dropout(n_layers=0), MF(embedding_dim=4)
    built(flat, toy_dataset)
    built(mf, toy_dataset).load_state_dict(flat.state_dict())
    assert flat.losses(toy_batch) == mf.losses(toy_batch)


def test_without_product_and_activation_it_is_a_linear_gcn(toy_dataset):
    model = built(without_dropout(n_layers=3, negative_slope=1.0), toy_dataset)
    for layer in model.layers:
        torch.nn.init.eye_(layer.sum.weight)
        torch.nn.init.zeros_(layer.sum.bias)
        torch.nn.init.zeros_(layer.product.weight)
    rows = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    step = laplacian(toy_dataset) + torch.eye(16, dtype=torch.float64)
    for power, block in enumerate(torch.cat(model.encode()).split(4, dim=1)):
        expected = torch.linalg.matrix_power(step, power) @ rows
        if power:
            expected = expected / expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(block, expected, rtol=1e-9, atol=1e-12)


def test_message_dropout_zeroes_a_layer_in_training_and_keeps_its_mean(toy_dataset):
    model = built(NGCF(n_layers=1, embedding_dim=4000, message_dropout=0.25), toy_dataset)
    exact = model.eval().encode().user[0, 4000:]
    torch.manual_seed(0)
    dropped = model.train().encode().user[0, 4000:]
    kept = dropped != 0
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=0.03)
    # Scaled rows: up to the normalisation, what is kept is what there was.
    torch.testing.assert_close(
        dropped[kept], exact[kept] / exact[kept].norm(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("side", ["user", "item"])
def test_node_dropout_silences_whole_nodes_but_not_towards_themselves(toy_dataset, side):
    arguments = {"n_layers": 1, "negative_slope": 1.0, "node_dropout": 0.5}
    model = built(without_dropout(**arguments), toy_dataset)
    with torch.no_grad():
        model.user_embedding.weight.fill_(float(side == "user"))
        model.item_embedding.weight.fill_(float(side == "item"))
        torch.nn.init.eye_(model.layers[0].sum.weight)
        model.layers[0].sum.bias.zero_()
    heard, draws = [], []
    model.layers[0].register_forward_hook(lambda _, inputs, __: heard.append(inputs))
    model.train()
    for seed in range(400):
        torch.manual_seed(seed)
        model.encode()
        (_, neighbours), (node, _) = heard[-2:] if side == "item" else heard[:-3:-1]
        assert (neighbours == neighbours[:, :1]).all(), "a node is silent in all its dimensions"
        assert (node == 1).all(), "a silent node still hears itself"
        draws.append(neighbours)
    weight = laplacian(toy_dataset)[:7, 7:]
    weight = weight if side == "item" else weight.T
    expected = weight.sum(1, keepdim=True).expand(-1, 4)
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, rtol=0.15, atol=0)
    assert (torch.stack(draws).std(0)[expected > 0] > 0).all(), "every neighbour is silent at times"
    model.eval()
    model.encode()
    found = heard[-2 if side == "item" else -1][1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_isolated_nodes_keep_a_vector_of_their_own(toy_dataset):
    model = built(without_dropout(n_layers=2), toy_dataset).eval()
    before = model.encode()
    with torch.no_grad():
        model.item_embedding.weight[:8] += 1.0
    after = model.encode()
    torch.testing.assert_close(after.item[8], before.item[8], rtol=0, atol=0)
    assert not torch.equal(after.user[0], before.user[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_layers", -1), ("message_dropout", 1.0), ("node_dropout", -0.1), ("embedding_dim", 0)],
)
def test_values_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=argument):
        NGCF(**{argument: value})


def edge_index(dataset):
    user, item = (torch.from_numpy(x) for x in dataset.graph_edges())
    forth = torch.stack([user, item + dataset.n_users])
    return torch.cat([forth, forth.flip(0)], dim=1)


def test_lightgcn_equals_an_independent_library(toy_dataset):
    geometric = pytest.importorskip(
        "torch_geometric.nn", reason="torch-geometric is not installed", exc_type=ImportError
    )
    model = built(LightGCN(n_layers=3, embedding_dim=4), toy_dataset).float().eval()
    convolution, edges = geometric.LGConv(), edge_index(toy_dataset)
    layers = [torch.cat([model.user_embedding.weight, model.item_embedding.weight])]
    for _ in range(3):
        layers.append(convolution(layers[-1], edges))
    expected = torch.stack(layers).mean(dim=0)
    torch.testing.assert_close(torch.cat(model.encode()), expected, rtol=1e-5, atol=1e-6)


def test_layers_equal_message_passing_in_an_independent_library(toy_dataset):
    geometric = pytest.importorskip(
        "torch_geometric.nn", reason="torch-geometric is not installed", exc_type=ImportError
    )
    utils = pytest.importorskip("torch_geometric.utils")

    class PairwiseMessages(geometric.MessagePassing):
        """Eq. (3) and (4) of the paper: one message an edge, one to itself."""

        def __init__(self, first, second, bias):
            super().__init__(aggr="add")
            self.first, self.second, self.bias = first, second, bias

        def forward(self, x, edges):
            degree = utils.degree(edges[0], len(x), dtype=x.dtype)
            scale = (degree[edges[0]] * degree[edges[1]]).rsqrt()
            neighbours = self.propagate(edges, x=x, scale=scale)
            return torch.nn.functional.leaky_relu(x @ self.first.T + neighbours + self.bias, 0.2)

        def message(self, x_i, x_j, scale):
            return scale[:, None] * (x_j @ self.first.T + (x_i * x_j) @ self.second.T)

    model = built(without_dropout(n_layers=3), toy_dataset).float().eval()
    rows = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    blocks = [rows]
    for layer in model.layers:
        messages = PairwiseMessages(layer.sum.weight, layer.product.weight, layer.sum.bias)
        rows = messages(rows, edge_index(toy_dataset))
        blocks.append(torch.nn.functional.normalize(rows))
    torch.testing.assert_close(
        torch.cat(model.encode()), torch.cat(blocks, dim=1), rtol=1e-5, atol=1e-6
    )
