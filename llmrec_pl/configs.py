"""Config files as plain trees: reading, merging, and values at dotted keys. No torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Tree = dict[str, Any]


def load_yaml(path: str | Path) -> Any:  # noqa: ANN401
    """Read a YAML file.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no config file at {str(path)!r}; shipped ones lie in `configs/`.")
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {str(path)!r} is not valid YAML: {error}") from error


def read_yaml(path: str | Path) -> Tree:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, malformed or no mapping.
    """
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} must hold a mapping, got {type(content).__name__}.")
    return content


def merged(paths: Sequence[str | Path]) -> Tree:
    """Merge config files as the command line does: later wins, key by key."""
    result: Tree = {}
    for path in paths:
        merge_into(result, read_yaml(path))
    return result


def merge_into(target: Tree, source: Mapping[str, Any]) -> None:
    """Put the values of one tree into another, key by key."""
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            merge_into(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def as_list(value: Any) -> list[Any]:  # noqa: ANN401
    """Return what may be one value, several, or None, as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def value_at(tree: Mapping[str, Any], key: str) -> object:
    """Return the value at a dotted key, None where there is none."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def setting(
    paths: Sequence[str | Path], arguments: Sequence[str], key: str, default: object = None
) -> object:
    """Return the value of a dotted key as `fit` sees it: files first, the command line wins.

    Args:
        paths: config files, later wins.
        arguments: further arguments of `fit`, ``--key VALUE`` or ``--key=VALUE``.
        key: dotted key.
        default: taken where none of them has the key.
    """
    found = value_at(merged(paths), key)
    for word, value in zip_longest(arguments, arguments[1:]):
        name, equals, behind = word.partition("=")
        if name == f"--{key}":
            found = behind if equals else value
    return default if found is None else found


def set_value(tree: Tree, key: str, value: object) -> None:
    """Put a value at a dotted key of a tree."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value
