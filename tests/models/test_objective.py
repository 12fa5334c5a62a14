"""BPR, sampled softmax and CCL of MF and LightGCN against dense derivations."""

import math

import pytest
import torch

from llmrec_pl import losses
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.lightgcn import LightGCN
from llmrec_pl.models.mf import MF

COSINE = {"similarity": "cosine"}
VARIANTS = [
    {"loss": "bpr", **COSINE},
    {"loss": "sampled_softmax", "temperature": 0.07, **COSINE},
    {"loss": "sampled_softmax", "temperature": 0.6},
    {"loss": "ccl", "margin": 0.1, "negative_weight": 7.0, **COSINE},
    {"loss": "ccl", "margin": -1.0, "negative_weight": 2.0, **COSINE},
]


@pytest.fixture
def many(toy_batch):
    """The toy batch with five negatives a triplet, some of them equal."""
    torch.manual_seed(3)
    further = torch.randint(9, (8, 4))
    return toy_batch | {"neg_items": torch.cat([toy_batch["neg_item"][:, None], further], dim=1)}


def built(model_class, dataset, **arguments):
    model = model_class(embedding_dim=4, l2_weight=0.1, **arguments)
    model.build_seeded(dataset, FeatureStore(), seed=1)
    return model.double()


def derived(user, item, batch, options):
    """The loss of one triplet at a time, in plain arithmetic."""

    def similarity(u, i):
        y = sum(user[u, k] * item[i, k] for k in range(user.shape[1]))
        if options.get("similarity") != "cosine":
            return y
        return y / (user[u].pow(2).sum().sqrt() * item[i].pow(2).sum().sqrt())

    triplets = zip(*(batch[k].tolist() for k in ("user", "pos_item", "neg_items")), strict=True)
    total = 0
    for u, i, js in triplets:
        positive, negatives = similarity(u, i), [similarity(u, j) for j in js]
        if options["loss"] == "bpr":
            total = total - torch.log(1 / (1 + torch.exp(negatives[0] - positive)))
        elif options["loss"] == "sampled_softmax":
            t = options["temperature"]
            partition = sum(torch.exp(y / t) for y in [positive, *negatives])
            total = total - torch.log(torch.exp(positive / t) / partition)
        else:
            above = [y - options["margin"] for y in negatives if y > options["margin"]]
            total = total + 1 - positive + options["negative_weight"] * sum(above) / len(js)
    return total / len(batch["user"])


def propagated(dataset, user, item, n_layers):
    r = torch.tensor(dataset.train.toarray(), dtype=torch.float64)
    scale = (r.sum(1).clamp(min=1)[:, None] * r.sum(0).clamp(min=1)[None, :]) ** -0.5
    normal = (r * scale).float().double()
    users, items = [user], [item]
    for _ in range(n_layers):
        users, items = [*users, normal @ items[-1]], [*items, normal.T @ users[-1]]
    return sum(users) / len(users), sum(items) / len(items)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("n_layers", [0, 2])
