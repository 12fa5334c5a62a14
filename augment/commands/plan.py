"""Write what is to be asked into the store; sends nothing.

`run` plans by itself; this is for a look at the plan before, for batch files, or to let another
machine do the rendering. Texts to embed are planned as far as answers are there.

Examples:
  python -m augment plan --config configs/augment/ml-100k.yaml
  python -m augment plan --config FILE --provider openai --set provider.structured=json_schema
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from augment.commands.options import (
    add_config_arguments,
    add_limit_argument,
    config_of,
    kinds_of,
    limit_of,
    wide_console,
)
from augment.specs import KINDS

if TYPE_CHECKING:
    import argparse

    from augment.runner import Runner
    from augment.specs import Kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument("--only", metavar="TASKS", help=f"of {','.join(KINDS)}")
    add_limit_argument(parser)
    parser.add_argument("--i-know", action="store_true", help="allow a network file system")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: the form of answers would have to be asked of a server.
    """
    config = config_of(args)
    from augment.clock import SystemClock
    from augment.progress import RunProgress
    from augment.runner import Options, Runner
    from augment.status import read_status, show_status
    from augment.store import Store
    from llmrec_pl.data.dataset import InteractionDataset

    options = Options(only=kinds_of(args.only), limit=limit_of(args))
    dataset = InteractionDataset.load(config.dataset)
    with Store(config.store, create=True, network_ok=args.i_know) as store, RunProgress() as bar:
        runner = Runner(config, dataset, store, options, clock=SystemClock(), watcher=bar)
        for kind in runner.kinds:
            runner.spec_ids[kind] = _plan(runner, kind)
    show_status(read_status(config.store), wide_console())


def _plan(runner: Runner, kind: Kind) -> int:
    from augment.probe import Nobody

    return runner.plan(asyncio.run(runner.spec(kind, Nobody("planning"))))
