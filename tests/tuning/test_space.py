"""Search spaces, the values a config has now, and the overlay a choice makes."""

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from llmrec_pl.configs import merged
from llmrec_pl.errors import ConfigError
from llmrec_pl.tuning.space import current_values, overlay, read_space, with_values

LR = "model.init_args.optimizer.init_args.lr"


def written(folder, content, name="x.yaml"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_ranges_and_choices(tmp_path):
    space = read_space(
        written(
            tmp_path,
            "a.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
            "a.layers: {low: 1, high: 4}\na.kind: [x, null, 2]\n",
        )
    )
    assert space == {
        "a.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "a.layers": IntDistribution(1, 4),
        "a.kind": CategoricalDistribution(["x", None, 2]),
    }


@pytest.mark.parametrize(
    "entry",
    ["3", "[]", "[[1], 2]", "{low: 1}", "{low: 2, high: 1}", "{low: 1, high: 2, lgo: true}"],
)
def test_a_bad_entry_is_named_with_the_remedy(tmp_path, entry):
    with pytest.raises(ConfigError, match=r"`a\.lr`.*choices such as"):
        read_space(written(tmp_path, f"a.lr: {entry}\n"))


def test_a_number_that_yaml_reads_as_text_is_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"1\.0e-4, not 1e-4"):
        read_space(written(tmp_path, "a.lr: {low: 1e-4, high: 1e-2}\n"))


def test_an_empty_space_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is empty; it maps config keys"):
        read_space(written(tmp_path, {}))


def test_configs_merge_as_the_command_line_merges_them(tmp_path):
    first = written(tmp_path, {"model": {"a": 1, "b": {"c": 2}}, "list": [1, 2]}, "1.yaml")
    second = written(tmp_path, {"model": {"b": {"d": 3}}, "list": [3]}, "2.yaml")
    assert merged([first, second]) == {"model": {"a": 1, "b": {"c": 2, "d": 3}}, "list": [3]}


@pytest.mark.parametrize(
    ("value", "possible"), [(1e-3, True), (1.0, False), (None, False), ("x", False)]
)
def test_current_values_must_fit_the_space(value, possible):
    tree = {"model": {"init_args": {"optimizer": {"init_args": {"lr": value}}}}}
    found = current_values(tree, {LR: FloatDistribution(1e-4, 1e-2, log=True)})
    assert found == ({LR: value} if possible else None)


def test_an_overlay_repeats_a_plain_mapping_but_no_class():
    tree = {
        "model": {
            "init_args": {
                "feature_weight": {"modality": 0.02, "profile": 2.8},
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1, "b": 2}},
            }
        },
        "data": {"batch_size": 10},
    }
    values = {
        "model.init_args.feature_weight.modality": 0.123456,
        LR: 0.00123456,
        "data.batch_size": 512,
    }
    assert overlay(tree, values) == {
        "model": {
            "init_args": {
                "feature_weight": {"modality": 0.123, "profile": 2.8},
                "optimizer": {"init_args": {"lr": 0.00123}},
            }
        },
        "data": {"batch_size": 512},
    }
    assert tree["model"]["init_args"]["feature_weight"]["modality"] == 0.02


MODEL_YAML = """\
# A model.
model:
  class_path: some.Model
  init_args:
    n_layers: 2  # of the graph
    feature_weight: {modality: 0.02, profile: 2.8}
    lr: 7
    optimizer:
      # Coupled decay.
      class_path: torch.optim.Adam
      init_args:
        lr: 3.0e-3
        weight_decay: 0.0
data:
  sampling: edge
"""


def test_chosen_values_go_into_a_config_and_nothing_else_changes():
    changes = {
        "model": {
            "init_args": {
                "n_layers": 3,
                "feature_weight": {"modality": 0.5, "profile": 2.8},
                "optimizer": {"init_args": {"lr": 0.00123}},
            }
        }
    }
    found = with_values(MODEL_YAML, changes)
    lines = MODEL_YAML.splitlines()
    changed = [i for i, line in enumerate(found.splitlines()) if line != lines[i]]
    assert [found.splitlines()[i].strip() for i in changed] == [
        "n_layers: 3  # of the graph",
        "feature_weight: {modality: 0.5, profile: 2.8}",
        "lr: 0.00123",
    ]
    assert yaml.safe_load(found)["model"]["init_args"]["lr"] == 7
    assert len(found.splitlines()) == len(lines)


def test_a_value_without_a_line_is_an_error():
    with pytest.raises(ConfigError, match="n_item_layers"):
        with_values(MODEL_YAML, {"model": {"init_args": {"n_item_layers": 1}}})
