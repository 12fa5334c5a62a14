"""What a sweep trains: a YAML of named config lists, and a folder for each run. No torch."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_pl.configs import as_list, merged, read_yaml, setting
from llmrec_pl.errors import ConfigError
from llmrec_pl.evaluation.record import record_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEYS = {"base", "entries", "seeds", "tuned", "test", "out"}
RECORD = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """One entry with one seed.

    Attributes:
        name: of the entry.
        seed: of weights and batches.
        configs: config files, later wins.
        more: further arguments of `fit`.
        folder: of the run.
        test: whether the test split is opened once at its end.
    """

    name: str
    seed: int
    configs: tuple[str, ...]
    more: tuple[str, ...]
    folder: Path
    test: bool

    @property
    def arguments(self) -> list[str]:
        """Arguments of `fit`, without those of the run's folder."""
        configs = [x for c in self.configs for x in ("--config", c)]
        return [*configs, *self.more, "--seed_everything", str(self.seed)]

    @cached_property
    def candidates(self) -> str:
        """Which items are ranked against each other: "all", "cold" or "warm"."""
        return str(setting(self.configs, self.more, "evaluation.candidates", "all"))

    def file(self, split: str, ending: str) -> Path:
        """Return where the run keeps the metrics of a split."""
        return self.folder / "metrics" / f"{record_name(split, self.candidates)}{ending}"

    def metrics(self, split: str) -> dict[str, Any] | None:
        """Return the kept record of a split, None where it is not there yet."""
        return _read(self.file(split, ".json"))

    def cost(self) -> dict[str, Any]:
        """Return what training took, empty where it is not known."""
        return _read(self.folder / "metrics" / "cost.json") or {}

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        splits = ("val", "test") if self.test else ("val",)
        return all(self.metrics(split) is not None for split in splits)

    def check_unchanged(self) -> None:
        """Record the run's name and config, or refuse a folder begun with another config.

        Raises:
            ConfigError: naming the folder.
        """
        path = self.folder / RECORD
        settings = {"config": merged(self.configs), "more": list(self.more), "seed": self.seed}
        settings = json.loads(json.dumps(settings))
        found = _read(path)
        # A name is a label: another one, or none in an older folder, changes nothing trained.
        if found is not None and {k: v for k, v in found.items() if k != "name"} != settings:
            raise ConfigError(
                f"{str(self.folder)!r} was begun with another config of {self.name!r}; remove the "
                "folder to train it anew, or name another `--out`."
            )
        wanted = {"name": self.name, **settings}
        if found != wanted:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep as its YAML describes it.

    Attributes:
        base: config files that every entry begins with.
        entries: name to further config files.
        seeds: each entry is trained with each of them.
        tuned: folder whose ``<name of an entry's file>.yaml`` is added behind that file.
        test: open the test split once for every run.
        out: folder of the runs and of the results.
    """

    base: tuple[str, ...]
    entries: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    tuned: str | None
    test: bool
    out: Path

    def configs(self, name: str) -> tuple[str, ...]:
        """Return the config files of an entry, tuned values right behind the model's file."""
        files: list[str] = list(self.base)
        for file in self.entries[name]:
            files.append(file)
            tuned = Path(self.tuned or "", Path(file).name)
            if self.tuned and tuned.is_file():
                files.append(str(tuned))
        return tuple(files)

    @property
    def untuned(self) -> list[str]:
        """Return the entries that `tuned` has no values for; all of them, without such a folder."""
        alone = {name: [*self.base, *files] for name, files in self.entries.items()}
        return [name for name, files in alone.items() if self.configs(name) == tuple(files)]

    def runs(self, more: Sequence[str]) -> list[Run]:
        """Return every run, all entries with the first seed first."""
        return [
            Run(
                name,
                seed,
                self.configs(name),
                tuple(more),
                self.out / folder_name(name) / f"seed-{seed}",
                self.test,
            )
            for seed in self.seeds
            for name in self.entries
        ]


def read_sweep(path: str, changes: Mapping[str, Any]) -> Sweep:
    """Read a sweep.

    Args:
        path: YAML file with `base`, `entries`, `seeds`, and at will `tuned`, `test`, `out`.
        changes: values that take the place of the file's, None leaves them.

    Raises:
        ConfigError: a key is missing or unknown, a value is of the wrong kind, a file is missing,
            or two names share a folder.
    """
    content = {"tuned": None, "test": False, "out": None, **read_yaml(path)}
    content |= {key: value for key, value in changes.items() if value is not None}
    unknown, missing = set(content) - _KEYS, _KEYS - set(content)
    if unknown or missing:
        raise ConfigError(
            f"sweep {path!r} has unknown keys {sorted(unknown)} and lacks {sorted(missing)}; it "
            f"takes {sorted(_KEYS)}."
        )
    _check_values(path, content)
    entries = {str(n): tuple(map(str, as_list(files))) for n, files in content["entries"].items()}
    folders = [folder_name(name) for name in entries]
    twice = {f for f in folders if folders.count(f) > 1}
    if twice or not entries or not content["seeds"]:
        raise ConfigError(
            f"sweep {path!r} needs entries with distinct names and at least one seed"
            + (f"; {sorted(twice)} would share a folder." if twice else ".")
        )
    sweep = Sweep(
        tuple(map(str, as_list(content["base"]))),
        entries,
        tuple(content["seeds"]),
        content["tuned"],
        content["test"],
        Path(content["out"] or f"runs/{Path(path).stem}"),
    )
    for name in entries:
        merged(sweep.configs(name))  # a missing file is named before anything is trained
    return sweep


def _check_values(path: str, content: Mapping[str, Any]) -> None:
    """Refuse what would be misread: `test: "no"` is a text that is true."""
    seeds, tuned = content["seeds"], content["tuned"]
    known = isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    for key, fits, wanted in (
        ("entries", isinstance(content["entries"], dict), "map names to config files"),
        ("seeds", known and len(set(seeds)) == len(seeds), "list distinct integers from 0 on"),
        ("test", isinstance(content["test"], bool), "be true or false"),
        ("base", bool(content["base"]), "name one config file or a list of them"),
        ("tuned", tuned is None or Path(str(tuned)).is_dir(), "name a folder that exists"),
    ):
        if not fits:
            raise ConfigError(f"sweep {path!r}: `{key}` must {wanted}, got {content[key]!r}.")


def folder_name(name: str) -> str:
    """Return a name as a folder: letters, digits, dashes."""
    kept = "".join(c if c.isalnum() else "-" for c in name.lower())
    return "-".join(part for part in kept.split("-") if part)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
