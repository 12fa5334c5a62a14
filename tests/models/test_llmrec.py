"""LLMRec against a dense float64 re-derivation that shares no code with it."""

from pathlib import Path

import pytest
import torch
import yaml

from llmrec_pl.errors import ConfigError
from llmrec_pl.models.llmrec import LLMRec

CONFIGS = Path(__file__).parents[2] / "configs"


def released_arguments():
    """The model section of configs/released.yaml without the optimizer."""
    config = yaml.safe_load((CONFIGS / "released.yaml").read_text())
    arguments = dict(config["model"]["init_args"])
    del arguments["optimizer"]
    return arguments


def built(dataset, features, expected_batch_size=1024, **arguments):
    model = LLMRec(**{"embedding_dim": 4, **arguments})
    model.expected_batch_size = expected_batch_size
    model.build_seeded(dataset, features, seed=1)
    return model.double()


def dense_norms(dataset, norm):
    r = torch.tensor(dataset.train.toarray(), dtype=torch.float64)
    du, di = r.sum(1).clamp(min=1), r.sum(0).clamp(min=1)
    both = r / (du[:, None] * di[None, :]).sqrt()
    pair = (r / du.sqrt()[:, None], (r / di.sqrt()).T) if norm == "row" else (both, both.T)
    # The model keeps graph weights in float32; everything after them is float64.
    return tuple(x.float().double() for x in pair)


class Reference:
    """The formulas of the paper and of the released code, dense, with plain loops."""

    def __init__(self, model, dataset, features, **options):
        self.p = {n: p.detach().clone().requires_grad_(True) for n, p in model.named_parameters()}
        self.o = options
        self.norm_user, self.norm_item = dense_norms(dataset, options["graph_norm"])
        self.n_items = dataset.n_items
        self.features = features

    def graph(self):
        u, i = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        us, items = [u], [i]
        for layer in range(self.o["n_layers"]):
            last = layer == self.o["n_layers"] - 1 and self.o["final_softmax"]
            u = self.norm_user @ i
            u = torch.exp(u) / torch.exp(u).sum(1, keepdim=True) if last else u
            i = self.norm_item @ u
            i = torch.exp(i) / torch.exp(i).sum(1, keepdim=True) if last else i
            us.append(u)
            items.append(i)
        return sum(us) / len(us), sum(items) / len(items)

    def feature(self, name, masks):
        """Return propagated user and item rows, and the target before masking."""
        feature = self.features[name]
        key = "attribute" if feature.group == "attribute" else name
        raw = torch.tensor(feature.dense(), dtype=torch.float64)
        known = torch.ones(len(raw), dtype=torch.bool)
        if feature.index is not None:
            known = torch.tensor(feature.index >= 0)
        weight, bias = self.p[f"projection.{key}.weight"], self.p[f"projection.{key}.bias"]
        masked = masks.get(feature.side, []) if feature.group != "modality" else []
        target = raw
        if self.o.get("mask_space") == "raw" and len(masked):
            token = self.p.get(f"mask.{key}.token")
            token = raw.mean(0) if token is None else token
            seen = known.clone()
            seen[masked] = True
            raw = torch.stack([token if n in masked else raw[n] for n in range(len(raw))])
            rows = (raw @ weight.T + bias) * seen[:, None]
        else:
            rows = (raw @ weight.T + bias) * known[:, None]
            target = rows
            if len(masked):
                token = self.p.get(f"mask.{key}.token")
                token = rows.mean(0) if token is None else token
                rows = torch.stack([token if n in masked else rows[n] for n in range(len(rows))])
        if feature.side == "item":
            user = self.norm_user @ rows
            return user, self.norm_item @ user, target, known
        item = self.norm_item @ rows
        return self.norm_user @ item, item, target, known

    def bpr(self, user, item, batch):
        values = []
        for u, i, j in zip(batch["user"], batch["pos_item"], batch["neg_item"], strict=True):
            x = user[u] @ item[i] - user[u] @ item[j]
            values.append(-torch.log(torch.exp(-x) + 1))
        n = int((1 - self.o["prune_rate"]) * len(values))
        values.sort(key=lambda v: float(v.detach()), reverse=self.o["prune_keep"] == "easiest")
        return -sum(values[:n]) / n

    def run(self, batch, masks):
        """Return (h of users, h of items, loss terms)."""
        o = self.o
        encoded = {name: self.feature(name, masks) for name in self.features}
        user, item = self.graph()
        for name, (u, i, _, _) in encoded.items():
            w = o["feature_weight"][self.features[name].group]
            user = user + w * u / u.norm(dim=1, keepdim=True).clamp(min=1e-12)
            item = item + w * i / i.norm(dim=1, keepdim=True).clamp(min=1e-12)
        terms = {"bpr": self.bpr(user, item, batch)}
        for name in ("image", "text"):
            u, i, _, _ = encoded[name]
            terms[f"bpr_{name}"] = o["modality_bpr_weight"] * self.bpr(u, i, batch)
        for name in ("country", "director"):
            profile = encoded["profile"][0]
            bpr = self.bpr(profile, encoded[name][1], batch)
            terms[f"bpr_{name}"] = o["attribute_bpr_weight"] * bpr
        squares = sum((x**2).sum() for n in ("image", "text") for x in encoded[n][:2])
        terms["feature_l2"] = o["feature_l2_weight"] * 0.5 * squares / self.n_items
        if masks:
            terms["restoration"] = o["restoration_weight"] * self.restoration(encoded, masks)
        terms["l2"] = o["l2_weight"] * self.regulariser(user, item, batch)
        return user, item, terms

    def restoration(self, encoded, masks):
        total = 0
        for name in ("profile", "country", "director"):
            feature = self.features[name]
            key = "attribute" if feature.group == "attribute" else name
            user, item, target, known = encoded[name]
            rows = user if feature.side == "user" else item
            errors = []
            for node in masks[feature.side]:
                if not known[node]:
                    continue
                out = self.p[f"decoder.{key}.weight"] @ rows[node] + self.p[f"decoder.{key}.bias"]
                goal = target[node].detach()
                cosine = out @ goal / (out.norm() * goal.norm())
                errors.append((1 - cosine) ** self.o["restoration_gamma"])
            total = total + sum(errors) / len(errors)
        return total

    def regulariser(self, user, item, batch):
        u, i, j = batch["user"], batch["pos_item"], batch["neg_item"]
        if self.o["regulariser"] == "inverted":
            n = int((batch["source"] == 0).sum())
            squares = [(user[u] ** 2).sum(), (item[i] ** 2).sum(), (item[j] ** 2).sum()]
            return sum(1 / (2 * s + 1e-8) for s in squares) / n
        eu, ei = self.p["user_embedding.weight"], self.p["item_embedding.weight"]
        return 0.5 * ((eu[u] ** 2).sum() + (ei[i] ** 2).sum() + (ei[j] ** 2).sum()) / len(u)


