"""MMSSL against a dense float64 re-derivation, its adversary, and its limit cases."""

import dataclasses

import numpy as np
import pytest
import torch

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.lightgcn import LightGCN
from llmrec_pl.models.mmssl import MMSSL

OPTIONS = {
    "n_layers": 2,
    "n_heads": 2,
    "n_neighbours": 3,
    "view_weight": 0.7,
    "feature_weight": 0.4,
    "contrastive_weight": 0.3,
    "contrastive_temperature": 0.4,
    "generator_weight": 0.2,
    "penalty_weight": 0.3,
    "gumbel_temperature": 0.6,
    "auxiliary_weight": 0.5,
    "l2_weight": 0.1,
}


def built(dataset, features, **arguments):
    small = {"embedding_dim": 4, "dropout": 0.0, "critic_width": 4}
    model = MMSSL(**{**small, **OPTIONS, **arguments})
    model.build_seeded(dataset, features, seed=1)
    return model.double()


def modalities_of(toy_features, count):
    """One, two or three modalities with names of all kinds; two have missing rows."""
    index = np.array([0, 1, 2, -1, 4, 5, 6, 7, -1], dtype=np.int64)
    first = dataclasses.replace(toy_features["text"], name="text, shortened", index=index)
    third = dataclasses.replace(toy_features["director"], name="3d-shape", group="modality")
    found = [first, toy_features["image"], third][:count]
    return FeatureStore({f.name: f for f in found})


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


