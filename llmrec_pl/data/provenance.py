"""What a checkpoint says of the data it was trained on, and the comparison with data at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.features import FeatureStore


def data_record(dataset: InteractionDataset, features: FeatureStore) -> dict[str, Any]:
    """Return plain values that tell data apart: what goes into parameters and graph."""
    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "features": {name: [f.dim, f.sha256] for name, f in features.items()},
        "llm_edges_in_graph": dataset.extra_edges is not None,
    }


def check_same_data(
    record: Mapping[str, Any], dataset: InteractionDataset, features: FeatureStore
) -> None:
    """Refuse data other than those a checkpoint was trained on.

    Features that were added since are no harm: a caller leaves them out by the record's names.

    Args:
        record: what `data_record` gave when the checkpoint was written.
        dataset: the data set at hand.
        features: the features at hand.

    Raises:
        CheckpointMismatchError: naming what the checkpoint has and what is given.
    """
    found = data_record(dataset, features)
    if record["fingerprint"] != found["fingerprint"]:
        where = "" if dataset.root is None else f" in {str(dataset.root)!r}"
        raise CheckpointMismatchError(
            f"the checkpoint was trained on data set {record['dataset']!r} with fingerprint "
            f"{record['fingerprint']}, but {dataset.name!r}{where} has fingerprint "
            f"{found['fingerprint']}; give `--data.root` the data it was trained on, or train anew."
        )
    other = [n for n, v in record["features"].items() if found["features"].get(n) != v]
    if other:
        raise CheckpointMismatchError(
            f"the checkpoint was trained with features {other} that the data no longer have, or "
            "have in another form; make them again as they were, or train anew."
        )
    if record["llm_edges_in_graph"] != found["llm_edges_in_graph"]:
        raise CheckpointMismatchError(
            "the checkpoint was trained with `data.llm_edges_in_graph` = "
            f"{record['llm_edges_in_graph']}, now it is {found['llm_edges_in_graph']}; use the "
            "config.yaml of its run."
        )
