"""Options that all commands with a config share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.config import PRESETS, AugmentConfig, load_config

if TYPE_CHECKING:
    import argparse

_SHORT = {
    "provider": "provider.name",
    "model": "provider.chat_model",
    "embed_model": "provider.embed_model",
    "key_env": "provider.key_env",
    "concurrency": "provider.concurrency",
    "rpm": "provider.rpm",
    "tpm": "provider.tpm",
    "dataset": "dataset",
    "store": "store",
    "out": "out",
    "pool": "tasks.pairs.pool",
}


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the config and its shortcuts."""
    group = parser.add_argument_group("config")
    group.add_argument(
        "--config", action="append", metavar="FILE", required=True, help="later files win"
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="any key of the config"
    )
    group.add_argument("--provider", choices=list(PRESETS), help="who answers")
    group.add_argument("--model", help="chat model")
    group.add_argument("--embed-model", help="embedding model; minilm and hashing-256 run here")
    group.add_argument(
        "--base-url", action="append", metavar="URL", help="OpenAI-compatible server; repeatable"
    )
    group.add_argument("--key-env", metavar="NAME", help="environment variable with the key")
    group.add_argument("--concurrency", type=int, help="most calls in flight")
    group.add_argument("--rpm", type=float, help="requests a minute")
    group.add_argument("--tpm", type=float, help="tokens a minute")
    group.add_argument("--dataset", metavar="DIR", help="canonical data set folder")
    group.add_argument("--store", metavar="DIR", help="folder of the journal")
    group.add_argument("--out", metavar="DIR", help="folder of the export")
    group.add_argument("--pool", metavar="FILE", help='candidates.parquet, or "random"')


def config_of(args: argparse.Namespace) -> AugmentConfig:
    """Return the config that files, `--set` and shortcuts give."""
    short = [
        f"{key}={value}"
        for name, key in _SHORT.items()
        if (value := getattr(args, name, None)) is not None
    ]
    if args.base_url:
        short.append(f"provider.base_urls=[{', '.join(args.base_url)}]")
    return load_config(args.config, [*args.set, *short])