class Reference:
    """The equations with dense matrices; loops over users where they are clearer."""

    def __init__(self, model, dataset, features, **options):
        self.p = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        self.snapshot = {n: b.clone() for n, b in model.state_dict().items() if "relations" in n}
        self.o = OPTIONS | options
        self.features = features
        self.r = torch.tensor(dataset.train.toarray(), dtype=torch.float64)
        du, di = self.r.sum(1).clamp(min=1), self.r.sum(0).clamp(min=1)
        # The model keeps graph weights in float32; everything after them is float64.
        self.a = (self.r / (du[:, None] * di[None, :]).sqrt()).float().double()

    def project(self, feature, weight, bias):
        raw = torch.tensor(feature.dense(), dtype=torch.float64)
        known = np.ones(len(raw)) if feature.index is None else feature.index >= 0
        return (raw @ weight.T + bias) * torch.tensor(known, dtype=torch.float64)[:, None]

    def relations(self, feature, user, item):
        """Return the weighted adjacency ``[n_users, n_items]`` of one modality."""
        name = f"relations.{feature.name}.projection"
        frozen = self.project(
            feature, self.snapshot[f"{name}_weight"], self.snapshot[f"{name}_bias"]
        )
        strength = unit(self.a @ frozen) @ unit(frozen).T
        mask = torch.zeros_like(strength)
        for u, row in enumerate(strength):
            mask[u, row.argsort(descending=True)[: self.o["n_neighbours"]]] = 1
        cosine = (unit(user) @ unit(item).T) * mask
        cosine = torch.where(cosine > 0, cosine, 0.0)
        edge = (cosine > 0).double()
        scale = (edge.sum(1)[:, None] * edge.sum(0)[None, :]).clamp(min=1).sqrt()
        return cosine / scale

    def fuse(self, views):
        """Attention across the views of each node, one head at a time."""
        heads = []
        output = self.p["attention.output.weight"]
        if len(views) == 1:
            return views[0] @ output.T
        query, key = self.p["attention.query.weight"], self.p["attention.key.weight"]
        width = len(query) // self.o["n_heads"]
        for view in views:
            of_view = []
            for h in range(self.o["n_heads"]):
                part = slice(h * width, (h + 1) * width)
                score = [
                    ((view @ query[part].T) * (other @ key[part].T)).sum(1) / width**0.5
                    for other in views
                ]
                weight = torch.stack(score).exp()
                weight = weight / weight.sum(0)
                of_view.append(
                    sum(w[:, None] * other for w, other in zip(weight, views, strict=True))
                )
            heads.append(torch.cat(of_view, dim=1) @ output.T)
        return sum(heads) / len(heads)

    def views(self):
        found = []
        eu, ei = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        for feature in self.features.values():
            weight, bias = (self.p[f"projection.{feature.name}.{x}"] for x in ("weight", "bias"))
            item = self.project(feature, weight, bias)
            user = self.a @ item
            relation = self.relations(feature, user, item)
            found.append((user, item, relation @ ei, relation.T @ eu))
        return found

    def encode(self, views):
        user, item = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        if self.o["view_weight"]:
            user = user + self.o["view_weight"] * unit(self.fuse([v[2] for v in views]))
            item = item + self.o["view_weight"] * unit(self.fuse([v[3] for v in views]))
        users, items = [user], [item]
        for _ in range(self.o["n_layers"]):
            user, item = self.a @ item, self.a.T @ user
            users.append(user)
            items.append(item)
        user, item = sum(users) / len(users), sum(items) / len(items)
        for v in views:
            user = user + self.o["feature_weight"] * unit(v[0])
            item = item + self.o["feature_weight"] * unit(v[1])
        return user, item

    def contrast(self, view, user):
        total = 0
        for n in range(len(view)):
            between = unit(view[n]) @ unit(user).T / self.o["contrastive_temperature"]
            among = unit(view[n]) @ unit(view).T / self.o["contrastive_temperature"]
            others = [among[m].exp() for m in range(len(view)) if m != n]
            total = total - torch.log(between[n].exp() / (between.exp().sum() + sum(others)))
        return total / len(view)

    def score(self, rows, weights):
        def layer_norm(x, weight, bias):
            centred = x - x.mean(1, keepdim=True)
            spread = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
            return centred / spread * weight + bias

        w = {n.removeprefix("critic.layers."): p for n, p in weights.items() if "critic" in n}
        x = rows @ w["0.weight"].T + w["0.bias"]
        x = layer_norm(torch.where(x > 0, x, 0.2 * x), w["2.weight"], w["2.bias"])
        x = x @ w["3.weight"].T + w["3.bias"]
        x = layer_norm(torch.where(x > 0, x, 0.2 * x), w["5.weight"], 0.0)
        return (x @ w["6.weight"].T)[:, 0]

    def adversarial(self, views, h, users):
        """Return generator, critic and penalty, with the model's own random numbers."""
        noise = -torch.empty(len(users), self.r.shape[1], dtype=torch.float64).exponential_().log()
        real = torch.softmax((self.r[users] + noise) / self.o["gumbel_temperature"], dim=1)
        signal = (unit(h[0][users]) @ unit(h[1]).T).detach()
        real = real + self.o["auxiliary_weight"] * signal
        fixed = {n: p.detach() for n, p in self.p.items()}
        generator = critic = penalty = 0
        for v in views:
            fake = unit(v[0][users]) @ unit(v[1]).T
            generator = generator - self.score(fake, fixed).mean() / len(views)
            share = torch.rand(len(users), 1, dtype=torch.float64)
            fake = fake.detach()
            critic = critic + (self.score(fake, self.p) - self.score(real, self.p)).mean() / len(
                views
            )
            mixed = (share * real + (1 - share) * fake).requires_grad_()
            slopes = [
                torch.autograd.grad(s, mixed, create_graph=True)[0][n]
                for n, s in enumerate(self.score(mixed, self.p))
            ]
            norms = torch.stack([s.square().sum().sqrt() for s in slopes])
            penalty = penalty + ((norms - 1) ** 2).mean() / len(views)
        return generator, critic, penalty

    def losses(self, batch, users):
        views = self.views()
        hu, hi = h = self.encode(views)
        u, i, j = (batch[k] for k in ("user", "pos_item", "neg_item"))
        difference = (hu[u] * hi[i]).sum(1) - (hu[u] * hi[j]).sum(1)
        eu, ei = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        squares = (eu[u] ** 2).sum() + (ei[i] ** 2).sum() + (ei[j] ** 2).sum()
        generator, critic, penalty = self.adversarial(views, h, users)
        contrast = sum(self.contrast(v[2][users], hu[users]) for v in views)
        return {
            "bpr": -torch.log(torch.sigmoid(difference)).mean(),
            "contrastive": self.o["contrastive_weight"] * contrast,
            "generator": self.o["generator_weight"] * generator,
            "critic": critic,
            "penalty": self.o["penalty_weight"] * penalty,
            "l2": self.o["l2_weight"] * squares / (2 * len(u)),
        }


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"n_layers": 0, "n_heads": 4}], ids=str)
def test_forward_losses_and_gradients_equal_a_dense_derivation(
    toy_dataset, toy_features, toy_batch, count, options
):
    features = modalities_of(toy_features, count)
    model = built(toy_dataset, features, **options)
    with torch.no_grad():  # the neighbours are those of an earlier projection
        for p in model.projection.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    reference = Reference(model, toy_dataset, features, **options)
    user, item = reference.encode(reference.views())
    torch.testing.assert_close(model.encode().user, user, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.encode().item, item, rtol=1e-9, atol=1e-12)
    torch.manual_seed(7)
    found = model.losses(toy_batch)
    torch.manual_seed(7)
    expected = reference.losses(toy_batch, torch.tensor([0, 1, 2, 3, 4, 5]))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, reference.p[name].grad, rtol=1e-7, atol=1e-11, msg=name)


