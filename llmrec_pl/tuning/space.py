"""Search spaces as YAML, and the config overlay that a choice of values makes. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from llmrec_pl.configs import Tree, read_yaml, value_at
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.distributions import BaseDistribution

_LINE = re.compile(r"( *)([A-Za-z_]\w*):(?: +([^#\s][^#]*?))?( *#.*)?")
_RANGE_KEYS = {"low", "high", "log", "step"}


def read_space(path: str | Path) -> dict[str, BaseDistribution]:
    """Read a search space: dotted config keys, each with a range or a list of choices.

    ``model.init_args.l2_weight: {low: 1.0e-6, high: 1.0e-2, log: true}`` is a range, of integers
    where both ends are integers; ``model.init_args.n_layers: [1, 2, 3]`` are choices.

    Raises:
        ConfigError: an entry is neither, a range is empty, or there is no entry.
    """
    space = {}
    content = read_yaml(path)
    if not content:
        raise ConfigError(
            f"search space {str(path)!r} is empty; it maps config keys to ranges or choices, such "
            "as `model.init_args.n_layers: [1, 2, 3]`."
        )
    for key, entry in content.items():
        try:
            space[str(key)] = _distribution(entry)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"search space {str(path)!r}, `{key}`: {error} Give a range such as "
                f"{{low: 1.0e-4, high: 1.0e-2, log: true}} or choices such as [1, 2, 3]."
            ) from error
    return space


def _distribution(entry: object) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(entry, list):
        if not entry or any(isinstance(x, (list, dict)) for x in entry):
            raise ValueError(f"choices must be plain values, got {entry!r}.")
        return CategoricalDistribution(entry)
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry) <= _RANGE_KEYS:
        raise ValueError(f"got {entry!r}.")
    if any(not isinstance(entry[k], (int, float)) for k in ("low", "high")):
        # YAML 1.1 reads 1e-4 as text; only 1.0e-4 is a number.
        raise ValueError(f"`low` and `high` must be numbers (1.0e-4, not 1e-4), got {entry!r}.")
    if all(isinstance(entry[k], int) for k in ("low", "high")):
        return IntDistribution(**entry)
    return FloatDistribution(**entry)


def current_values(
    tree: Mapping[str, Any], space: Mapping[str, BaseDistribution]
) -> dict[str, Any] | None:
    """Return the values a config has now, as the first trial; None if the space has no room.

    A value that the config does not state, or outside its range, takes part in no trial.
    """
    if keys_without_room(tree, space):
        return None
    return {key: value_at(tree, key) for key in space}


def keys_without_room(tree: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> list[str]:
    """Return the keys whose value in the config is not stated, or outside the space."""
    return [key for key, room in space.items() if not _has_room(room, value_at(tree, key))]


def _has_room(distribution: BaseDistribution, value: object) -> bool:
    if value is None:
        return False
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def overlay(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Tree:
    """Return the config overlay that sets some dotted keys.

    A plain mapping among the model's arguments (such as `feature_weight`) is replaced whole by
    the parser, so the overlay repeats its other entries.

    Args:
        tree: the merged config files.
        values: dotted keys and their values.
    """
    result: Tree = {}
    for key, value in values.items():
        parts = key.split(".")
        node, known = result, tree
        for depth, part in enumerate(parts[:-1]):
            known = known.get(part) or {} if isinstance(known, Mapping) else {}
            if part not in node:
                whole = parts[0] == "model" and depth == 2 and "class_path" not in known
                node[part] = dict(known) if whole else {}
            node = node[part]
        # Three digits are as much as a search can tell apart, and a person wants to read.
        node[parts[-1]] = float(f"{value:.3g}") if isinstance(value, float) else value
    return result


def with_values(text: str, changes: Mapping[str, Any]) -> str:
    """Return a YAML text with the values of an overlay in place, comments and order kept.

    Args:
        text: block style, a key a line; mappings in braces are replaced whole.
        changes: an overlay, as `overlay` makes it.

    Raises:
        ConfigError: a key of the overlay has no line of its own.
    """
    lines, done = [], set()
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            lines.append(line)
            continue
        indent, key, value, comment = found.groups()
        while path and path[-1][0] >= len(indent):
            path.pop()
        path.append((len(indent), key))
        dotted = ".".join(part for _, part in path)
        new = value_at(changes, dotted)
        if value and new is not None:
            done.add(dotted)
            if yaml.safe_load(value) != new:
                dumped = yaml.safe_dump(new, default_flow_style=True, sort_keys=False)
                line = f"{indent}{key}: {dumped.splitlines()[0]}{comment or ''}"
        lines.append(line)
    missing = [k for k in _leaves(changes) if not any(f"{k}.".startswith(f"{d}.") for d in done)]
    if missing:
        raise ConfigError(f"no line for {missing}; write these values by hand.")
    return "\n".join(lines) + "\n"


def _leaves(tree: Mapping[str, Any], before: str = "") -> list[str]:
    leaves = []
    for key, value in tree.items():
        inside = isinstance(value, Mapping)
        leaves += _leaves(value, f"{before}{key}.") if inside else [f"{before}{key}"]
    return leaves
