"""Item modalities of the toy graph, with names and holes of all kinds."""

import numpy as np

from llmrec_pl.data.features import Feature, FeatureStore

N_ITEMS = 9
REPEATED = np.array([0, 1, 1, 0, 2, -1, 2, 0, -1], dtype=np.int64)


def odd_modalities(n):
    """Return n of three; the second has repeated and unknown rows, the third unknown ones."""
    random = np.random.default_rng(9)
    holes = np.array([0, 1, 2, -1, 4, 5, 6, 7, -1], dtype=np.int64)
    shapes = {
        "text, shortened": ((N_ITEMS, 6), None),
        "CLIP-ViT B/32": ((3, 5), REPEATED),
        "3d-shape": ((N_ITEMS, 2), holes),
    }
    return FeatureStore(
        {
            name: Feature(name, "item", "modality", random.normal(size=shape).astype("f4"), index)
            for name, (shape, index) in list(shapes.items())[:n]
        }
    )