def gradients_of(model, batch, *terms):
    torch.manual_seed(0)
    found = model.losses(batch)
    model.zero_grad()
    sum(found[t] for t in terms).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_no_term_moves_both_players(toy_dataset, toy_features, toy_batch):
    model = built(toy_dataset, modalities_of(toy_features, 2))
    critics = {n for n, _ in model.named_parameters() if n.startswith("critic.")}
    assert gradients_of(model, toy_batch, "critic", "penalty") == critics
    moved = gradients_of(model, toy_batch, "generator")
    assert moved == {f"projection.{n}.{x}" for n in model.tables for x in ("weight", "bias")}


def test_each_player_gains_by_its_own_gradient(toy_dataset, toy_features, toy_batch):
    for terms, player in ((("generator",), "projection."), (("critic",), "critic.")):
        model = built(toy_dataset, modalities_of(toy_features, 2))
        gradients_of(model, toy_batch, *terms)
        torch.manual_seed(0)
        before = sum(float(model.losses(toy_batch)[t].detach()) for t in terms)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.startswith(player):
                    p.sub_(1e-3 * p.grad)
        torch.manual_seed(0)
        assert sum(float(model.losses(toy_batch)[t].detach()) for t in terms) < before


def test_features_are_dropped_in_training_alone(toy_dataset, toy_features):
    model = built(toy_dataset, modalities_of(toy_features, 2), embedding_dim=400, dropout=0.25)
    for training, kept in ((True, 0.75), (False, 1.0)):
        torch.manual_seed(0)
        item = model.train(training)._views()["image"].feature.item
        assert float((item != 0).double().mean()) == pytest.approx(kept, abs=0.03)


def test_without_adversary_and_contrast_it_is_its_encoder(toy_dataset, toy_features, toy_batch):
    features = modalities_of(toy_features, 2)
    model = built(toy_dataset, features, generator_weight=0.0, contrastive_weight=0.0)
    whole = built(toy_dataset, features)
    model.load_state_dict(whole.state_dict(), strict=False)
    assert model.losses(toy_batch).keys() == {"bpr", "l2"}
    assert not [n for n, _ in model.named_parameters() if n.startswith("critic")]
    assert model.automatic_optimization
    torch.testing.assert_close(model.encode().user, whole.encode().user)


def test_without_modalities_it_is_lightgcn(toy_dataset, toy_features, toy_batch):
    off = {n: 0.0 for n in OPTIONS if n in ("view_weight", "feature_weight")}
    off |= {"generator_weight": 0.0, "contrastive_weight": 0.0}
    model = built(toy_dataset, FeatureStore(), **off)
    other = LightGCN(n_layers=2, embedding_dim=4, l2_weight=0.1)
    other.build_seeded(toy_dataset, FeatureStore(), seed=2)
    other.double().load_state_dict(model.state_dict())
    torch.testing.assert_close(
        sum(model.losses(toy_batch).values()), sum(other.losses(toy_batch).values())
    )


