"""Dense float64 item graphs, written from the equations of LATTICE and MICRO."""

import numpy as np
import torch

from llmrec_pl.data.features import Feature, FeatureStore

INDEX = np.array([0, 1, 2, 3, -1, 4, 5, 6, 7], dtype=np.int64)
"""Item 4 lacks the feature."""


def modalities(count):
    """Return one to three modalities with odd names; all lack item 4, one repeats no row."""
    random = np.random.default_rng(8)
    names = ("Ton (2.1)", "a", "type")[:count]
    values = [random.normal(size=(8, 3 + m)).astype(np.float32) for m in range(count)]
    return FeatureStore(
        {n: Feature(n, "item", "modality", v, INDEX) for n, v in zip(names, values, strict=True)}
    )


def raw_rows(feature):
    return torch.tensor(feature.dense(), dtype=torch.float64)


def dense_graph(x, k):
    """Return ``D^-1/2 S D^-1/2`` of the k nearest by cosine, itself among them."""
    n = len(x)
    norm = [x[i].norm() for i in range(n)]
    adjacency = [[x.new_zeros(()) for _ in range(n)] for _ in range(n)]
    for i in range(n):
        if norm[i] == 0:
            continue
        cosine = {j: x[i] @ x[j] / (norm[i] * norm[j]) for j in range(n) if norm[j] > 0}
        ordered = sorted(cosine, key=lambda j: (j != i, -float(cosine[j].detach()), j))
        for j in ordered[:k]:
            if float(cosine[j].detach()) > 0:
                adjacency[i][j] = cosine[j]
    s = torch.stack([torch.stack(row) for row in adjacency])
    degree = s.sum(1)
    scale = torch.stack([d**-0.5 if d > 0 else d for d in degree])
    return scale[:, None] * s * scale[None, :]


def mixed_graph(feature, weight, bias, k, original_weight):
    """Return A of one modality; the constant part has the float32 weights that are stored."""
    raw = raw_rows(feature)
    known = (raw.norm(dim=1, keepdim=True) > 0).double()
    constant = dense_graph(raw, k).float().double()
    if weight is None:
        return constant
    learned = dense_graph((raw @ weight.T + bias) * known, k)
    return original_weight * constant + (1 - original_weight) * learned


def dense_lightgcn(dataset, user, item, n_layers):
    r = torch.tensor(dataset.train.toarray(), dtype=torch.float64)
    rows, columns = r.sum(1).clamp(min=1), r.sum(0).clamp(min=1)
    normal = (r / (rows[:, None] * columns[None, :]).sqrt()).float().double()
    users, items = [user], [item]
    for _ in range(n_layers):
        user, item = normal @ items[-1], normal.T @ users[-1]
        users.append(user)
        items.append(item)
    return sum(users) / len(users), sum(items) / len(items)


def unit(x):
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
