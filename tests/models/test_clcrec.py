"""CLCRec against a derivation one triplet at a time, its limits, and cold items in any place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.data.triplets import TripletSampler
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.clcrec import CLCRec
from llmrec_pl.models.mf import MF

N_ITEMS, REPLACE = 9, 0.4
OPTIONS = {
    "contrast_weight": 0.3,
    "contrast_temperature": 0.25,
    "temperature": 0.7,
    "replace_rate": REPLACE,
    "l2_weight": 0.2,
}


def modality(name, dim, index=None, seed=0):
    rows = N_ITEMS if index is None else max(index) + 1
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    index = None if index is None else np.array(index, dtype=np.int64)
    return Feature(name, "item", "modality", values, index)


ONE = [modality("mood-3", 4)]
TWO = [*ONE, modality("image", 6, [0, 1, 1, -1, 2, -1, 0, 2, 1], seed=1)]
THREE = [*TWO, modality("a_b", 1, seed=2)]


def store(features):
    return FeatureStore({f.name: f for f in features})


@pytest.fixture
def moved_dataset():
    """Cold items 0, 4 and 8: first, in the middle and last."""
    edges = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 5), (3, 6), (3, 7), (4, 1), (5, 7), (5, 3)]
    return InteractionDataset.from_edges("moved", 7, N_ITEMS, np.array(edges).T)


@pytest.fixture
def batch():
    """Six triplets of four negatives, with cold ones among them; the last positive is cold."""
    negatives = [[4, 3, 0, 8], [8, 1, 5, 1], [3, 4, 6, 2], [0, 4, 8, 0], [2, 5, 3, 6], [1, 8, 2, 5]]
    return {
        "user": torch.tensor([0, 1, 2, 3, 5, 0]),
        "pos_item": torch.tensor([1, 2, 5, 6, 7, 4]),
        "neg_item": torch.tensor([row[0] for row in negatives]),
        "neg_items": torch.tensor(negatives),
        "source": torch.tensor([0, 0, 0, 0, 0, 1], dtype=torch.int8),
    }


def built(dataset, features, **options):
    model = CLCRec(**{"embedding_dim": 3, "hidden_dim": 5, **OPTIONS, **options})
    model.build_seeded(dataset, features, seed=4)
    return model.double()


class Reference:
    """The same mathematics from copies of the parameters, one item and one triplet at a time."""

    def __init__(self, model, features, options):
        self.p = {n: w.detach().clone().requires_grad_() for n, w in model.named_parameters()}
        self.o = {**OPTIONS, **options}
        self.x = [self.raw(features, i) for i in range(N_ITEMS)]
        self.cold = {0, 4, 8}

    @staticmethod
    def raw(features, item):
        parts = []
        for name in sorted(features):
            row = torch.tensor(features[name].dense()[item])
            # in float32, as the table keeps it
            parts.append(F.normalize(row, dim=0).double())
        return torch.cat(parts)

    def q(self, item):
        return self.p["item_embedding.weight"][item]

    def f(self, item):
        hidden = self.p["encoder.0.weight"] @ self.x[item] + self.p["encoder.0.bias"]
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        return self.p["encoder.2.weight"] @ hidden + self.p["encoder.2.bias"]

    def terms(self, batch, replaced):
        contrast, softmax, squares = 0, 0, 0
        user_table, n = self.p["user_embedding.weight"], len(batch["user"])
        for row in range(n):
            user = user_table[batch["user"][row]]
            items = [int(batch["pos_item"][row]), *batch["neg_items"][row].tolist()]
            kept = [k for k, item in enumerate(items) if k == 0 or item not in self.cold]
            mixed = {
                k: self.f(items[k]) if replaced[row][k] or items[k] in self.cold else self.q(i)
                for k, i in enumerate(items)
            }
            y = {k: torch.exp(user @ mixed[k] / self.o["temperature"]) for k in kept}
            softmax = softmax - torch.log(y[0] / sum(y.values()))
            anchor = self.q(items[0]) / self.q(items[0]).norm()
            t = self.o["contrast_temperature"]
            c = {
                k: torch.exp(anchor @ self.f(items[k]) / self.f(items[k]).norm() / t) for k in kept
            }
            contrast = contrast - torch.log(c[0] / sum(c.values()))
            for vector in (user, self.q(items[0]), self.q(int(batch["neg_item"][row]))):
                squares = squares + vector @ vector
        lam = self.o["contrast_weight"]
        return {
            "contrast": lam * contrast / n,
            "softmax": (1 - lam) * softmax / n,
            "l2": self.o["l2_weight"] * squares / (2 * n),
        }


@pytest.mark.parametrize("features", [ONE, TWO, THREE], ids=["one", "two", "three"])
@pytest.mark.parametrize("training", [True, False])
def test_losses_and_gradients_equal_a_derivation(moved_dataset, batch, features, training):
    features = store(features)
    model = built(moved_dataset, features).train(training)
    reference = Reference(model, features, {})
    torch.manual_seed(5)
    drawn = torch.rand(6, 5) < REPLACE if training else torch.zeros(6, 5, dtype=torch.bool)
    torch.manual_seed(5)
    found, expected = model.losses(batch), reference.terms(batch, drawn.tolist())
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, reference.p[name].grad, rtol=1e-9, atol=1e-12, msg=name
        )


@pytest.mark.parametrize("features", [ONE, TWO, THREE], ids=["one", "two", "three"])
def test_cold_items_are_scored_by_their_features_wherever_they_are(moved_dataset, features):
    features = store(features)
    model = built(moved_dataset, features).eval()
    reference = Reference(model, features, {})
    rows = [reference.f(i) if i in (0, 4, 8) else reference.q(i) for i in range(N_ITEMS)]
    user, item = model.encode()
    torch.testing.assert_close(item, torch.stack(rows), rtol=1e-9, atol=1e-12)
    assert torch.equal(user, model.user_embedding.weight)


def test_without_contrast_and_replacement_it_is_sampled_softmax_mf(moved_dataset, batch):
    model = built(moved_dataset, FeatureStore(), contrast_weight=0.0, replace_rate=0.0)
    assert {n.partition(".")[0] for n, _ in model.named_parameters()} == {
        "user_embedding",
        "item_embedding",
    }
    mf = MF(embedding_dim=3, loss="sampled_softmax", temperature=0.7, l2_weight=0.2)
    mf.build_seeded(moved_dataset, FeatureStore(), seed=9)
    mf.double().load_state_dict(model.state_dict())
    warm_only = batch | {
        "neg_items": torch.tensor([[3, 2], [1, 5], [3, 6], [1, 2], [2, 5], [1, 2]])
    }
    found, expected = model.train().losses(warm_only), mf.losses(warm_only)
    torch.testing.assert_close(found["softmax"], expected["sampled_softmax"], rtol=1e-12, atol=0)
    torch.testing.assert_close(found["l2"], expected["l2"], rtol=1e-12, atol=0)
    torch.testing.assert_close(model.encode().item, mf.encode().item, rtol=0, atol=0)


def test_without_contrast_the_encoder_learns_from_replaced_items(moved_dataset, batch):
    model = built(moved_dataset, store(TWO), contrast_weight=0.0).train()
    terms = model.losses(batch)
    assert terms.keys() == {"softmax", "l2"}
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


def test_a_cold_positive_is_its_features_in_training_too(moved_dataset, batch):
    model = built(moved_dataset, store(TWO), replace_rate=0.0, l2_weight=0.0).train()
    model.losses(batch)["softmax"].backward()
    taught = model.item_embedding.weight.grad.any(dim=1)
    assert not taught[4], "item 4 is the last positive"
    assert taught[1]
    assert all(p.grad.any() for p in model.encoder.parameters())


def test_a_cold_negative_teaches_nothing(moved_dataset, batch):
    model = built(moved_dataset, store(ONE), replace_rate=0.0, l2_weight=0.0).train()
    without = batch | {"neg_items": batch["neg_items"][:, :2]}
    cold = torch.tensor([0, 4, 8]).repeat(6, 1)
    more = without | {"neg_items": torch.cat([without["neg_items"], cold], dim=1)}
    names, parameters = zip(*model.named_parameters(), strict=True)
    values, gradients = [], []
    for each in (without, more):
        values.append(sum(model.losses(each).values()))
        gradients.append(torch.autograd.grad(values[-1], parameters))
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    for name, a, b in zip(names, *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_losses_are_finite_where_all_negatives_are_cold_and_scores_are_huge(moved_dataset, batch):
    model = built(moved_dataset, store(TWO), temperature=1e-3).train()
    with torch.no_grad():
        model.user_embedding.weight.mul_(1e3)
    terms = model.losses(batch | {"neg_items": torch.tensor([[0, 4], [8, 8]] * 3)})
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_one_negative_needs_no_neg_items(moved_dataset, batch):
    model = built(moved_dataset, store(TWO)).eval()
    single = {k: v for k, v in batch.items() if k != "neg_items"}
    given = single | {"neg_items": batch["neg_item"][:, None]}
    for name, value in model.losses(single).items():
        torch.testing.assert_close(value, model.losses(given)[name], rtol=0, atol=0)


def test_it_needs_an_item_modality(moved_dataset):
    with pytest.raises(ConfigError, match="CLCRec needs at least one item modality"):
        built(moved_dataset, FeatureStore())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("hidden_dim", 0),
        ("contrast_weight", 1.0),
        ("contrast_weight", -0.1),
        ("replace_rate", 1.0),
        ("temperature", 0.0),
        ("contrast_temperature", -1.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=rf"`{argument}`.*{value}"):
        CLCRec(**{argument: value})


class Largest(TorchDispatchMode):
    """Notes how many values the largest tensor made by an operation has, backward pass included."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        stores = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for out in made if isinstance(made, tuple | list) else [made]:
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in stores:
                self.size = max(self.size, out.numel())
        return made


