"""Who answers, under which label, and what is said where nobody can."""

import subprocess
import sys

import numpy as np
import pytest
from canonical_folder import write_folder

from augment.config import build_config
from augment.heuristic import HeuristicAnswerer
from augment.local_embeddings import LocalEmbeddings
from augment.providers import answerer_for, in_process, is_free, model_of, provider_label
from augment.specs import KINDS
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import ConfigError, DatasetError


@pytest.fixture
def dataset(tmp_path):
    return InteractionDataset.load(write_folder(tmp_path / "tiny"))


def config_of(provider, **tasks):
    folders = {"dataset": "data", "store": "store", "out": "out"}
    return build_config({**folders, "provider": provider, "tasks": tasks})


def test_without_an_llm_all_tasks_are_answered_here_for_nothing(dataset):
    config = config_of("heuristic")
    for kind in KINDS:
        assert in_process(kind, config)
        assert is_free(kind, config)
        made = answerer_for(kind, config, dataset)
        assert isinstance(made, LocalEmbeddings if kind == "embed" else HeuristicAnswerer)
        label = "local-hashing-256@v1" if kind == "embed" else "heuristic@v1"
        assert provider_label(kind, config) == label


def test_embeddings_here_go_with_an_llm_elsewhere(dataset):
    config = config_of({"name": "openai", "embed_model": "hashing-256"})
    assert not is_free("pairs", config)
    assert is_free("embed", config)
    assert provider_label("pairs", config) == "openai"
    assert isinstance(answerer_for("embed", config, dataset), LocalEmbeddings)


def test_a_task_may_name_its_own_model():
    config = config_of({"name": "local", "chat_model": "big"}, pairs={"model": "small"}, embed=None)
    assert model_of("pairs", config) == "small"
    assert model_of("profiles", config) == "big"
    assert model_of("embed", config) == "minilm"
    assert is_free("pairs", config)
    assert provider_label("pairs", config) == "local"


def test_a_missing_key_is_named_by_its_variable(dataset, monkeypatch):
    monkeypatch.delenv("SOME_KEY_OF_MINE", raising=False)
    config = config_of({"name": "openai", "key_env": "SOME_KEY_OF_MINE"})
    with pytest.raises(ConfigError, match="SOME_KEY_OF_MINE"):
        answerer_for("pairs", config, dataset)


def test_a_server_without_a_key_can_be_made(dataset):
    from augment.client import HttpAnswerer

    assert isinstance(answerer_for("pairs", config_of("local"), dataset), HttpAnswerer)


def test_without_the_openai_package_the_remedy_is_named(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "augment.client", None)  # what Python does on a failed import
    with pytest.raises(ConfigError, match="openai"):
        answerer_for("pairs", config_of("local"), dataset)


@pytest.mark.parametrize(
    ("kind", "provider", "tasks", "says"),
    [
        ("pairs", {"name": "heuristic", "chat_model": "gpt-4o-mini"}, {}, "counts, minilm"),
        ("profiles", "heuristic", {"profiles": {"model": "llama"}}, "llama"),
        ("embed", {"name": "heuristic", "embed_model": "text-embedding-3-small"}, {}, "hashing"),
        ("embed", "heuristic", {"embed": {"dimensions": 300}}, "300"),
    ],
)
def test_models_that_are_not_here(kind, provider, tasks, says, dataset):
    with pytest.raises(ConfigError, match=says):
        answerer_for(kind, config_of(provider, **tasks), dataset)


def test_pairs_need_texts_to_compare():
    bare = InteractionDataset.from_edges("bare", 2, 3, np.array([[0, 1], [0, 1]]))
    with pytest.raises(DatasetError, match="'bare' has no text"):
        answerer_for("pairs", config_of("heuristic"), bare)
    assert answerer_for("profiles", config_of("heuristic"), bare)


def test_heuristics_load_neither_torch_nor_openai(dataset):
    code = (
        "import sys, asyncio, json\n"
        "from augment.config import build_config\n"
        "from augment.providers import answerer_for\n"
        "from augment.wire import Call\n"
        "from llmrec_pl.data.dataset import InteractionDataset\n"
        "config = build_config({'dataset': 'd', 'store': 's', 'out': 'o'})\n"
        "data = InteractionDataset.load(sys.argv[1])\n"
        "asked = {'task': 'pairs', 'user': 'u1', 'history': ['m1'], 'candidates': ['m2', 'm5']}\n"
        "message = {'role': 'user', 'content': json.dumps(asked)}\n"
        "call = Call('chat.completions', {'model': 'counts', 'messages': [message]}, (b'',))\n"
        "answerer = answerer_for('pairs', config, data)\n"
        "assert asyncio.run(answerer.send(call, list)).status == 200\n"
        "answerer_for('embed', config, data)\n"
        "assert not {'openai', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    run = [sys.executable, "-c", code, str(dataset.root)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
