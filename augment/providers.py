"""Who answers a task: a server, heuristics in this process, or local embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.config import IN_PROCESS_EMBEDDERS
from llmrec_pl.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from augment.config import AugmentConfig
    from augment.specs import Kind
    from augment.wire import Answerer
    from llmrec_pl.data.dataset import InteractionDataset


def model_of(kind: Kind, config: AugmentConfig) -> str:
    """Return the model that a task asks."""
    usual = config.provider.embed_model if kind == "embed" else config.provider.chat_model
    task = getattr(config.tasks, kind)
    return str((task.model if task is not None else "") or usual)


def in_process(kind: Kind, config: AugmentConfig) -> bool:
    """Return whether a task needs no server."""
    if kind == "embed":
        return model_of(kind, config) in IN_PROCESS_EMBEDDERS
    return config.provider.name == "heuristic"


def provider_label(kind: Kind, config: AugmentConfig) -> str:
    """Return who answers, as it stands in keys, manifest and tables.

    What runs in this process carries the version of its rules or the hash of its weights: other
    rules give other answers to the same question.
    """
    if not in_process(kind, config):
        return config.provider.label
    if kind == "embed":
        from augment.local_embeddings import identity

        return identity(model_of(kind, config))
    from augment.heuristic import VERSION

    return f"{config.provider.label}@v{VERSION}"


def is_free(kind: Kind, config: AugmentConfig) -> bool:
    """Return whether a task costs no money."""
    return in_process(kind, config) or config.provider.free


def answerer_for(kind: Kind, config: AugmentConfig, dataset: InteractionDataset) -> Answerer:
    """Return who answers a task.

    Raises:
        ConfigError: a key, an address or a package is missing, or the provider has no such model.
        DatasetError: items are to be compared by their texts and have none.
    """
    if not in_process(kind, config):
        return _server(kind, config)
    if kind == "embed":
        from augment.local_embeddings import LocalEmbeddings

        task = config.tasks.embed
        return LocalEmbeddings(model_of(kind, config), None if task is None else task.dimensions)
    return _heuristic(kind, config, dataset)


def _heuristic(kind: Kind, config: AugmentConfig, dataset: InteractionDataset) -> Answerer:
    from augment.heuristic import MODELS, HeuristicAnswerer

    model = model_of(kind, config)
    if model not in MODELS:
        raise ConfigError(
            f"provider 'heuristic' has no model {model!r} for task {kind!r}; it has "
            f"{', '.join(MODELS)}. Say `--provider openai` or `--provider local` for an LLM."
        )
    answerer = HeuristicAnswerer(dataset, config.domain)
    if kind == "pairs" and not answerer.has_text:
        raise DatasetError(
            f"data set {dataset.name!r} has no text column, by which 'heuristic' could compare "
            "items. Run `prepare` with `--items FILE`, or leave the task out: `--set "
            "tasks.pairs=null`."
        )
    if kind == "pairs" and model == "minilm":
        from augment.local_embeddings import minilm_encoder

        minilm_encoder()  # what is missing is said before anything is sent
    return answerer


def _server(kind: Kind, config: AugmentConfig) -> Answerer:
    if config.provider.name == "heuristic":
        raise ConfigError(
            f"provider 'heuristic' has no model {model_of(kind, config)!r} for task {kind!r}; "
            f"{' and '.join(IN_PROCESS_EMBEDDERS)} run in this process. Choose one with "
            "`--embed-model`, or another `--provider`."
        )
    try:
        from augment.client import HttpAnswerer
    except ImportError as error:
        raise ConfigError(
            f"provider {config.provider.name!r} needs the package `openai` ({error}); install it "
            "with `pip install 'openai>=3,<4'`, or run without an LLM: `--provider heuristic`."
        ) from error
    from augment.redact import read_key

    name = config.provider.key_env
    return HttpAnswerer(config.provider, key=read_key(name) if name else None)
