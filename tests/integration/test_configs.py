"""Every shipped YAML is a test."""

from pathlib import Path

import pytest
import yaml

import llmrec_pl.training
from llmrec_pl.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
FAST = ("--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu")


def fit(small_data, *configs, augmented=True, more=()):
    arguments = [x for c in configs for x in ("--config", str(c))]
    if augmented:
        arguments += ["--data.augmentation", str(small_data.parent / "augmentation")]
    return llmrec_pl.training.run(["fit", *arguments, "--data.root", str(small_data), *FAST, *more])


@pytest.mark.parametrize("augmented", [True, False], ids=["augmented", "plain"])
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_complete_configs_run_alone(small_data, path, augmented):
    cli = fit(small_data, path, augmented=augmented)
    assert cli.trainer.global_step == 2
    rate = cli.datamodule.effective_llm_edge_rate
    assert rate == (cli.datamodule.llm_edge_rate if augmented else 0)


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_model_overlays_run(small_data, path):
    cli = fit(small_data, CONFIGS / "ml-100k.yaml", path)
    section = yaml.safe_load(path.read_text())["model"]
    assert type(cli.model).__name__ == section["class_path"].rpartition(".")[2]
    wanted = {k: v for k, v in section["init_args"].items() if not k.endswith("optimizer")}
    assert cli.model.init_arguments() == wanted


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "ablations").glob("*.yaml")), ids=lambda p: p.stem
)
def test_ablations_run_and_change_at_most_three_keys(small_data, path):
    def leaves(node):
        return sum(map(leaves, node.values())) if isinstance(node, dict) else 1

    assert leaves(yaml.safe_load(path.read_text())) <= 3
    fit(small_data, CONFIGS / "ml-100k.yaml", path)


def effect(small_data, name):
    path = CONFIGS / "ablations" / f"{name}.yaml"
    cli = fit(small_data, CONFIGS / "ml-100k.yaml", path)
    return cli.model, cli.datamodule


def test_what_each_ablation_removes(small_data):
    model, data = effect(small_data, "no_llm_edges")
    assert data.effective_llm_edge_rate == 0
    assert model.groups["profile"]
    assert model.groups["attribute"]
    model, data = effect(small_data, "no_profile")
    assert data.effective_llm_edge_rate > 0
    assert not model.groups["profile"]
    assert model.groups["attribute"]
    model, _ = effect(small_data, "no_side_information")
    assert not model.groups["profile"] + model.groups["attribute"]
    assert model.groups["modality"], "given features stay"
    model, _ = effect(small_data, "no_pruning")
    assert model.prune_rate == 0
    assert model.decoder
    model, _ = effect(small_data, "no_quality_control")
    assert model.prune_rate == 0
    assert not model.decoder
    assert not model.mask


def test_table_3_is_complete():
    assert {p.stem for p in (CONFIGS / "ablations").glob("*.yaml")} >= {
        "no_llm_edges",
        "no_profile",
        "no_side_information",
        "no_pruning",
        "no_quality_control",
    }


@pytest.mark.parametrize(("precision", "is_scaled"), [("bf16", False), ("fp16_cpu", True)])
def test_mixed_precision_trains(small_data, precision, is_scaled):
    overlay = CONFIGS / f"precision/{precision}.yaml"
    cli = fit(small_data, CONFIGS / "ml-100k.yaml", overlay)
    assert all(p.isfinite().all() for p in cli.model.parameters())
    assert (cli.trainer.precision_plugin.scaler is not None) is is_scaled


def test_clipping_in_mixed_precision_names_the_fused_optimizer(small_data):
    more = ("--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1.0")
    with pytest.raises(ConfigError, match=r"fused=false"):
        fit(small_data, CONFIGS / "ml-100k.yaml", more=more)
    more += ("--model.init_args.optimizer.init_args.fused", "false")
    fit(small_data, CONFIGS / "ml-100k.yaml", more=more)


def test_a_missing_config_is_named(small_data):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        fit(small_data, "configs/nowhere.yaml")
