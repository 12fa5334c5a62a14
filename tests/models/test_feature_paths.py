"""The lean ways of a feature give what the plain way gives: any graph, feature, mask and batch."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.feature_paths import Asked, PlainPath
from llmrec_pl.models.frozen import FrozenRows
from llmrec_pl.models.layers import MaskedRows
from llmrec_pl.models.lean_paths import DistinctPath, PropagatedPath, choose_path
from llmrec_pl.models.llmrec import LLMRec

DIM, WIDTH = 5, 3


@st.composite
def problems(draw):
    """A graph, a feature of one side, a projection, rows asked for and masked nodes."""
    n_users, n_items = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edges = np.stack(np.nonzero(random.random((n_users, n_items)) < draw(st.floats(0, 0.9))))
    graph = BipartiteGraph(edges, n_users, n_items, draw(st.sampled_from(["row", "symmetric"])))
    side = draw(st.sampled_from(["user", "item"]))
    n = n_users if side == "user" else n_items
    n_distinct = draw(st.integers(1, n))
    index = None
    if n_distinct < n or draw(st.booleans()):
        index = random.integers(-1, n_distinct, size=n)
    values = random.normal(size=(n_distinct, DIM)).astype(np.float32)
    feature = Feature("f", side, "attribute", values, index)
    rows = {
        "user": draw(st.none() | st.lists(st.integers(0, n_users - 1), max_size=9)),
        "item": draw(st.none() | st.lists(st.integers(0, n_items - 1), max_size=9)),
    }
    masked = {}
    if draw(st.booleans()):
        masked = {side: torch.from_numpy(random.permutation(n)[: draw(st.integers(0, n))])}
    ids = (None if r is None else torch.tensor(r).long() for r in rows.values())
    asked = Asked(*ids, masked, restored=draw(st.booleans()))
    return graph, feature, asked, random


def outcome(path, projection, token, space, asked, coefficients):
    """Return everything a way gives, and the gradients of a fixed combination of it."""
    path, parameters = path.double(), [*projection.parameters(), *token.parameters()]
    found = path(projection, asked, token, space)
    values = [found.user, found.item]
    if found.at_masked is not None:
        values += [found.at_masked, found.target]
    else:
        assert found.target is None
    if not asked.masked:
        values.append(found.squared_norm().reshape(1, 1))
    total = sum((v * coefficients[: len(v), : v.shape[1]]).sum() for v in values)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return values, [g if g is not None else torch.zeros(()) for g in gradients]


@settings(deadline=None, max_examples=150)
@given(
    problems(),
    st.sampled_from(["distinct", "propagated"]),
    st.sampled_from(["projected", "raw"]),
    st.sampled_from(["learned", "mean"]),
)
def test_values_and_gradients_equal_those_of_the_plain_way(problem, way, space, kind):
    graph, feature, asked, random = problem
    projection = nn.Linear(DIM, WIDTH).double()
    token = MaskedRows(WIDTH if space == "projected" else DIM, kind).double()
    for parameter in token.parameters():
        nn.init.normal_(parameter)
    coefficients = torch.from_numpy(random.normal(size=(20, DIM)))
    if way == "distinct":
        lean = DistinctPath(feature, graph, "float32")
    else:
        lean = PropagatedPath(feature, graph, "float32", masked=bool(asked.masked))
    expected = outcome(PlainPath(feature, graph), projection, token, space, asked, coefficients)
    found = outcome(lean, projection, token, space, asked, coefficients)
    for ours, plain in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [DistinctPath, PropagatedPath])
def test_half_precision_storage_rounds_the_rows_and_nothing_else(way):
    random = np.random.default_rng(1)
    graph = BipartiteGraph(np.stack(np.nonzero(random.random((30, 40)) < 0.2)), 30, 40)
    feature = Feature("f", "item", "modality", random.normal(size=(40, 8)).astype(np.float32))
    more = {"masked": False} if way is PropagatedPath else {}
    whole, half = (way(feature, graph, s, **more) for s in ("float32", "float16"))
    kept = {name: b.dtype for name, b in half.named_buffers() if "values" in name}
    assert set(kept.values()) == {torch.float16}
    projection = nn.Linear(8, 4)
    ours, exact = (p(projection, Asked(), None, "none") for p in (half, whole))
    for name in ("user", "item"):
        assert not torch.equal(getattr(ours, name), getattr(exact, name))
        torch.testing.assert_close(getattr(ours, name), getattr(exact, name), rtol=0, atol=4e-3)


def test_few_rows_of_many_are_propagated_beforehand_and_repeated_ones_projected_once():
    graph = BipartiteGraph(np.array([[0, 1], [2, 3]]), 50, 100)
    distinct = Feature("f", "item", "attribute", np.ones((100, 2), np.float32))
    index = np.arange(100) % 4
    repeated = Feature("f", "item", "attribute", np.ones((4, 2), np.float32), index)

    def way(feature, **options):
        return type(choose_path(feature, graph, **options))

    assert way(distinct, rows_a_step=30) is PropagatedPath
    assert way(distinct, rows_a_step=100) is DistinctPath
    assert way(distinct, rows_a_step=30, mask_rate=0.4) is DistinctPath
    assert way(repeated, rows_a_step=30) is DistinctPath
    assert way(distinct, rows_a_step=30, dropout=0.1) is PlainPath
    assert way(distinct, rows_a_step=30, plain=True) is PlainPath


@pytest.mark.parametrize("share_of_zero_gradients", [0.0, 0.05, 0.6, 1.0])
@pytest.mark.parametrize("all_rows", [True, False])
def test_projection_of_frozen_rows_reads_any_tile_alike(share_of_zero_gradients, all_rows):
    values = np.random.default_rng(0).normal(size=(700, 6)).astype(np.float32)
    rows = FrozenRows(values).double()
    index = None if all_rows else torch.randint(0, 700, (1500,))
    projection = nn.Linear(6, 3).double()
    found = rows.project(projection, index)
    read = torch.from_numpy(values).double()
    expected = projection(read if index is None else read[index])
    torch.testing.assert_close(found, expected)
    weight = torch.randn(len(found), 3).double()
    weight[torch.rand(len(found)) < share_of_zero_gradients] = 0
    ours = torch.autograd.grad((found * weight).sum(), projection.parameters())
    plain = torch.autograd.grad((expected * weight).sum(), projection.parameters())
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("way", [DistinctPath, PropagatedPath])
def test_a_masked_neighbourhood_gives_a_new_token_the_gradient_of_the_plain_way(way):
    users, n_items = 7, 5
    edges = np.stack([np.arange(users), np.arange(users) % n_items])
    graph = BipartiteGraph(edges, users, n_items)
    values = np.random.default_rng(8).normal(size=(users, 40)).astype(np.float32)
    feature = Feature("f", "user", "profile", values)
    asked = Asked(masked={"user": torch.arange(users)})
    projection, token = nn.Linear(40, 8), MaskedRows(8, "learned")
    lean = way(feature, graph, "float32", **({"masked": True} if way is PropagatedPath else {}))
    gradients = []
    for path in (PlainPath(feature, graph), lean):
        item = path(projection, asked, token, "projected").item
        score = F.normalize(item, dim=1) @ torch.arange(8.0)
        gradients.append(torch.autograd.grad(score.sum(), token.token)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=0)
    assert gradients[0].abs().max() < 1e4, "as large as its inverse length, not as 1 / eps"


def test_float16_storage_holds_sums_beyond_its_range():
    random = np.random.default_rng(6)
    edges = np.stack(np.nonzero(random.random((60, 80)) < 0.6))
    graph = BipartiteGraph(edges, 60, 80)  # norm "row": sums of some 36 numbers over 6
    values = random.uniform(2e4, 6e4, size=(80, 8)).astype(np.float32)
    feature = Feature("f", "item", "modality", values)
    projection = nn.Linear(8, 4)
    exact = PlainPath(feature, graph)(projection, Asked(), None, "none")
    half = PropagatedPath(feature, graph, "float16", masked=False)
    found = half(projection, Asked(), None, "none")
    for name in ("user", "item"):
        expected = getattr(exact, name)
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(getattr(found, name), expected, rtol=0, atol=2e-3 * scale)
    too_large = Feature("f", "item", "modality", 2 * values)
    for way in (DistinctPath, PropagatedPath):
        more = {"masked": True} if way is PropagatedPath else {}
        with pytest.raises(ConfigError, match=r"'f' holds numbers beyond 65,504"):
            way(too_large, graph, "float16", **more)


@pytest.mark.parametrize("way", [DistinctPath, PropagatedPath])
def test_the_norm_of_a_large_graph_is_finite_under_float16_autocast(way):
    everyone = np.stack(np.nonzero(np.ones((300, 300))))  # more edges than float16 counts
    graph = BipartiteGraph(everyone, 300, 300)
    values = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    feature = Feature("f", "item", "modality", values)
    projection = nn.Linear(2, 2)
    more = {"masked": False} if way is PropagatedPath else {}
    ours = way(feature, graph, "float32", **more)(projection, Asked(), None, "none")
    plain = PlainPath(feature, graph)(projection, Asked(), None, "none")
    with torch.autocast("cpu", torch.float16):
        found = ours.squared_norm()
    torch.testing.assert_close(found, plain.squared_norm(), rtol=1e-4, atol=0)


def test_rows_of_nodes_without_an_edge_are_not_stored():
    random = np.random.default_rng(5)
    edges = np.stack(np.nonzero(random.random((20, 30)) < 0.3))
    graph = BipartiteGraph(edges, 20, 90)  # two thirds of the items have no edge
    values = random.normal(size=(90, 4)).astype(np.float32)
    path = PropagatedPath(Feature("f", "item", "attribute", values), graph, "float32", masked=False)
    assert len(path.own_rows.rows.values) <= 30
    projection = nn.Linear(4, 2)
    items = torch.tensor([89, 0, 89, 5])
    found = path(projection, Asked(torch.tensor([0]), items), None, "none").item
    assert torch.equal(found[[0, 2]], torch.zeros(2, 2))
    assert (found[[1, 3]] != 0).all()


@pytest.mark.parametrize("density", [0.15, 0.02])  # in the second, masks reach whole neighbourhoods
def test_a_trained_model_is_the_same_on_every_way(density):
    random = np.random.default_rng(3)
    edges = np.stack(np.nonzero(random.random((40, 60)) < density))
    dataset = InteractionDataset.from_edges("d", 40, 60, edges)

    def feature(name, side, group, n):
        return Feature(name, side, group, random.normal(size=(n, 7)).astype(np.float32))

    names = ("text", "item", "modality", 60), ("profile", "user", "profile", 40)
    features = [feature(*n) for n in (*names, ("year", "item", "attribute", 60))]
    index = np.where(random.random(60) < 0.3, -1, random.integers(20, size=60))
    rows = random.normal(size=(20, 7)).astype(np.float32)
    features.append(Feature("director", "item", "attribute", rows, index))
    store = FeatureStore({f.name: f for f in features})
    ends = []
    for size, propagation in ((1024, "plain"), (1024, "auto"), (2, "auto")):
        model = LLMRec(embedding_dim=8, propagation=propagation)
        model.expected_batch_size = size
        model.build_seeded(dataset, store, seed=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(5):
            torch.manual_seed(step)
            triplets = np.random.default_rng(step).integers(40, size=(3, 16))
            names = ("user", "pos_item", "neg_item")
            batch = dict(zip(names, torch.from_numpy(triplets), strict=True))
            loss = sum(model.train().losses(batch | {"source": torch.zeros(16)}).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(torch.cat(model.eval().encode()))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-5, atol=1e-5)