OURS = {
    "n_layers": 2,
    "graph_norm": "row",
    "final_softmax": True,
    "feature_weight": {"modality": 0.3, "profile": 0.8, "attribute": 0.2},
    "attribute_bpr_weight": 0.4,
    "modality_bpr_weight": 0.3,
    "feature_l2_weight": 0.02,
    "prune_rate": 0.4,
    "prune_keep": "hardest",
    "mask_rate": 0.45,
    "mask_space": "projected",
    "mask_token": "learned",
    "restoration_weight": 0.7,
    "restoration_gamma": 1.7,
    "l2_weight": 0.05,
    "regulariser": "l2",
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prune_keep": "easiest"},
        {"graph_norm": "symmetric", "final_softmax": False, "n_layers": 3},
        {"regulariser": "inverted"},
        {"mask_token": "mean"},
        {"mask_space": "raw"},
        {"mask_space": "raw", "mask_token": "mean"},
        {"mask_space": "none"},
        {"prune_rate": 0.0, "restoration_gamma": 3.0},
        "released",
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["plain", "distinct", "propagated"])
def test_forward_losses_and_gradients_equal_a_dense_derivation(
    toy_dataset, toy_features, toy_batch, changes, way
):
    options = OURS | changes if changes != "released" else released_arguments()
    options.pop("embedding_dim", None)
    options["propagation"] = "plain" if way == "plain" else "auto"
    # A batch of no rows makes every feature with distinct rows one to propagate beforehand.
    batch_size = 0 if way == "propagated" else 1024
    model = built(toy_dataset, toy_features, batch_size, **options)
    assert type(model.paths["text"]).__name__.lower() == f"{way}path"
    # Products with the graph that are made once are rounded to float32 once.
    rtol, atol = (1e-8, 1e-12) if way == "plain" else (1e-5, 1e-6)
    for token in (p for n, p in model.named_parameters() if "token" in n):
        torch.nn.init.normal_(token)
    reference = Reference(model, toy_dataset, toy_features, **options)
    model.train()
    torch.manual_seed(11)
    found = model.losses(toy_batch)
    masks = {}
    if options["mask_space"] != "none":
        torch.manual_seed(11)
        masks = {
            side: torch.randperm(n)[: int(options["mask_rate"] * n)].tolist()
            for side, n in (("user", 7), ("item", 9))
        }
    user, item, expected = reference.run(toy_batch, masks)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad,
            reference.p[name].grad,
            rtol=rtol,
            atol=atol,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    model.eval()
    user, item, _ = reference.run(toy_batch, {})
    torch.testing.assert_close(model.encode().user, user, rtol=rtol, atol=atol)
    torch.testing.assert_close(model.encode().item, item, rtol=rtol, atol=atol)


