"""Who answers a task: a server, heuristics in this process, or local embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.config import IN_PROCESS_EMBEDDERS

if TYPE_CHECKING:
    from augment.config import AugmentConfig
    from augment.specs import Kind
    from augment.wire import Answerer
    from llmrec_pl.data.dataset import InteractionDataset


def model_of(kind: Kind, config: AugmentConfig) -> str:
    """Return the model that a task asks."""
    usual = config.provider.embed_model if kind == "embed" else config.provider.chat_model
    return str(getattr(config.tasks, kind).model or usual)


def in_process(kind: Kind, config: AugmentConfig) -> bool:
    """Return whether a task needs no server."""
    if kind == "embed":
        return model_of(kind, config) in IN_PROCESS_EMBEDDERS
    return config.provider.name == "heuristic"


def provider_label(kind: Kind, config: AugmentConfig) -> str:
    """Return who answers, as it stands in keys, manifest and tables."""
    return "in-process" if kind == "embed" and in_process(kind, config) else config.provider.label


def is_free(kind: Kind, config: AugmentConfig) -> bool:
    """Return whether a task costs no money."""
    return in_process(kind, config) or config.provider.free


def answerer_for(kind: Kind, config: AugmentConfig, dataset: InteractionDataset) -> Answerer:
    """Return who answers a task.

    Raises:
        ConfigError: a key, an address or a package is missing.
    """
    if in_process(kind, config):
        if kind == "embed":
            from augment.local_embeddings import LocalEmbeddings

            return LocalEmbeddings(model_of(kind, config))
        from augment.heuristic import HeuristicAnswerer

        return HeuristicAnswerer(dataset, config.domain)
    from augment.client import http_answerer

    return http_answerer(config.provider)
