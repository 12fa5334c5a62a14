"""LazyAdamW against torch's AdamW and SparseAdam, and clipping of sparse gradients."""

import pytest
import torch
from torch import nn

from llmrec_pl.errors import ConfigError
from llmrec_pl.optimizers import LazyAdamW, clip_sparse

N_ROWS, DIM = 40, 3


class Scorer(nn.Module):
    """A table of which a step reads some rows, some of them twice, and a dense layer."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(N_ROWS, DIM, sparse=sparse)
        self.layer = nn.Linear(DIM, 2)

    def forward(self, rows):
        once, again = self.table(rows), self.table(rows[: len(rows) // 2])
        return self.layer(once).tanh().square().mean() + (again - 1).pow(4).sum()


def run(model, optimizer, steps, rows_of):
    for step in range(steps):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        model(rows_of(step)).backward()
        optimizer.step()


def some(step):
    return torch.randint(N_ROWS, (12,))


def every(step):
    return torch.cat([torch.randperm(N_ROWS), torch.arange(5)])


def assert_equal_weights(a, b, **tolerance):
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, msg=name, **tolerance)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_it_is_adamw_where_every_row_has_a_gradient(weight_decay):
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    lazy, whole = Scorer(sparse=True).double(), Scorer(sparse=False).double()
    run(lazy, LazyAdamW(lazy.parameters(), **settings), 30, every)
    run(whole, torch.optim.AdamW(whole.parameters(), **settings), 30, every)
    assert_equal_weights(lazy, whole, rtol=1e-10, atol=1e-12)


def test_rows_move_as_in_sparse_adam():
    lazy, other = Scorer(sparse=True).double(), Scorer(sparse=True).double()
    for model in (lazy, other):
        model.layer.requires_grad_(requires_grad=False)
    # torch's adds eps before the bias correction, so it has to be negligible here.
    run(lazy, LazyAdamW([lazy.table.weight], lr=0.05, eps=1e-15), 60, some)
    run(other, torch.optim.SparseAdam([other.table.weight], lr=0.05, eps=1e-15), 60, some)
    assert_equal_weights(lazy, other, rtol=1e-10, atol=1e-12)


def test_dense_gradients_get_the_bits_of_adamw():
    settings = {"lr": 0.02, "weight_decay": 0.1}
    lazy, whole = Scorer(sparse=False), Scorer(sparse=False)
    run(lazy, LazyAdamW(lazy.parameters(), **settings), 10, some)
    run(whole, torch.optim.AdamW(whole.parameters(), **settings), 10, some)
    assert_equal_weights(lazy, whole, rtol=0, atol=0)


def test_rows_without_a_gradient_and_their_state_stay_as_they_are():
    model = Scorer(sparse=True)
    optimizer = LazyAdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    run(model, optimizer, 2, every)
    before = model.table.weight.detach().clone()
    state = {n: x.clone() for n, x in optimizer.state[model.table.weight].items()}
    run(model, optimizer, 3, lambda _: torch.tensor([7, 7, 3]))
    touched = (model.table.weight != before).any(dim=1).nonzero().flatten()
    assert touched.tolist() == [3, 7]
    for name in ("exp_avg", "exp_avg_sq"):
        moved = (optimizer.state[model.table.weight][name] != state[name]).any(dim=1)
        assert moved.nonzero().flatten().tolist() == [3, 7]


def test_decay_shrinks_touched_rows_once_a_step():
    table = nn.Embedding(4, 2, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = LazyAdamW(table.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (0 * table(torch.tensor([1, 1, 2]))).sum().backward()
        optimizer.step()
    expected = torch.tensor([1.0, 0.95**3, 0.95**3, 1.0])
    torch.testing.assert_close(table.weight.detach(), expected[:, None].expand(-1, 2))


def test_a_step_allocates_nothing_as_long_as_the_table():
    table = nn.Embedding(2_000_000, 4, sparse=True)
    optimizer = LazyAdamW(table.parameters(), weight_decay=0.1)

    def step():
        optimizer.zero_grad()
        table(torch.tensor([5, 1_999_999, 5])).square().sum().backward()
        optimizer.step()

    step()  # makes the state
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 100_000, "the table has 32 MB"


@pytest.mark.parametrize("sparse", [True, False])
def test_training_goes_on_from_a_saved_state_bit_for_bit(sparse, tmp_path):
    whole, halved = Scorer(sparse), Scorer(sparse)
    run(whole, LazyAdamW(whole.parameters(), lr=0.1, weight_decay=0.1), 8, some)
    first = LazyAdamW(halved.parameters(), lr=0.1, weight_decay=0.1)
    run(halved, first, 5, some)
    torch.save({"model": halved.state_dict(), "optimizer": first.state_dict()}, tmp_path / "c")
    saved = torch.load(tmp_path / "c", weights_only=True)
    resumed = Scorer(sparse)
    resumed.load_state_dict(saved["model"])
    second = LazyAdamW(resumed.parameters(), lr=7.0)
    second.load_state_dict(saved["optimizer"])
    run(resumed, second, 3, lambda step: (torch.manual_seed(105 + step), some(step))[1])
    assert_equal_weights(resumed, whole, rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", ["norm", "value", None])
@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_clipping_equals_that_of_dense_gradients(algorithm, limit):
    rows = torch.tensor([3, 8, 3, 1, 8, 8])
    sparse, dense = Scorer(sparse=True), Scorer(sparse=False)
    for model in (sparse, dense):
        model(rows).backward()
    clip_sparse(sparse.parameters(), limit, algorithm)
    if algorithm == "value":
        nn.utils.clip_grad_value_(dense.parameters(), limit)
    else:
        nn.utils.clip_grad_norm_(dense.parameters(), limit)
    assert sparse.table.weight.grad.is_sparse
    for a, b in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a.grad.to_dense(), b.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "argument", [{"lr": -0.1}, {"eps": -1.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}]
)
def test_values_out_of_range_are_refused_by_name(argument):
    with pytest.raises(ConfigError, match=next(iter(argument))):
        LazyAdamW(nn.Linear(1, 1).parameters(), **argument)