def test_loss_scores_and_gradients_equal_a_derivation(toy_dataset, many, options, n_layers):
    if n_layers:
        model = built(LightGCN, toy_dataset, n_layers=n_layers, **options)
    else:
        model = built(MF, toy_dataset, **options)
    user = model.user_embedding.weight.detach().clone().requires_grad_()
    item = model.item_embedding.weight.detach().clone().requires_grad_()
    hu, hi = propagated(toy_dataset, user, item, n_layers)
    u, i, j = (many[k] for k in ("user", "pos_item", "neg_item"))
    squares = (user[u] ** 2).sum() + (item[i] ** 2).sum() + (item[j] ** 2).sum()
    found = model.losses(many)
    assert found.keys() == {options["loss"], "l2"}
    expected = derived(hu, hi, many, options)
    torch.testing.assert_close(found[options["loss"]], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["l2"], 0.1 * squares / 16, rtol=1e-9, atol=1e-12)
    sum(found.values()).backward()
    (expected + 0.1 * squares / 16).backward()
    torch.testing.assert_close(model.user_embedding.weight.grad, user.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.item_embedding.weight.grad, item.grad, rtol=1e-9, atol=1e-12)
    ranked = model.encode()
    scores = hu @ hi.T
    if options.get("similarity") == "cosine":
        scores = scores / (hu.norm(dim=1)[:, None] * hi.norm(dim=1)[None, :])
    torch.testing.assert_close(ranked.user @ ranked.item.T, scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model_class", [MF, LightGCN])
def test_one_negative_at_temperature_one_is_bpr(toy_dataset, toy_batch, model_class):
    softmax = built(model_class, toy_dataset, loss="sampled_softmax", temperature=1.0)
    bpr = built(model_class, toy_dataset)
    found, expected = softmax.losses(toy_batch), bpr.losses(toy_batch)
    torch.testing.assert_close(found["sampled_softmax"], expected["bpr"], rtol=1e-12, atol=0)


def test_equal_scores_give_the_entropy_of_a_uniform_choice():
    value = losses.sampled_softmax_loss(torch.zeros(3), torch.zeros(3, 15), 0.1)
    assert float(value) == pytest.approx(math.log(16))


def test_a_negative_of_minus_infinity_is_left_out():
    torch.manual_seed(0)
    positive = torch.randn(5, dtype=torch.float64, requires_grad=True)
    negative = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    absent = torch.zeros(5, 4, dtype=torch.bool)
    absent[:, 1] = absent[2] = True
    found = losses.sampled_softmax_loss(positive, negative.masked_fill(absent, -torch.inf), 0.5)
    rows = [
        torch.log1p(sum(((n - p) / 0.5).exp() for n, gone in zip(ns, a, strict=True) if not gone))
        for p, ns, a in zip(positive, negative, absent.tolist(), strict=True)
        if not all(a)
    ]
    torch.testing.assert_close(found, sum(rows) / 5)
    gradients = torch.autograd.grad(found, (positive, negative))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[1][absent].any()


def test_extreme_scores_stay_finite():
    positive = torch.tensor([-200.0, 200.0], requires_grad=True)
    negative = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    value = losses.sampled_softmax_loss(positive, negative, 0.01)
    assert float(value) == pytest.approx(20_000)
    value.backward()
    torch.testing.assert_close(positive.grad, torch.tensor([-50.0, 0.0]))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("model_class", [MF, LightGCN])
def test_autocast_changes_little(toy_dataset, many, model_class, options):
    model = built(model_class, toy_dataset, **options).float()
    exact = sum(model.losses(many).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(model.losses(many).values())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_widened(dtype):
    positive, negative = torch.randn(4, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    for value in (
        losses.sampled_softmax_loss(positive, negative, 0.05),
        losses.cosine_contrastive_loss(positive, negative, 0.2, 5.0),
    ):
        assert value.dtype == torch.float32


def test_negatives_at_or_below_the_margin_do_not_count():
    positive = torch.tensor([0.25, 1.0])
    negative = torch.tensor([[0.5, -1.0], [0.5, 0.75]])
    value = losses.cosine_contrastive_loss(positive, negative, 0.5, 8.0)
    assert float(value) == (0.75 + 8 * 0.125) / 2


def test_the_mean_over_negatives_does_not_depend_on_their_number():
    positive, negative = torch.rand(6), torch.rand(6, 5)
    once = losses.cosine_contrastive_loss(positive, negative, 0.2, 3.0)
    twice = losses.cosine_contrastive_loss(positive, torch.cat([negative] * 2, 1), 0.2, 3.0)
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"loss": "softmax"}, "loss.*'softmax'"),
        ({"similarity": "dot"}, "similarity.*'dot'"),
        ({"temperature": 0.0}, "temperature.*0.0"),
        ({"margin": 1.0}, "margin.*1.0"),
        ({"negative_weight": -1.0}, "negative_weight.*-1.0"),
        ({"loss": "ccl"}, "ccl.*cosine.*inner"),
    ],
)
@pytest.mark.parametrize("model_class", [MF, LightGCN])
def test_values_out_of_range_are_refused_by_name(model_class, arguments, named):
    with pytest.raises(ConfigError, match=named):
        model_class(**arguments)
