"""What a run would ask and cost; sends nothing, writes nothing, opens no connection.

Renders every prompt, leaves out what the store has answered, and adds up tokens and money: a low
figure, the expected one, and the most it can come to, by which the budget is kept. Figures come
from the store's own replies as soon as it has some; before that they are guessed by bytes.

Examples:
  python -m augment estimate --config configs/augment/ml-100k.yaml --provider openai
  python -m augment estimate --config FILE --sample 2000 --json
  python -m augment estimate --config FILE --exact tokenizer.json
  python -m augment estimate --config configs/augment/netflix-2023.yaml
         --sizes users=13187,items=17366,history=5

`--sizes` needs no data set: it makes up titles of so many bytes (title=18, and genres=0 unless
given), draws random candidates and takes the store for empty.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.commands.options import (
    add_config_arguments,
    add_limit_argument,
    config_of,
    kinds_of,
    limit_of,
    wide_console,
)
from augment.specs import KINDS
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from augment.config import AugmentConfig
    from augment.estimate import Estimate, TaskEstimate
    from augment.specs import Kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument("--only", metavar="TASKS", help=f"of {','.join(KINDS)}")
    add_limit_argument(parser)
    parser.add_argument(
        "--sample", type=int, metavar="N", help="render the prompts of N users only (all)"
    )
    parser.add_argument("--sizes", metavar="SIZES", help="sizes in place of a data set, see above")
    parser.add_argument(
        "--exact",
        nargs="?",
        const="",
        metavar="FILE",
        help="count with a tokenizer.json, or with tiktoken's table if it is on this machine",
    )
    parser.add_argument("--json", action="store_true", help="for programs; money in pico-USD")


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: options contradict each other.
    """
    from augment.estimate import estimate
    from llmrec_pl.data.dataset import InteractionDataset

    config, only = config_of(args), kinds_of(args.only)
    limit = limit_of(args)
    if limit is not None and not (args.sample is None and args.sizes is None):
        raise ConfigError("`--limit` cannot be combined with `--sample` or `--sizes`.")
    counter = _counter(config, args.exact)
    if args.sizes is None:
        dataset = InteractionDataset.load(config.dataset)
        found = estimate(config, dataset, only, sample=args.sample, exact=counter, limit=limit)
    else:
        found = _of_sizes(config, only, args.sizes, args.sample, counter)
    if args.json:
        print(json.dumps(dataclasses.asdict(found) | {"pusd": found.pusd}, indent=1))
    else:
        show_estimate(found, wide_console())


def _counter(config: AugmentConfig, exact: str | None) -> Callable[[str], int] | None:
    from augment.tokens import exact_counter

    if exact is None:
        return None
    return exact_counter(config.provider.chat_model, Path(exact) if exact else None)


def _of_sizes(
    config: AugmentConfig,
    only: frozenset[Kind] | None,
    sizes: str,
    sample: int | None,
    exact: Callable[[str], int] | None,
) -> Estimate:
    from augment.estimate import estimate
    from augment.made_up import make_up, parse_sizes
    from augment.specs import RANDOM

    tasks: dict[str, Any] = {}
    if config.tasks.pairs is not None:
        tasks["pairs"] = config.tasks.pairs.model_copy(update={"pool": RANDOM})
    with tempfile.TemporaryDirectory() as folder:
        update = {"tasks": config.tasks.model_copy(update=tasks), "store": Path(folder) / "none"}
        config = config.model_copy(update=update)
        return estimate(
            config, make_up(parse_sizes(sizes), Path(folder)), only, sample=sample, exact=exact
        )


def show_estimate(found: Estimate, console: Console) -> None:
    """Print an estimate as a table, with what it takes for granted."""
    from rich.table import Table

    from augment.money import format_usd
    from augment.tables import print_whole

    table = Table(title="what a run would send", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("answered by", overflow="fold")
    for name in ("to pay", "not to pay", "tokens in", "tokens out", "cost", "batch", "time"):
        table.add_column(name, justify="right")
    for task in found.tasks:
        table.add_row(*_row(task))
    print_whole(console, table)
    if found.pusd is None:
        console.print("in all: not known, a price is missing")
    else:
        low, expected, most = (format_usd(pico) for pico in found.pusd)
        console.print(
            f"in all {expected}, between {low} and {most} if every request is answered once; "
            "`--max-usd` of `run` is never exceeded",
            highlight=False,
            soft_wrap=True,
        )
    for note in dict.fromkeys(found.notes):
        console.print(f"· {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _row(task: TaskEstimate) -> list[str]:
    from augment.money import format_usd

    free = {
        "paid already": task.paid,
        "doubles": task.duplicates,
        "set aside": task.set_aside,
        **{why.replace("_", " "): n for why, n in task.skipped.items()},
    }
    calls = f"\n{task.calls:,} calls" if task.calls != task.to_pay else ""
    source = ("\nas seen" if task.calibrated else "\nguessed") if task.tokens_in[2] else ""
    return [
        task.kind,
        f"{task.provider}\n{task.model}",
        f"{task.to_pay:,}{calls}",
        "\n".join(f"{n:,} {what}" for what, n in free.items() if n) or "0",
        _three(task.tokens_in, _short) + source,
        _three(task.tokens_out, _short),
        "no price" if task.pusd is None else _three(task.pusd, format_usd),
        "no price" if task.batch_pusd is None else format_usd(task.batch_pusd),
        _time(task.seconds),
    ]


def _three(figures: tuple[int, int, int], form: Callable[[int], str]) -> str:
    """Return the expected figure, and under it the lowest and the highest."""
    low, expected, most = map(form, figures)
    return expected if low == most else f"{expected}\n≥ {low}\n≤ {most}"


def _short(n: int) -> str:
    for size, unit in ((10**6, " M"), (10**3, " k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min"
