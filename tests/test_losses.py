"""Loss terms against plain float64 loops."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from llmrec_pl import losses
from llmrec_pl.errors import ConfigError


def rows(n, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(3)]


def naive_log_likelihoods(u, i, j):
    return [
        math.log(1 / (1 + math.exp(-(float(a @ b) - float(a @ c)))))
        for a, b, c in zip(u, i, j, strict=True)
    ]


def test_bpr_equals_a_loop():
    u, i, j = rows(9)
    expected = -sum(naive_log_likelihoods(u, i, j)) / 9
    assert float(losses.bpr_loss(u, i, j)) == pytest.approx(expected, rel=1e-12)


def test_bpr_stays_finite_for_hopeless_triplets():
    u = torch.full((1, 1), 1e4)
    loss = losses.bpr_loss(u, torch.zeros(1, 1), torch.ones(1, 1))
    assert float(loss) == pytest.approx(1e4)


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0, 0.99), st.sampled_from(["hardest", "easiest"]))
def test_pruning_keeps_one_end_of_the_sorted_values(n, rate, keep):
    u, i, j = rows(n, seed=n)
    kept = max(1, int((1 - rate) * n))
    values = sorted(naive_log_likelihoods(u, i, j), reverse=keep == "easiest")[:kept]
    found = losses.pruned_bpr_loss(u, i, j, rate, keep)
    assert float(found) == pytest.approx(-sum(values) / kept, rel=1e-9)


def test_pruned_triplets_get_no_gradient():
    u, i, j = rows(10)
    u.requires_grad_()
    losses.pruned_bpr_loss(u, i, j, 0.7).backward()
    assert int((u.grad.abs().sum(1) > 0).sum()) == 3


def test_unknown_prune_end_is_refused():
    with pytest.raises(ConfigError, match="hardest"):
        losses.pruned_bpr_loss(*rows(2), 0.5, "hard")


def test_l2_is_half_the_mean_squared_norm():
    a, b, c = rows(4)
    total = sum(float(x) ** 2 for t in (a, b, c) for x in t.flatten())
    assert float(losses.l2_loss(a, b, c)) == pytest.approx(total / 8, rel=1e-12)
    assert float(losses.feature_l2_loss(5, a.sum(), b.sum())) == pytest.approx(
        float(a.sum() + b.sum()) / 10, rel=1e-12
    )


def test_inverted_l2_shrinks_as_rows_grow():
    small, large = torch.ones(2, 2), 10 * torch.ones(2, 2)
    assert losses.inverted_l2_loss(2, small) > losses.inverted_l2_loss(2, large)
    assert float(losses.inverted_l2_loss(2, small)) == pytest.approx(1 / 8 / 2)


@given(st.floats(1, 4))
def test_restoration_equals_a_loop(gamma):
    a, b, _ = rows(5)
    errors = [
        (1 - float(x @ y) / (float(x.norm()) * float(y.norm()))) ** gamma
        for x, y in zip(a, b, strict=True)
    ]
    assert float(losses.restoration_loss(a, b, gamma)) == pytest.approx(sum(errors) / 5, rel=1e-9)


def test_restoration_of_equal_rows_has_a_finite_gradient():
    a = torch.randn(6, 4, requires_grad=True)
    loss = losses.restoration_loss(a, 3 * a.detach(), 1.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert a.grad.isfinite().all()


def test_restoration_of_nothing_is_zero():
    assert float(losses.restoration_loss(torch.zeros(0, 4), torch.zeros(0, 4), 2)) == 0


@pytest.mark.parametrize("n_rows", [3, 4 * 64, 4 * 64 + 1])
def test_candidate_scores_are_inner_products_however_many_rows_there_are(n_rows):
    random = torch.Generator().manual_seed(n_rows)
    user, rows = (
        torch.randn(n, 5, generator=random).double().requires_grad_() for n in (7, n_rows)
    )
    place = torch.randint(n_rows, (7, 4), generator=random)
    found = losses.candidate_scores(user, rows, place)
    expected = torch.stack(
        [torch.stack([user[i] @ rows[place[i, j]] for j in range(4)]) for i in range(7)]
    )
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.square().sum(), (user, rows)) for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert losses.candidate_scores(user.float(), rows.float(), place).dtype == torch.float32


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.5), (6, 0.5), (6, 0.01)])
def test_two_view_contrast_and_its_gradient_equal_a_loop(n, temperature):
    random = torch.Generator().manual_seed(n)
    view, other = (torch.randn(n, 4, generator=random).double().requires_grad_() for _ in range(2))
    v, o = (x / x.norm(dim=1, keepdim=True) for x in (view, other))
    expected = torch.zeros((), dtype=torch.float64)
    for a in range(n):
        scores = [v[a] @ o[b] / temperature for b in range(n)]
        scores += [v[a] @ v[b] / temperature for b in range(n) if b != a]
        expected = expected + torch.logsumexp(torch.stack(scores), 0) - scores[a]
    found = losses.two_view_contrast_loss(view, other, temperature)
    torch.testing.assert_close(found, expected / n)
    gradients = [torch.autograd.grad(3 * x, (view, other)) for x in (found, expected / n)]
    torch.testing.assert_close(*gradients)
