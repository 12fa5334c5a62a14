"""Options that commands share: a config with its shortcuts, or just a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from augment.config import PRESETS, AugmentConfig, load_config
from augment.specs import KINDS, Kind
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

_SHORT = {
    "provider": "provider.name",
    "model": "provider.chat_model",
    "embed_model": "provider.embed_model",
    "base_url": "provider.base_urls",
    "key_env": "provider.key_env",
    "concurrency": "provider.concurrency",
    "rpm": "provider.rpm",
    "tpm": "provider.tpm",
    "dataset": "dataset",
    "store": "store",
    "out": "out",
    "pool": "tasks.pairs.pool",
}


def add_config_arguments(
    parser: argparse.ArgumentParser, *, required: bool = True, out: str = "folder of the export"
) -> None:
    """Declare the config and its shortcuts; `out` says what `--out` is."""
    group = parser.add_argument_group("config")
    group.add_argument(
        "--config",
        action="append",
        default=None if required else [],
        metavar="FILE",
        required=required,
        help="later files win",
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="any key of the config"
    )
    group.add_argument("--provider", choices=list(PRESETS), help="who answers")
    group.add_argument("--model", help="chat model of tasks that name none")
    group.add_argument("--embed-model", help="embedding model; minilm and hashing-256 run here")
    group.add_argument(
        "--base-url", action="append", metavar="URL", help="OpenAI-compatible server; repeatable"
    )
    group.add_argument("--key-env", metavar="NAME", help="environment variable with the key")
    group.add_argument("--concurrency", type=int, metavar="N", help="most calls in flight")
    group.add_argument("--rpm", type=float, metavar="N", help="requests a minute")
    group.add_argument("--tpm", type=float, metavar="N", help="tokens a minute")
    group.add_argument("--dataset", metavar="DIR", help="canonical data set folder")
    group.add_argument("--store", metavar="DIR", help="folder of the journal")
    group.add_argument("--out", metavar="DIR", help=out)
    group.add_argument("--pool", metavar="FILE", help='candidates.parquet, or "random"')


def config_of(args: argparse.Namespace) -> AugmentConfig:
    """Return the config that files, `--set` and shortcuts give.

    Raises:
        ConfigError: a file is missing, a key is unknown, or a value is out of range.
    """
    short = [
        # JSON is YAML too, and keeps a model called 4.1 a name
        f"{key}={json.dumps(value)}"
        for name, key in _SHORT.items()
        if (value := getattr(args, name, None)) is not None
    ]
    return load_config(args.config, [*args.set, *short])


def add_limit_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how much of the data set is asked about."""
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="ask about N users and N items only; a later run adds to them",
    )


def limit_of(args: argparse.Namespace) -> int | None:
    """Return the limit; None for the whole data set.

    Raises:
        ConfigError: it is not positive.
    """
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"`--limit` needs to be positive (got {args.limit}).")
    return cast("int | None", args.limit)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which store a command looks at."""
    parser.add_argument("store", nargs="?", metavar="STORE", help="folder of the journal")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a config that names it",
    )
    parser.add_argument("--i-know", action="store_true", help="allow a network file system")


def store_of(args: argparse.Namespace) -> Path:
    """Return the store's folder.

    Raises:
        ConfigError: neither a folder nor a config is given.
    """
    if args.store is not None:
        return Path(args.store)
    if not args.config:
        raise ConfigError(
            "which store? Name its folder, `augmentation/ml-100k.store`, or say "
            "`--config configs/augment/ml-100k.yaml`."
        )
    return load_config(args.config).store


def last_config_of(args: argparse.Namespace) -> AugmentConfig:
    """Return the config that files and `--set` give, else that of a store's last run.

    Args:
        args: with `config`, `set` and `store`, the latter a path or None.

    Raises:
        AugmentationError: there is no such store.
        ConfigError: neither a config nor a store is named, or the store was never run.
    """
    if args.config:
        config = load_config(args.config, args.set)
        return config if args.store is None else config.model_copy(update={"store": args.store})
    if args.store is None or args.set:
        raise ConfigError(
            "which store? Name its folder, such as augmentation/ml-100k.store, or a config by "
            "`--config FILE`; `--set` changes a config that is given."
        )
    from augment.last_config import last_config

    return last_config(args.store)


def kinds_of(text: str | None) -> frozenset[Kind] | None:
    """Return the tasks in a list with commas; None if nothing was given.

    Raises:
        ConfigError: a task is unknown.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ConfigError(f"unknown task {unknown[0]!r} in `--only`; known are {', '.join(KINDS)}.")
    return frozenset(cast("list[Kind]", names))


def wide_console() -> Console:
    """Return where tables go: the terminal, or a pipe that takes wide lines."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else 120)
