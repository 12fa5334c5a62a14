"""What a person mistyped, where the parser refused a command: the key, its place, what was meant.

The parser's own message shows its usage and every type that it tried, but no file.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from llmrec_pl.configs import Tree, merge_into, read_yaml, set_value, value_at
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value")
COMMAND_LINE = "on the command line"


class _Unknown(NamedTuple):
    """A key that nothing takes, the names that stand to choose beside it, and whose they are."""

    key: str
    siblings: Collection[str]
    owner: str | None = None


def explained(arguments: Sequence[str], known: Collection[str], message: str) -> ConfigError:
    """Say which key is mistyped; where none is, what the parser said, in one line.

    Args:
        arguments: of the command line, the subcommand first.
        known: dotted keys that the subcommand takes.
        message: the parser's.
    """
    help_command = f"`python -m llmrec_pl {arguments[0]} --help`"
    everything: Tree = {}  # what was stated so far: a later file may name another class
    for place, tree in _sources(arguments[1:]):
        merge_into(everything, tree)
        unknown = next(_unknown(tree, "", known, everything), None)
        if unknown is None:
            continue
        dashes = "--" if place == COMMAND_LINE else ""
        guess = _guess(unknown, known, everything)
        meant = f"; did you mean `{dashes}{guess}`?" if guess else "."
        lists = f"{help_command} lists all keys."
        if unknown.owner is not None:
            lists = f"`{unknown.owner}` takes {', '.join(unknown.siblings)}."
        return ConfigError(f"unknown key `{dashes}{unknown.key}` {place}{meant} {lists}")
    return ConfigError(f"{_in_short(message)}; {help_command} explains the keys.")


def _sources(arguments: Sequence[str]) -> list[tuple[str, Tree]]:
    """Return the trees of keys that config files and flags state, in their order, with places."""
    sources: list[tuple[str, Tree]] = []
    for word, behind in zip(arguments, [*arguments[1:], ""], strict=True):
        if not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        key, text = flag.rstrip("+"), value if equals else behind
        if key == "config":
            sources.append((f"in {text!r}", read_yaml(text)))
        elif not key.startswith(("help", "print_")) and not key.endswith(".help"):
            tree: Tree = {}
            set_value(tree, key, _plain(text))
            sources.append((COMMAND_LINE, tree))
    return sources


def _plain(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _unknown(
    tree: Mapping[str, Any], above: str, known: Collection[str], everything: Tree
) -> Iterator[_Unknown]:
    """Yield the keys of one source that no part of the parser takes."""
    for name, value in tree.items():
        key = f"{above}{name}"
        if key in known:
            yield from _unknown_arguments(value, key, everything)
        elif not any(k.startswith(f"{key}.") for k in known):
            below = (k.removeprefix(above) for k in known if k.startswith(above))
            yield _Unknown(key, sorted({k.partition(".")[0] for k in below}))
        elif isinstance(value, Mapping):
            yield from _unknown(value, f"{key}.", known, everything)


def _unknown_arguments(value: object, key: str, everything: Tree) -> Iterator[_Unknown]:
    """Yield what the class of a value, or of one in a list, does not take."""
    for item in value if isinstance(value, list) else []:
        yield from _unknown_arguments(item, key, everything)
    if not isinstance(value, Mapping):
        return
    owner = value.get("class_path") or value_at(everything, f"{key}.class_path")
    taken = _arguments_of(owner)
    if taken is None:
        return
    # The parser takes `model.embedding_dim` for `model.init_args.embedding_dim`.
    given = {f"{key}.{k}": v for k, v in value.items() if k not in _CLASS_KEYS}
    if isinstance(value.get("init_args"), Mapping):
        given |= {f"{key}.init_args.{k}": v for k, v in value["init_args"].items()}
    for stated, content in given.items():
        name = stated.rpartition(".")[2]
        if name in taken:
            yield from _unknown_arguments(content, f"{key}.init_args.{name}", everything)
        else:
            yield _Unknown(stated, taken, str(owner))


def _arguments_of(class_path: object) -> list[str] | None:
    """Return the names of a class's arguments; None where that cannot be told."""
    module, _, name = str(class_path).rpartition(".")
    try:
        parameters = inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


def _guess(unknown: _Unknown, known: Collection[str], everything: Tree) -> str | None:
    """Return the key that was probably meant: one beside it, else one of that name elsewhere."""
    above, _, name = unknown.key.rpartition(".")
    beside = difflib.get_close_matches(name, unknown.siblings, n=1)
    if beside:
        return f"{above}.{beside[0]}" if above else beside[0]
    of_model = _arguments_of(value_at(everything, "model.class_path")) or []
    elsewhere = {k.rpartition(".")[2]: k for k in sorted(known, reverse=True)}
    elsewhere |= {k: f"model.init_args.{k}" for k in of_model}
    found = difflib.get_close_matches(name, list(elsewhere), n=1, cutoff=0.8)
    return elsewhere[found[0]] if found else None


def _in_short(message: str) -> str:
    """Return the parser's message without the values and types that it tried."""
    lines = [line.strip() for line in message.splitlines()]
    lines = [line for line in lines if not line.startswith(_NOISE)]
    if any(line.startswith("- Problem") for line in lines):
        lines = [line for line in lines if not line.startswith("- Expected")]
    return " ".join(line.removeprefix("- ") for line in lines).rstrip(".")