@pytest.mark.parametrize(
    ("off", "absent"),
    [
        ({"view_weight": 0.0}, "attention"),
        ({"view_weight": 0.0, "contrastive_weight": 0.0}, "relations"),
        ({"generator_weight": 0.0}, "critic"),
    ],
    ids=str,
)
def test_what_is_off_is_not_built_and_all_else_learns(
    toy_dataset, toy_features, toy_batch, off, absent
):
    model = built(toy_dataset, modalities_of(toy_features, 2), **off)
    assert not [n for n in model.state_dict() if n.startswith(absent)]
    sum(model.losses(toy_batch).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_relations_are_found_anew_by_refresh_and_after_loading(toy_dataset, toy_features):
    features = modalities_of(toy_features, 1)
    model = built(toy_dataset, features)
    (relation,) = model.relations.values()
    at_first = relation.neighbours.clone()
    with torch.no_grad():
        model.projection["text, shortened"].weight.normal_()
    model.encode()
    assert torch.equal(relation.neighbours, at_first)
    model.refresh()
    assert not torch.equal(relation.neighbours, at_first)
    other = built(toy_dataset, features)
    other.load_state_dict(model.state_dict())
    for name in ("neighbours", "by_item", "item_offsets"):
        assert torch.equal(getattr(*other.relations.values(), name), getattr(relation, name))


def test_neighbours_do_not_depend_on_tiles(toy_dataset, toy_features, monkeypatch):
    model = built(toy_dataset, modalities_of(toy_features, 1))
    (relation,) = model.relations.values()
    whole = relation.neighbours.clone()
    monkeypatch.setattr("llmrec_pl.models.relations._TILE_SCORES", 20)
    model.refresh()
    assert torch.equal(relation.neighbours, whole)


def test_the_critic_sees_no_more_users_than_asked(toy_dataset, toy_features, toy_batch):
    model = built(toy_dataset, modalities_of(toy_features, 1), n_critic_users=2)
    seen = []
    model.critic.register_forward_hook(lambda _, rows, __: seen.append(rows[0].shape))
    model.losses(toy_batch)
    assert set(seen) == {(2, 9)}


def test_each_player_has_an_optimizer(toy_dataset, toy_features):
    model = built(toy_dataset, modalities_of(toy_features, 2))
    assert not model.automatic_optimization
    (generator, critic), schedulers = model.configure_optimizers()
    assert schedulers == []
    sides = [{id(p) for g in o.param_groups for p in g["params"]} for o in (generator, critic)]
    assert sides[1] == {id(p) for p in model.critic.parameters()}
    assert sides[0] | sides[1] == {id(p) for p in model.parameters()}
    assert not sides[0] & sides[1]
    assert isinstance(generator, torch.optim.AdamW)
    assert critic.param_groups[0]["betas"] == (0.5, 0.9)


def test_hyper_parameters_hold_no_optimizer():
    assert "discriminator_optimizer" not in MMSSL().init_arguments()


def test_without_a_modality_the_error_says_how_to_make_one(toy_dataset, toy_features):
    with pytest.raises(ConfigError, match=r"MMSSL needs .*python -m llmrec_pl features"):
        built(toy_dataset, toy_features.only(["profile", "director"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layers", -1),
        ("n_heads", 0),
        ("n_heads", 7),
        ("n_neighbours", 0),
        ("view_weight", -0.1),
        ("generator_weight", -1.0),
        ("l2_weight", -1.0),
        ("contrastive_temperature", 0.0),
        ("gumbel_temperature", -0.5),
        ("dropout", 1.0),
        ("critic_width", 1),
        ("n_critic_users", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"`{name}`.*{value}"):
        MMSSL(**{name: value})
