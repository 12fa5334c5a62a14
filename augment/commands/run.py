"""Ask what is not answered yet, task after task, then export.

Can be killed at any moment and run again: what was answered is kept and never asked twice.
Ctrl-C once waits for calls in flight, twice drops them. `--dry-run` shows what it would cost,
`--limit 50` tries it on 50 users and 50 items; a run without a limit then asks for the rest.

Examples:
  python -m augment run --config configs/augment/ml-100k.yaml
  python -m augment run --config configs/augment/ml-100k.yaml --provider openai --max-usd 2
  python -m augment run --config FILE --provider local --base-url http://127.0.0.1:8089/v1
  python -m augment run --config FILE --provider openai --max-usd 1 --limit 50
  python -m augment run --config FILE --only pairs,profiles --dry-run

Status at the end: 0 done, 3 budget used up, 4 no credit left, 5 key or model refused, 6 refused
for rate too long, 7 too many replies rejected, 74 disk full, 75 store in use, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from augment.commands.export import written
from augment.commands.options import (
    add_config_arguments,
    add_limit_argument,
    config_of,
    kinds_of,
    limit_of,
    wide_console,
)
from augment.specs import EXPORTED, KINDS
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from augment.config import AugmentConfig
    from augment.specs import Kind
    from llmrec_pl.data.dataset import InteractionDataset

_OTHER_FILES = 48
"""Open files that are no connections: store, spool, data, standard streams."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument("--only", metavar="TASKS", help=f"of {','.join(KINDS)}")
    add_limit_argument(parser)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--max-usd", metavar="USD", help="budget of the store from now on")
    budget.add_argument("--no-cap", action="store_true", help="lift the budget of the store")
    parser.add_argument("--dry-run", action="store_true", help="estimate only, send nothing")
    parser.add_argument(
        "--ambiguous",
        choices=["retry", "hold"],
        default="retry",
        help="calls that may have been answered: send once more, or leave them to you",
    )
    parser.add_argument(
        "--max-reject-rate",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="stop where more of the replies fail validation (0.2)",
    )
    parser.add_argument("--no-export", action="store_true", help="leave the export for later")
    parser.add_argument("--i-know", action="store_true", help="allow a network file system")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: a share or a limit is out of range, or the place of the export is taken.
    """
    config, only, limit = config_of(args), kinds_of(args.only), limit_of(args)
    if not 0 <= args.max_reject_rate <= 1:
        raise ConfigError(
            f"`--max-reject-rate` is a share in [0, 1], got {args.max_reject_rate:g}; write 0.2."
        )
    from llmrec_pl.data.dataset import InteractionDataset

    dataset = InteractionDataset.load(config.dataset)
    console = wide_console()
    if args.dry_run:
        from augment.commands.estimate import show_estimate
        from augment.estimate import estimate

        show_estimate(estimate(config, dataset, only, limit=limit), console)
        return
    config = within_file_limit(config)
    if not args.no_export:
        _check_place(config)
    try:
        _ask(args, config, dataset, only)
    finally:
        _show(config, console)
    if not args.no_export:
        _export(config, dataset, only, console)


def _ask(
    args: argparse.Namespace,
    config: AugmentConfig,
    dataset: InteractionDataset,
    only: frozenset[Kind] | None,
) -> None:
    from augment.clock import SystemClock
    from augment.judge import Policy
    from augment.progress import RunProgress
    from augment.runner import Options, Runner
    from augment.store import Store

    with Store(config.store, create=True, network_ok=args.i_know) as store, RunProgress() as bar:
        options = Options(
            only=only,
            max_usd=args.max_usd,
            no_cap=args.no_cap,
            policy=Policy(ambiguous=args.ambiguous),
            max_reject_rate=args.max_reject_rate,
            limit=args.limit,
        )
        runner = Runner(config, dataset, store, options, clock=SystemClock(), watcher=bar)
        asyncio.run(runner.run())


def _check_place(config: AugmentConfig) -> None:
    """Refuse to replace what another store gave, before anything is asked.

    Raises:
        ConfigError: it lies where this run would export to.
    """
    from llmrec_pl.data.augmentation import MANIFEST

    try:
        theirs = json.loads((config.out / MANIFEST).read_text(encoding="utf-8"))["store"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError):
        theirs = None
    if theirs is None or theirs != _uuid_of(config.store):
        raise ConfigError(
            f"{str(config.out)!r} holds an augmentation that is not of store "
            f"{str(config.store)!r}; choose another `--out`, or ask with `--no-export` and "
            "replace it by `python -m augment export --overwrite`."
        )


def _uuid_of(store: Path) -> str | None:
    from augment.store import open_readonly

    try:
        with contextlib.closing(open_readonly(store)) as db:
            found = db.execute("SELECT v FROM meta WHERE k = 'store_uuid'").fetchone()
    except AugmentationError:
        return None
    return None if found is None else str(found[0])


def within_file_limit(config: AugmentConfig) -> AugmentConfig:
    """Return a config whose concurrency the limit of open files allows, raised where it may be."""
    wanted = config.provider.concurrency + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return config
    fewer = max(1, soft - _OTHER_FILES)
    sys.stderr.write(
        f"only {soft} files may be open at once (ulimit -n): {fewer} calls in flight instead of "
        f"{config.provider.concurrency}\n"
    )
    provider = config.provider.model_copy(update={"concurrency": fewer})
    return config.model_copy(update={"provider": provider})


def _show(config: AugmentConfig, console: Console) -> None:
    from augment.status import read_status, show_status
    from augment.store import MAIN

    path = config.store / MAIN
    if path.is_file() and path.stat().st_size:
        show_status(read_status(config.store), console)


def _export(
    config: AugmentConfig,
    dataset: InteractionDataset,
    only: frozenset[Kind] | None,
    console: Console,
) -> None:
    from augment.export import export

    trained_on = [kind for kind in EXPORTED if getattr(config.tasks, kind) is not None]
    if not trained_on or (only is not None and only.isdisjoint(trained_on)):
        line = "nothing of this is trained on; next: python -m augment report with the same config"
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
        return

    made = export(config.store, config, dataset)
    console.print(written(made), highlight=False, markup=False, soft_wrap=True)
    if not (made.edges.size or made.features):
        console.print("nothing to train on yet; see `done` above", style="yellow")
        return
    trainer = Path("configs") / f"{dataset.name}.yaml"
    shown = trainer if trainer.is_file() else "FILE"
    line = (
        f"next: python -m llmrec_pl fit --config {shown} --data.root {config.dataset} "
        f"--data.augmentation {config.out}"
    )
    console.print(line, highlight=False, markup=False, soft_wrap=True)
