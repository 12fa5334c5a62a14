"""What the derivations of several models share: the plain losses, and the comparison with ours."""

import torch


def copies(model):
    """Return copies of the parameters by name, which collect the derivation's gradients."""
    return {n: x.detach().clone().requires_grad_() for n, x in model.named_parameters()}


def mean_bpr(user, item, batch):
    x = [
        user[u] @ item[i] - user[u] @ item[j]
        for u, i, j in zip(batch["user"], batch["pos_item"], batch["neg_item"], strict=True)
    ]
    return sum(torch.log(1 + torch.exp(-v)) for v in x) / len(x)


def ego_l2(user, item, batch):
    u, i, j = batch["user"], batch["pos_item"], batch["neg_item"]
    return ((user[u] ** 2).sum() + (item[i] ** 2).sum() + (item[j] ** 2).sum()) / (2 * len(u))


def assert_terms_and_gradients(model, batch, expected, parameters, atol=1e-12):
    """Hold each loss term, and the gradients of their sum, against a derivation."""
    found = model.losses(batch)
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, rtol=1e-9, atol=1e-12, msg=name)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for name, parameter in model.named_parameters():
        wanted = parameters[name].grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-8, atol=atol, msg=name)
