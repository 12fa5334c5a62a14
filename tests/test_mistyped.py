from __future__ import annotations

import pytest
import yaml

from llmrec_pl.mistyped import explained

MF = "llmrec_pl.models.mf.MF"
KNOWN = {"config", "seed_everything", "trainer.logger", "trainer.max_epochs", "model"}
KNOWN |= {"trainer.callbacks", "data.root", "data.batch_size", "data.augmentation"}


@pytest.fixture
def explain(tmp_path):
    """Write trees as config files, and explain a failure of `fit` with them."""

    def run(*parts, message="the parser's words"):
        arguments = ["fit"]
        for number, part in enumerate(parts):
            if isinstance(part, dict):
                path = tmp_path / f"{number}.yaml"
                path.write_text(yaml.safe_dump(part))
                arguments += ["--config", str(path)]
            else:
                arguments.append(part)
        return str(explained(arguments, KNOWN, message))

    return run


@pytest.mark.parametrize(
    ("part", "key", "meant"),
    [
        ({"data": {"batchsize": 5}}, "data.batchsize", "data.batch_size"),
        ({"datta": {"root": "x"}}, "datta", "data"),
        ({"batch_size": 5}, "batch_size", "data.batch_size"),
        ({"embedding_dim": 5}, "embedding_dim", "model.init_args.embedding_dim"),
        (
            {"model": {"init_args": {"embeding_dim": 5}}},
            "model.init_args.embeding_dim",
            "model.init_args.embedding_dim",
        ),
        ({"model": {"embeding_dim": 5}}, "model.embeding_dim", "model.embedding_dim"),
        (
            {"model": {"init_args": {"optimizer": {"init_args": {"learning": 1}}}}},
            "model.init_args.optimizer.init_args.learning",
            None,
        ),
        (
            {"trainer": {"callbacks": [{"class_path": MF, "init_args": {"los": 1}}]}},
            "trainer.callbacks.init_args.los",
            "trainer.callbacks.init_args.loss",
        ),
    ],
)
def test_the_key_its_file_and_what_was_meant_are_named(explain, tmp_path, part, key, meant):
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
    base = {"model": {"class_path": MF, "init_args": {"optimizer": adam}}}
    error = explain(base, part, "--trainer.max_epochs", "3")
    assert f"unknown key `{key}` in {str(tmp_path / '1.yaml')!r}" in error
    assert ("did you mean" in error) == (meant is not None)
    assert meant is None or f"did you mean `{meant}`?" in error


@pytest.mark.parametrize("words", [["--data.batchsize", "5"], ["--data.batchsize=5"]])
def test_a_flag_is_told_from_a_file(explain, words):
    error = explain({"data": {"root": "x"}}, *words)
    assert "`--data.batchsize` on the command line; did you mean `--data.batch_size`?" in error
    assert "`python -m llmrec_pl fit --help` lists all keys" in error


def test_the_arguments_of_a_class_are_listed(explain):
    error = explain({"model": {"class_path": MF}}, "--model.init_args.layers", "2")
    assert f"`{MF}` takes embedding_dim, l2_weight, " in error


def test_arguments_of_a_class_that_a_later_file_replaces_are_no_mistake(explain):
    llmrec = {"class_path": "llmrec_pl.models.llmrec.LLMRec", "init_args": {"n_layers": 2}}
    error = explain(
        {"model": llmrec},
        {"model": {"init_args": {"prune_rate": 0}}},
        {"model": {"class_path": MF}},
    )
    assert "unknown key" not in error


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.callbacks+=Callback"],
        ["--model.help", MF],
        ["--print_config"],
        ["--trainer.logger.init_args.anything", "1"],
        ["--seed_everything", "-1"],
    ],
)
def test_what_the_parser_takes_is_not_called_unknown(explain, words):
    assert "unknown key" not in explain(*words)


def test_without_an_unknown_key_the_parser_speaks_in_one_line(explain):
    message = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'Recommender'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'llmrec_pl.models.mf.MFF':
        module 'llmrec_pl.models.mf' has no attribute 'MFF'
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'llmrec_pl.models.mf.MFF'}"""
    assert explain({"data": {"root": "x"}}, message=message) == (
        "Parser key \"model\": Problem with given class_path 'llmrec_pl.models.mf.MFF': module "
        "'llmrec_pl.models.mf' has no attribute 'MFF'; `python -m llmrec_pl fit --help` explains "
        "the keys."
    )
