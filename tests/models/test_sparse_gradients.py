"""Sparse gradients of MF and VBPR: equal to the dense ones, and refused where they cannot be."""

import pytest
import torch
from torch import nn

from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.lightgcn import LightGCN
from llmrec_pl.models.mf import MF
from llmrec_pl.models.vbpr import VBPR
from llmrec_pl.optimizers import LazyAdamW, check_gradients


def mf(dataset, features, **arguments):
    return built(MF(embedding_dim=4, l2_weight=0.1, **arguments), dataset, features)


def vbpr(dataset, features, **arguments):
    return built(VBPR(embedding_dim=4, projection_dim=3, **arguments), dataset, features)


def built(model, dataset, features):
    model.build_seeded(dataset, features, seed=2)
    return model


@pytest.mark.parametrize("make", [mf, vbpr])
def test_sparse_gradients_are_the_dense_ones(make, toy_dataset, toy_features, toy_batch):
    found, expected = (
        make(toy_dataset, toy_features, sparse_gradients=s).double() for s in (True, False)
    )
    for model in (found, expected):
        sum(model.losses(toy_batch).values()).backward()
    tables = {f"{n}.weight" for n, m in found.named_modules() if isinstance(m, nn.Embedding)}
    assert {n for n, p in found.named_parameters() if p.grad.is_sparse} == tables
    assert not any(p.grad.is_sparse for p in expected.parameters())
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad.to_dense(), b.grad, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("options", [{"loss": "sampled_softmax"}, {"similarity": "cosine"}])
def test_other_losses_of_mf_stay_sparse(options, toy_dataset, toy_features, toy_batch):
    model = mf(toy_dataset, toy_features, sparse_gradients=True, **options)
    sum(model.losses(toy_batch).values()).backward()
    assert all(p.grad.is_sparse for p in model.parameters())


def lazily(model, **settings):
    model.optimizer = lambda parameters: LazyAdamW(parameters, **settings)
    return model


def test_a_model_with_sparse_gradients_takes_optimizers_that_do(toy_dataset, toy_features):
    model = mf(toy_dataset, toy_features, sparse_gradients=True)
    for optimizer in (LazyAdamW, torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad):
        model.optimizer = optimizer
        assert type(model.configure_optimizers()) is optimizer


def test_sparse_adam_is_refused_where_a_model_has_more_than_tables(toy_dataset, toy_features):
    model = VBPR(sparse_gradients=True)
    model.build_seeded(toy_dataset, toy_features, seed=0)
    model.optimizer = torch.optim.SparseAdam
    with pytest.raises(ConfigError, match=r"SparseAdam cannot train VBPR.*LazyAdamW"):
        model.configure_optimizers()


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW,
        lambda p: torch.optim.SGD(p, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, weight_decay=0.1),
    ],
    ids=["AdamW", "SGD", "Adagrad"],
)
def test_an_optimizer_that_needs_dense_gradients_is_refused(optimizer, toy_dataset, toy_features):
    model = mf(toy_dataset, toy_features, sparse_gradients=True)
    model.optimizer = optimizer
    with pytest.raises(ConfigError, match=r"sparse_gradients.*MF.*LazyAdamW"):
        model.configure_optimizers()


def test_a_lazy_optimizer_for_dense_gradients_is_refused(toy_dataset, toy_features):
    with pytest.raises(ConfigError, match=r"MF are dense.*sparse_gradients` to true"):
        lazily(mf(toy_dataset, toy_features)).configure_optimizers()
    graph = built(LightGCN(embedding_dim=4), toy_dataset, FeatureStore())
    with pytest.raises(ConfigError, match=r"LightGCN are dense.*whole tables.*torch.optim.AdamW"):
        lazily(graph).configure_optimizers()


def test_a_model_that_reads_whole_tables_cannot_have_sparse_gradients(toy_dataset):
    model = LightGCN(embedding_dim=4)
    model.sparse_gradients = True
    built(model, toy_dataset, FeatureStore())
    with pytest.raises(ConfigError, match=r"LightGCN: it reads its whole tables"):
        lazily(model).configure_optimizers()


def test_processes_joined_by_nccl_cannot_have_sparse_gradients(toy_dataset, toy_features):
    model = mf(toy_dataset, toy_features, sparse_gradients=True)
    optimizer = LazyAdamW(model.parameters())
    check_gradients(model, optimizer, "gloo")
    with pytest.raises(ConfigError, match="NCCL"):
        check_gradients(model, optimizer, "nccl")


def test_weights_do_not_depend_on_the_kind_of_gradient(toy_dataset, toy_features):
    pair = [mf(toy_dataset, toy_features, sparse_gradients=s) for s in (True, False)]
    assert pair[0].fingerprint() == pair[1].fingerprint()