def test_float32_agrees_with_float64_within_1e_5(toy_dataset, toy_features, toy_batch):
    double = built(toy_dataset, toy_features, **released_arguments())
    single = LLMRec(**released_arguments())
    single.build_seeded(toy_dataset, toy_features, seed=2)
    single.load_named_weights({n: p.detach().numpy() for n, p in double.named_parameters()})
    for name, value in single.losses(toy_batch).items():
        assert float(value) == pytest.approx(float(double.losses(toy_batch)[name]), abs=1e-5)


def test_without_feature_weights_it_is_its_graph_encoder(toy_dataset, toy_features):
    zero = {"modality": 0.0, "profile": 0.0, "attribute": 0.0}
    model = built(
        toy_dataset,
        toy_features,
        feature_weight=zero,
        attribute_bpr_weight=0.0,
        modality_bpr_weight=0.0,
        feature_l2_weight=0.0,
    )
    assert {n for n, _ in model.named_parameters()} == {
        "user_embedding.weight",
        "item_embedding.weight",
    }
    reference = Reference(model, toy_dataset, {}, graph_norm="row", n_layers=2, final_softmax=True)
    torch.testing.assert_close(model.encode().user, reference.graph()[0])


def test_masks_reach_h_in_training_only(toy_dataset, toy_features, toy_batch):
    model = built(toy_dataset, toy_features, mask_rate=0.5)
    torch.nn.init.normal_(model.mask["profile"].token)
    stored = model.paths["profile"].rows.values.clone()
    model.train()
    masked = float(model.losses(toy_batch)["bpr"].detach())
    model.eval()
    plain = float(model.losses(toy_batch)["bpr"].detach())
    assert masked != plain
    assert "restoration" in model.train().losses(toy_batch)
    torch.testing.assert_close(model.paths["profile"].rows.values, stored, rtol=0, atol=0)


def test_what_an_ablation_switches_off_is_not_built(toy_dataset, toy_features):
    names = {n for n, _ in built(toy_dataset, toy_features, mask_rate=0.0).named_parameters()}
    assert not any(n.startswith(("mask", "decoder")) for n in names)
    names = {
        n for n, _ in built(toy_dataset, toy_features, restoration_weight=0).named_parameters()
    }
    assert not any(n.startswith("decoder") for n in names)
    without = toy_features.without(["profile", "director", "country"])
    names = {n for n, _ in built(toy_dataset, without).named_parameters()}
    assert {n.split(".")[1] for n in names if n.startswith("projection")} == {"image", "text"}


def test_attributes_of_unequal_width_name_the_remedy(toy_dataset, toy_features):
    import dataclasses

    wide = dataclasses.replace(toy_features["text"], name="year", group="attribute")
    features = toy_features.merged([wide])
    with pytest.raises(ConfigError, match="share_attribute_projection"):
        built(toy_dataset, features)
    model = built(toy_dataset, features, share_attribute_projection=False)
    assert {"country", "director", "year"} <= set(model.projection)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("prune_rate", 1.0),
        ("mask_rate", -0.1),
        ("dropout", 1.5),
        ("n_layers", 0),
        ("restoration_gamma", 0.5),
        ("feature_weight", {"text": 1.0}),
    ],
)
def test_values_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=argument):
        LLMRec(**{argument: value})


def test_named_weights_are_checked(toy_dataset, toy_features):
    model = built(toy_dataset, toy_features)
    model.load_named_weights({"user_embedding": torch.ones(7, 4).numpy()})
    assert float(model.user_embedding.weight.sum()) == 28
    with pytest.raises(ConfigError, match="nonsense"):
        model.load_named_weights({"nonsense": torch.ones(2).numpy()})
