"""The import rule: which part may know which, and what a command may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("llmrec_pl", "augment")
ONLY_OPENAI = "augment/client.py"
KNOWS_JSONARGPARSE = {"llmrec_pl/training.py"}

FORBIDDEN = {
    "llmrec_pl": {"augment", "openai"},
    "llmrec_pl/errors.py": {"llmrec_pl"},
    "llmrec_pl/losses.py": {"lightning", "llmrec_pl.data", "llmrec_pl.models"},
    "llmrec_pl/graph.py": {"lightning", "llmrec_pl.data", "llmrec_pl.models"},
    "llmrec_pl/frontier.py": {"lightning", "llmrec_pl.data", "llmrec_pl.models"},
    "llmrec_pl/sparse_operator.py": {"lightning", "llmrec_pl.data", "llmrec_pl.models"},
    "llmrec_pl/neighbours.py": {"lightning", "llmrec_pl.data", "llmrec_pl.models"},
    "llmrec_pl/data": {"llmrec_pl.models", "llmrec_pl.evaluation", "llmrec_pl.training"},
    "llmrec_pl/data/dataset.py": {"torch", "lightning"},
    "llmrec_pl/data/features.py": {"torch", "lightning"},
    "llmrec_pl/data/augmentation.py": {"torch", "lightning"},
    "llmrec_pl/data/sources": {"torch", "lightning", "llmrec_pl.data.datamodule"},
    "llmrec_pl/models": {"llmrec_pl.evaluation", "llmrec_pl.training"},
    "llmrec_pl/evaluation": {"llmrec_pl.models", "llmrec_pl.training"},
    "augment": {"llmrec_pl.models", "llmrec_pl.evaluation", "llmrec_pl.training"},
}


def imports(path, at_runtime=True):
    """Names a file imports, without those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
        for branch in test.body
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if at_runtime and id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_what_its_place_may_know(path):
    place = path.relative_to(ROOT).as_posix()
    found = set(imports(path))
    for prefix, forbidden in FORBIDDEN.items():
        if place != prefix and not place.startswith(f"{prefix}/"):
            continue
        bad = {n for n in found for f in forbidden if n == f or n.startswith(f"{f}.")}
        assert not bad, f"{place} must not import {bad}"
    if place != ONLY_OPENAI:
        assert not any(n.split(".")[0] == "openai" for n in found)
    if place not in KNOWS_JSONARGPARSE:
        assert not any("jsonargparse" in n or n.startswith("lightning.pytorch.cli") for n in found)


def test_torch_sparse_is_called_in_one_file():
    users = {
        p.relative_to(ROOT).as_posix()
        for p in files()
        if "torch.sparse" in p.read_text(encoding="utf-8") and p.name != "unpickle.py"
    }
    assert users == {"llmrec_pl/sparse_operator.py"}


@pytest.mark.parametrize(
    "command", ["prepare", "describe", "features", "augmentation", "recommend", "compare"]
)
def test_help_of_plain_commands_loads_no_torch(command):
    code = (
        "import sys\nfrom llmrec_pl.cli import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"llmrec_pl {command}" in done.stdout
