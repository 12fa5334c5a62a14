"""Send requests as files: through the Batch API at half the price, `vllm run-batch`, or anyone.

Examples:
  python -m augment batch build --config FILE --max-usd 5
  python -m augment batch submit --config FILE
  python -m augment batch poll --config FILE --wait
  python -m augment batch build --config FILE --handover for-anna
  python -m augment batch ingest --config FILE from-anna/*.jsonl
  python -m augment batch list --store augmentation/ml-100k.store

`build` plans like `run` and puts what waits into files under STORE/batches; those requests are
sent by nobody else until they are answered or given up. `submit` uploads the files and starts the
batches, `poll` fetches and takes in what has ended; both may be killed at any moment and run
again. `ingest` takes in answer files from anyone, as often as one likes; with `--final`, what they
do not answer is planned again. `discard` gives the requests of a part back to the plan. Repair
asks that follow from answers go into the next build, or are sent by `run`. See docs/batch.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.commands.options import (
    add_config_arguments,
    add_limit_argument,
    config_of,
    kinds_of,
    last_config_of,
    limit_of,
    wide_console,
)
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from augment.batch import Batches
    from augment.batch_ingest import Ingested
    from augment.config import AugmentConfig
    from augment.store import Store
    from augment.store.parts import Part, PartState

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_REMOTE = ("submit", "poll", "adopt", "cancel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    form: dict[str, Any] = {"description": __doc__, "formatter_class": parser.formatter_class}
    build = actions.add_parser("build", help="put what waits into files", **form)
    add_config_arguments(build)
    build.add_argument("--only", metavar="TASKS", help="of pairs,profiles,attributes,embed")
    add_limit_argument(build)
    build.add_argument("--max-lines", type=int, metavar="N", help="50000; 5000 to hand over")
    build.add_argument("--max-bytes", default="200MB", metavar="SIZE", help="largest file")
    build.add_argument("--handover", type=Path, metavar="DIR", help="copies for somebody else")
    budget = build.add_mutually_exclusive_group()
    budget.add_argument("--max-usd", metavar="USD", help="budget of the store from now on")
    budget.add_argument("--no-cap", action="store_true", help="lift the budget of the store")
    submit = _action(actions, form, "submit", "upload the files and start batches")
    submit.add_argument("--max-enqueued-tokens", type=int, metavar="N", help="by our bound")
    poll = _action(actions, form, "poll", "fetch and take in what has ended")
    poll.add_argument("--wait", action="store_true", help="submit and poll until all is taken in")
    poll.add_argument("--max-enqueued-tokens", type=int, metavar="N", help="with --wait")
    poll.add_argument("--delete-remote", action="store_true", help="delete remote files afterwards")
    _action(actions, form, "adopt", "find out what became of an interrupted submit")
    _action(actions, form, "cancel", "stop batches; what is answered by then is taken in")
    ingest = _action(actions, form, "ingest", "take in answer files", names="FILE")
    ingest.add_argument("--part", metavar="PART", help="expect the requests of this part only")
    ingest.add_argument(
        "--final", action="store_true", help="no more answers will come: plan the rest again"
    )
    discard = _action(actions, form, "discard", "give requests back to the plan")
    discard.add_argument(
        "--lost", action="store_true", help="also of a batch whose answers cannot be had any more"
    )
    show = _action(actions, form, "list", "show the parts", names="")
    show.add_argument("--json", action="store_true", help="for programs")
    for action in actions.choices.values():
        action.add_argument("--i-know", action="store_true", help="allow a network file system")


def _action(
    actions: Any,  # noqa: ANN401  # argparse names no type for it
    form: dict[str, Any],
    name: str,
    text: str,
    names: str = "PART",
) -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(name, help=text, **form)
    if names:
        action.add_argument("names", nargs="*", metavar=names, help="all that fit by default")
    action.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="later files win"
    )
    action.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="any key of the config"
    )
    action.add_argument(
        "--store", type=Path, metavar="DIR", help="folder of the journal; its last config is used"
    )
    return action


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.action == "build":
        _build(args)
        return
    config = last_config_of(args)
    if args.action == "list":
        _list(config.store, as_json=args.json)
        return
    from augment.store import Store

    with Store(config.store, network_ok=args.i_know) as store:
        if args.action in _REMOTE:
            asyncio.run(_remote(args, config, store))
        elif args.action == "ingest":
            _ingest(args, store)
        else:
            _discard(args, store)


def _build(args: argparse.Namespace) -> None:
    config, only, limit = config_of(args), kinds_of(args.only), limit_of(args)
    from augment.batch_build import MOST_LINES, Wish, build
    from augment.clock import SystemClock
    from augment.progress import RunProgress
    from augment.store import Store
    from llmrec_pl.data.dataset import InteractionDataset

    lines = args.max_lines or (5_000 if args.handover else MOST_LINES)
    if lines < 1:
        raise ConfigError(f"`--max-lines` needs to be positive (got {lines}).")
    wish = Wish(
        only=only,
        max_lines=lines,
        max_bytes=_size(args.max_bytes),
        handover=args.handover,
        max_usd=args.max_usd,
        no_cap=args.no_cap,
        limit=limit,
    )
    dataset = InteractionDataset.load(config.dataset)
    with Store(config.store, create=True, network_ok=args.i_know) as store, RunProgress() as bar:
        built = asyncio.run(build(config, dataset, store, wish, clock=SystemClock(), watcher=bar))
    for part in built.parts:
        place = args.handover or config.store / "batches"
        name = f"llmrec-{part.uuid}.jsonl" if args.handover else f"{part.uuid}.jsonl"
        print(f"{place / name}: {part.n:,} requests, {part.size:,} bytes")
    if not built.parts:
        print("nothing waits to be sent")
    if built.too_large:
        print(f"{built.too_large:,} requests are larger than `--max-bytes`; `run` sends them")
    if built.no_budget is not None:
        print(f"left out: {built.no_budget}")
    if built.parts:
        print(_next_step(args, config))


def _next_step(args: argparse.Namespace, config: AugmentConfig) -> str:
    if args.handover is None:
        return f"next: python -m augment batch poll --wait --store {config.store}"
    return (
        "next: have each file answered, `vllm run-batch -i FILE -o FILE.out --model MODEL`, then "
        f"python -m augment batch ingest --store {config.store} FILE.out"
    )


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmg]?b?)", text.strip().lower())
    unit = found[2] if found else ""
    scale = _UNITS.get(unit if unit in _UNITS else f"{unit}b")
    if found is None or scale is None or not int(found[1]):
        raise ConfigError(f"cannot read the size {text!r}; write it as 200MB or 1000000.")
    return int(found[1]) * scale


# The Batch API -----------------------------------------------------------------------------


async def _remote(args: argparse.Namespace, config: AugmentConfig, store: Store) -> None:
    from augment.batch import TO_POLL, TO_SUBMIT, Batches
    from augment.batch_wait import wait
    from augment.clock import SystemClock
    from augment.redact import read_key
    from augment.remote_batches import RemoteBatches
    from augment.store.parts import PartState

    name = config.provider.key_env
    key = read_key(name) if name else None
    remote = RemoteBatches(config.provider, key=key)
    batches = Batches(
        store,
        remote,
        clock=SystemClock(),
        say=lambda text: print(text, flush=True),
        most_enqueued=getattr(args, "max_enqueued_tokens", None),
        delete_remote=getattr(args, "delete_remote", False),
        key=key,
    )
    under_way = (PartState.UPLOADING, PartState.CREATING)
    try:
        if args.action == "poll" and args.wait:
            parts = _parts(store, args.names, (*TO_SUBMIT, *TO_POLL))
            await wait(batches, parts)
        elif args.action == "submit":
            await _each(batches.submit, _parts(store, args.names, TO_SUBMIT))
        elif args.action == "poll":
            await _each(batches.poll, _parts(store, args.names, (*TO_POLL, *under_way)))
        elif args.action == "adopt":
            await _each(batches.adopt, _parts(store, args.names, under_way))
        else:
            if not args.names:
                raise ConfigError("which batch? Name its part; `batch list` shows them.")
            await _each(batches.cancel, _parts(store, args.names, ()))
    finally:
        await remote.close()
    _told_all(batches)


async def _each(step: Callable[[Part], Awaitable[Part]], parts: list[Part]) -> None:
    """Do a step with each part; a failure of one does not keep the others waiting."""
    from augment.errors import AuthStop
    from augment.remote_batches import RemoteError

    failures: list[RemoteError | AugmentationError] = []
    for part in parts:
        try:
            now = await step(part)
        except (RemoteError, AugmentationError) as error:
            failures.append(error)
            print(f"{part.uuid}: {error}")
        else:
            remote = f", {now.remote_status}" if now.remote_status else ""
            print(f"{now.uuid}: {now.state.value}{remote}")
    if not parts:
        print("no part waits for this; see `python -m augment batch list`")
    if any(isinstance(e, RemoteError) and e.status in (401, 403) for e in failures):
        raise AuthStop("the provider refuses the key; no part is lost, run the command again.")
    if failures:
        raise failures[-1]


def _parts(store: Store, names: list[str], states: tuple[PartState, ...]) -> list[Part]:
    from augment.store.parts import list_parts, read_part

    if names:
        return [store.do(lambda db, name=name: read_part(db, name)) for name in names]  # type: ignore[misc]
    return store.do(lambda db: list_parts(db, states))


def _told_all(batches: Batches) -> None:
    for uuid, found in batches.ingested.items():
        print(f"{uuid}:")
        _told(found)


# Answer files ------------------------------------------------------------------------------


def _ingest(args: argparse.Namespace, store: Store) -> None:
    from augment.batch_ingest import Ingest, finish_handed
    from augment.clock import SystemClock
    from augment.store.parts import read_part
    from llmrec_pl.progress import ProgressReport

    if not args.names and not (args.final and args.part):
        raise ConfigError("which files? Name at least one, or say `--part PART --final`.")
    clock = SystemClock()
    part = None
    if args.part is not None:
        part = store.do(lambda db: read_part(db, args.part)).uuid
    with (
        ProgressReport("taking in answers", None, "lines") as bar,
        Ingest(store, clock=clock, part=part) as ingest,
    ):
        for name in args.names:
            ingest.file(Path(name), bar.advance)
        given_up = 0
        if args.final:
            for uuid in [part] if part else list(ingest.found.parts):
                given_up += finish_handed(store, ingest, uuid, clock=clock)
    _told(ingest.found)
    if args.final:
        print(f"{given_up:,} requests were not answered and are planned again")
    if args.names and not ingest.found.parts:
        raise AugmentationError(
            f"no line of {', '.join(args.names)} answers a request of a part of this store; is it "
            "the right store, and has each line its `custom_id`?"
        )


def _told(found: Ingested) -> None:
    print(f"{found.lines:,} lines, {found.settled:,} requests brought forward")
    for (state, code), n in found.states.most_common():
        print(f"  {n:,} {state.name.lower()} ({code})")
    for n, text in (
        (found.again, "lines were taken in before"),
        (found.duplicates, "lines answer a request a second time"),
        (found.unknown, "lines are about requests of no part of this store"),
        (found.n_bad, "lines say nothing usable"),
    ):
        if n:
            print(f"  {n:,} {text}")
    for line in found.bad:
        print(f"    line {line.number}: {line.reason}")


def _discard(args: argparse.Namespace, store: Store) -> None:
    from augment.batch_ingest import discard
    from augment.clock import SystemClock

    if not args.names:
        raise ConfigError("which part? Name it; `batch list` shows them.")
    for part in _parts(store, args.names, ()):
        n = discard(store, part, clock=SystemClock(), lost=args.lost)
        print(f"{part.uuid}: {n:,} requests are planned again")


def _list(folder: Path, *, as_json: bool) -> None:
    import contextlib
    from datetime import UTC, datetime

    from rich.markup import escape
    from rich.table import Table

    from augment.money import format_usd
    from augment.store import AttemptState, open_readonly
    from augment.store.parts import count_lines, list_parts
    from augment.tables import print_whole

    with contextlib.closing(open_readonly(folder)) as db:
        parts = [(part, count_lines(db, part.uuid)) for part in list_parts(db)]
    if as_json:
        rows = []
        for part, counts in parts:
            plain = dataclasses.asdict(part)
            hashes = {k: v.hex() for k, v in plain.items() if isinstance(v, bytes)}
            lines = {state.name.lower(): n for state, n in counts.items()}
            rows.append({**plain, **hashes, "lines": lines})
        print(json.dumps(rows, indent=1))
        return
    table = Table(title=escape(f"parts in {folder}"), title_justify="left")
    for column in ("part", "state", "since (UTC)"):
        table.add_column(column, no_wrap=True)  # `cancel` and `discard` are given the part
    table.add_column("remote", overflow="fold")
    for column in ("lines", "open", "answered", "reserved"):
        table.add_column(column, justify="right")
    for part, counts in parts:
        since = datetime.fromtimestamp(part.t / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        remote = f"{part.remote_id or ''} {part.remote_status or ''}".strip()
        waiting = counts.get(AttemptState.INTENT, 0)
        answered, reserved = counts.get(AttemptState.OK, 0), format_usd(part.reserved_pusd)
        told = (part.uuid, part.state.value, since, escape(remote))
        table.add_row(*told, f"{part.n:,}", f"{waiting:,}", f"{answered:,}", reserved)
    print_whole(wide_console(), table)
