"""What README and docs say can be typed and run."""

import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path

import lightning as L
import pytest
import yaml

from augment.cli import COMMANDS as AUGMENT_COMMANDS
from augment.cli import parser_of
from llmrec_pl.checkpoints import BestCheckpoint, ResumeCheckpoint
from llmrec_pl.cli import COMMANDS, TRAINER_COMMANDS
from llmrec_pl.data.datamodule import RecDataModule
from llmrec_pl.evaluation.callback import AllRankingEvaluator
from llmrec_pl.evaluation.predictions import PredictionWriter

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"python -m llmrec_pl ([^\n`]*)")
AUGMENT = re.compile(r"python -m augment ([a-z][^\n`]*)")


def commands():
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in COMMAND.findall(text):
            yield pytest.param(found.strip(), text, id=f"{page.name}: {found.strip()[:50]}")


SECTIONS = {
    "data": RecDataModule,
    "trainer": L.Trainer,
    "evaluation": AllRankingEvaluator,
    "checkpoint": BestCheckpoint,
    "resume": ResumeCheckpoint,
    "predictions": PredictionWriter,
}


def assert_option(name):
    """A plain option, or one of a section whose class has that argument."""
    section, _, argument = name.partition(".")
    if section in SECTIONS:
        assert argument in inspect.signature(SECTIONS[section].__init__).parameters, name
    else:
        assert section in {"config", "ckpt_path", "model", "seed_everything", "early_stopping"}


OPTION = re.compile(r"`--([a-z]+\.[a-z_.]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_named_in_the_text_exist(page):
    for name in OPTION.findall(page.read_text(encoding="utf-8")):
        assert_option(name)


@pytest.mark.parametrize(("line", "page"), list(commands()))
def test_commands_in_the_docs_exist_with_their_options(line, page, capsys):
    words = shlex.split(line.split("  ")[0].split(" #")[0])
    assert words[0] in COMMANDS | TRAINER_COMMANDS
    if words[0] in TRAINER_COMMANDS:
        for word in words:
            if word.startswith("--"):
                assert_option(word[2:].split("=")[0])
        configs = [w for w in words if w.startswith("configs/")]
        assert all((ROOT / c).is_file() or f"# {c}" in page for c in configs)
        return
    from llmrec_pl.cli import main

    with pytest.raises(SystemExit):
        main([words[0], "--help"])
    documented = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in documented


def augment_commands():
    """Every command line of stage 1 in a page, and in the examples of its own help."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    texts |= {name: parser_of(name).description for name in AUGMENT_COMMANDS}
    for where, text in texts.items():
        for found in AUGMENT.findall(re.sub(r"\\\n|\n {9,}", " ", text)):
            line = re.split(r" {3,}| #", found.strip())[0]
            yield pytest.param(line, id=f"{where}: {line[:60]}")


@pytest.mark.parametrize("line", list(augment_commands()))
def test_commands_of_stage_1_parse(line):
    name, *words = shlex.split(line)
    assert name in AUGMENT_COMMANDS
    if words or name in ("doctor", "serve-local"):  # else it is named, not typed
        parser_of(name).parse_args(words)
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file() or "books" in word


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_model_of_the_tutorial_works(tmp_path, monkeypatch):
    text = (ROOT / "docs/adding-a-model.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])["model"]
    path = tmp_path / "text_mf.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("llmrec_pl.models.text_mf", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "contract"))
    import test_models as contract

    assert config["class_path"] == "llmrec_pl.models.text_mf.TextMF"
    monkeypatch.setattr(contract, "config_of", lambda model_class: config)
    dataset = contract.taste_groups()
    data = (dataset, contract.features_of(dataset))
    contract.test_its_config_restates_every_hyper_parameter(module.TextMF)
    contract.test_loss_falls_and_every_parameter_learns(module.TextMF, data)
    contract.test_renumbering_users_and_items_renumbers_scores(module.TextMF, data)
    contract.test_checkerboard_every_held_out_item_ranks_first(module.TextMF, data)
