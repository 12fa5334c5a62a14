"""GRCN against a dense float64 re-derivation with loops over edges, and its limit cases."""

import numpy as np
import pytest
import torch

from llmrec_pl.errors import ConfigError
from llmrec_pl.models.grcn import GRCN
from tests.models.odd_modalities import odd_modalities


def built(dataset, features, **arguments):
    model = GRCN(**{"embedding_dim": 4, "modality_dim": 3, "l2_weight": 0.1, **arguments})
    model.build_seeded(dataset, features, seed=1)
    for name, p in model.named_parameters():
        if "confidence" in name:
            torch.nn.init.normal_(p, mean=1.0, generator=torch.Generator().manual_seed(len(name)))
            p.data[0] = -1.0  # the edges of user 0 and item 0 are pruned
    return model.double()


def unit(x):
    return x / x.norm().clamp(min=1e-12)


class Reference:
    """The paper's equations for one node or edge at a time."""

    def __init__(self, model, dataset, features, **options):
        self.p = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        self.options = {"n_layers": 2, "n_routing": 3, "confidence": "learned", "prune": True}
        self.options |= options
        self.edges = list(zip(*(x.tolist() for x in dataset.train.tocoo().coords), strict=True))
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        self.features = features

    def items_of(self, user):
        return [i for u, i in self.edges if u == user]

    def users_of(self, item):
        return [u for u, i in self.edges if i == item]

    def modality(self, feature):
        weight, bias = (self.p[f"projection.{feature.name}.{x}"] for x in ("weight", "bias"))
        raw = torch.tensor(feature.dense(), dtype=torch.float64)
        known = np.ones(self.n_items) if feature.index is None else feature.index >= 0
        items = []
        for i in range(self.n_items):
            y = weight @ raw[i] + bias
            y = torch.where(y > 0, y, 0.01 * y)
            items.append(unit(y) if known[i] else torch.zeros_like(y))
        users = [unit(x) for x in self.p[f"preference.{feature.name}.weight"]]
        for _ in range(self.options["n_routing"]):
            users = [self.step(u, users[u], items) for u in range(self.n_users)]
        return users, items

    def step(self, user, prototype, items):
        mine = self.items_of(user)
        if not mine:
            return prototype
        attention = torch.stack([prototype @ items[i] for i in mine]).exp()
        attention = attention / attention.sum()
        return unit(prototype + sum(a * items[i] for a, i in zip(attention, mine, strict=True)))

    def edge_weights(self, content):
        towards_user, towards_item = {}, {}
        for u, i in self.edges:
            to_user, to_item = [], []
            for m, (users, items) in enumerate(content):
                e = torch.exp(users[u] @ items[i])
                a = e / sum(torch.exp(users[u] @ items[j]) for j in self.items_of(u))
                b = e / sum(torch.exp(users[v] @ items[i]) for v in self.users_of(i))
                if self.options["confidence"] == "learned":
                    a = a * self.p["item_confidence"][i, m]
                    b = b * self.p["user_confidence"][u, m]
                to_user.append(a)
                to_item.append(b)
            a, b = torch.stack(to_user).max(), torch.stack(to_item).max()
            if self.options["prune"]:
                a, b = a.clamp(min=0), b.clamp(min=0)
            towards_user[u, i], towards_item[u, i] = a, b
        return towards_user, towards_item

    def encode(self):
        content = [self.modality(f) for f in self.features.values()]
        to_user, to_item = self.edge_weights(content)
        user, item = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        a = torch.zeros(self.n_users, self.n_items, dtype=torch.float64)
        b = torch.zeros(self.n_items, self.n_users, dtype=torch.float64)
        for u, i in self.edges:
            a = a.index_put((torch.tensor(u), torch.tensor(i)), to_user[u, i])
            b = b.index_put((torch.tensor(i), torch.tensor(u)), to_item[u, i])
        users, items = [user], [item]
        for _ in range(self.options["n_layers"]):
            user, item = a @ item, b @ user
            users.append(user)
            items.append(item)
        self.pruned = sum(float(w.detach()) == 0 for w in to_user.values())
        return (
            torch.cat([sum(users), *(torch.stack(u) for u, _ in content)], dim=1),
            torch.cat([sum(items), *(torch.stack(i) for _, i in content)], dim=1),
        )

    def loss(self, batch, l2_weight):
        hu, hi = self.encode()
        u, i, j = (batch[k] for k in ("user", "pos_item", "neg_item"))
        difference = (hu[u] * hi[i]).sum(1) - (hu[u] * hi[j]).sum(1)
        eu, ei = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        squares = (eu[u] ** 2).sum() + (ei[i] ** 2).sum() + (ei[j] ** 2).sum()
        return -torch.log(torch.sigmoid(difference)).mean() + l2_weight * squares / (2 * len(u))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_routing": 0}, {"n_layers": 1, "confidence": "none"}, {"prune": False, "n_layers": 3}],
    ids=str,
)
def test_forward_loss_and_gradients_equal_a_derivation_by_edges(
    toy_dataset, toy_batch, count, options
):
    features = odd_modalities(count)
    model = built(toy_dataset, features, **options)
    reference = Reference(model, toy_dataset, features, **options)
    user, item = reference.encode()
    assert (reference.pruned > 0) == (model.prune and model.confidence == "learned")
    torch.testing.assert_close(model.encode().user, user, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.encode().item, item, rtol=1e-9, atol=1e-12)
    found = sum(model.losses(toy_batch).values())
    expected = reference.loss(toy_batch, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found.backward()
    expected.backward()
    for name, p in model.named_parameters():
        wanted = reference.p[name].grad
        wanted = torch.zeros_like(p) if wanted is None else wanted
        torch.testing.assert_close(p.grad, wanted, rtol=1e-8, atol=1e-12, msg=name)


def mean_gcn(dataset, user, item, n_layers):
    r = torch.tensor(dataset.train.toarray(), dtype=torch.float64)
    a, b = r / r.sum(1, keepdim=True).clamp(min=1), r.T / r.T.sum(1, keepdim=True).clamp(min=1)
    users, items = [user], [item]
    for _ in range(n_layers):
        user, item = a @ item, b @ user
        users.append(user)
        items.append(item)
    return sum(users), sum(items)


def test_equal_affinities_and_full_confidence_are_a_mean_gcn(toy_dataset):
    features = odd_modalities(2)
    model = built(toy_dataset, features, confidence="none")
    for projection in model.projection.values():  # no content: all affinities are 0
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    user, item = model.user_embedding.weight, model.item_embedding.weight
    expected = mean_gcn(toy_dataset, user, item, 2)
    torch.testing.assert_close(model.encode().user[:, :4], expected[0])
    torch.testing.assert_close(model.encode().item[:, :4], expected[1])


def test_edges_without_confidence_carry_nothing(toy_dataset):
    model = built(toy_dataset, odd_modalities(2))
    with torch.no_grad():
        model.user_confidence.fill_(-1.0)
        model.item_confidence.fill_(-1.0)
    torch.testing.assert_close(model.encode().user[:, :4], model.user_embedding.weight)
    model.prune = False
    assert not torch.allclose(model.encode().user[:6, :4], model.user_embedding.weight[:6])


def test_routing_moves_prototypes_towards_the_users_items(toy_dataset):
    features = odd_modalities(1)

    def mean_affinity(n_routing):
        found = built(toy_dataset, features, n_routing=n_routing).encode()
        users, items = toy_dataset.train.tocoo().coords
        return (found.user[users, 4:] * found.item[items, 4:]).sum(1).mean()

    assert mean_affinity(0) < mean_affinity(1) < mean_affinity(3)


def test_what_is_off_is_not_built(toy_dataset):
    features = odd_modalities(2)
    for arguments in ({"confidence": "none"}, {"n_layers": 0}):
        model = built(toy_dataset, features, **arguments)
        assert not [n for n, _ in model.named_parameters() if "confidence" in n]


def test_without_a_modality_the_error_says_how_to_make_one(toy_dataset, toy_features):
    with pytest.raises(ConfigError, match=r"GRCN needs .*python -m llmrec_pl features"):
        built(toy_dataset, toy_features.only(["profile", "director"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modality_dim", 0),
        ("n_layers", -1),
        ("n_routing", -1),
        ("confidence", "mean"),
        ("embedding_dim", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"`{name}`.*{value}"):
        GRCN(**{name: value})