def test_no_step_copies_the_features():
    """A step meets 2,000 items of 64 columns; its largest own tensors have 20 columns at most."""
    n, dim = 2_000, 64
    random = np.random.default_rng(0)
    edges = np.stack([np.arange(n) % 50, np.arange(n)])
    dataset = InteractionDataset.from_edges("wide", 50, n, edges)
    values = random.normal(size=(n, dim)).astype(np.float32)
    model = CLCRec(embedding_dim=4, hidden_dim=20)
    model.build_seeded(dataset, store([Feature("text", "item", "modality", values)]), seed=0)
    items = torch.arange(n)
    batch = {
        "user": items % 50,
        "pos_item": items,
        "neg_item": items.flip(0),
        "source": torch.zeros(n, dtype=torch.int8),
    }
    with Largest() as found:
        sum(model.losses(batch).values()).backward()
        model.eval().encode()
    assert n * 20 <= found.size < n * dim


def test_features_tell_which_users_like_a_cold_item():
    """Two taste groups; every third item is cold, and only its features give its group away."""
    n_users, n_items = 24, 30
    random = np.random.default_rng(0)
    group = random.permutation(np.arange(n_items) % 2)
    cold = random.permutation(np.arange(n_items) % 3 == 0)
    likes = (np.arange(n_users) % 2)[:, None] == group[None, :]
    train = likes & ~cold & (random.random(likes.shape) < 0.7)
    dataset = InteractionDataset.from_edges("taste", n_users, n_items, np.stack(np.nonzero(train)))
    rows = random.normal(size=(n_items, 4)).astype(np.float32) * 0.3
    rows[:, 2] += np.where(group == 1, 1, -1)
    features = store([Feature("plot", "item", "modality", rows)])
    model = CLCRec(embedding_dim=8, hidden_dim=16, l2_weight=0.0)
    model.build_seeded(dataset, features, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    sampler = TripletSampler(dataset.train, 64, seed=0, n_negatives=5)
    for epoch in range(60):
        torch.manual_seed(epoch)
        batch = {k: torch.from_numpy(v) for k, v in vars(sampler.batch(epoch, 0)).items()}
        loss = sum(model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    user, item = model.eval().encode()
    scores = (user @ item.T).detach().numpy()[:, cold]
    own = likes[:, cold]
    right = [(s[o].min() > s[~o].max()) for s, o in zip(scores, own, strict=True)]
    assert np.mean(right) > 0.9
