"""Table 6: an augmentation reaches every multimodal model by a config overlay alone."""

from pathlib import Path

import pytest
import yaml

import llmrec_pl.training
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import CheckpointMismatchError, ConfigError
from tests.contract.test_models import MODELS, arguments_of

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAY = CONFIGS / "augmented" / "llm_features.yaml"
LLM = {"item_director", "item_country", "user_profile_mean"}


def needs_a_modality(model_class):
    dataset = InteractionDataset.from_edges("one", 2, 2, [[0, 1], [0, 1]])
    try:
        model_class(**arguments_of(model_class)).build_seeded(dataset, FeatureStore(), seed=0)
    except ConfigError as error:
        return "item modality" in str(error)
    return False


MULTIMODAL = [c.__module__.rpartition(".")[2] for c in MODELS if needs_a_modality(c)]


def run(small_data, subcommand, *configs, more=()):
    arguments = [x for c in configs for x in ("--config", str(c))]
    more = ["--data.root", str(small_data), "--trainer.accelerator", "cpu", *map(str, more)]
    return llmrec_pl.training.run([subcommand, *arguments, *more])


def fit(small_data, model, *configs, more=()):
    model = CONFIGS / "models" / f"{model}.yaml"
    more = ["--data.augmentation", small_data.parent / "augmentation", *more]
    return run(small_data, "fit", CONFIGS / "ml-100k.yaml", model, *configs, more=more)


def held(model):
    return sum(t.numel() for t in [*model.parameters(), *model.buffers()])


def test_the_known_multimodal_models_are_found():
    assert {"lattice", "micro"} <= set(MULTIMODAL)


@pytest.mark.parametrize("model", MULTIMODAL)
def test_every_multimodal_model_reads_the_llms_features(small_data, model):
    fast = ("--trainer.fast_dev_run", 2)
    plain = fit(small_data, model, more=fast)
    augmented = fit(small_data, model, OVERLAY, more=fast)
    modalities = {f.name for f in augmented.datamodule.features.group("modality", side="item")}
    assert modalities == {"text"} | LLM
    assert augmented.datamodule.effective_llm_edge_rate == 0.1
    assert held(augmented.model) > held(plain.model), "the new features or their parameters"


def test_without_an_augmentation_it_says_that_there_is_nothing_to_add(small_data):
    configs = [CONFIGS / "ml-100k.yaml", CONFIGS / "models" / "lattice.yaml", OVERLAY]
    with pytest.raises(ConfigError, match="nothing to add"):
        run(small_data, "fit", *configs, more=("--trainer.fast_dev_run", 2))
    more = ("--trainer.fast_dev_run", 2, "--data.llm_parts", "[edges]")
    with pytest.raises(ConfigError, match="nothing to add"):
        fit(small_data, "lattice", OVERLAY, more=more)


def test_a_checkpoint_is_evaluated_with_the_same_modalities(small_data, tmp_path):
    more = ("--trainer.max_epochs", 1, "--trainer.default_root_dir", tmp_path)
    cli = fit(small_data, "lattice", OVERLAY, more=more)
    best = Path(cli.trainer.checkpoint_callback.best_model_path)
    config = best.parents[1] / "config.yaml"
    assert yaml.safe_load(config.read_text())["data"]["llm_features_as_modalities"] is True
    again = run(small_data, "validate", config, more=("--ckpt_path", best))
    assert {"text"} | LLM == set(again.datamodule.features)
    more = ("--ckpt_path", best, "--data.llm_features_as_modalities", "false")
    with pytest.raises(CheckpointMismatchError, match="llm_features_as_modalities"):
        run(small_data, "validate", config, more=more)
