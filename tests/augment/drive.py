"""Runs the engine on a plan of plain requests, as a process of its own that a test may kill.

    python -m tests.augment.drive STORE --url http://127.0.0.1:PORT/v1 --n 200 --concurrency 8

No data set is needed: request number i asks "ask i". What it says at the end is one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time

from augment.budget import set_cap
from augment.client import HttpAnswerer
from augment.clock import SystemClock
from augment.config import Provider
from augment.engine import Engine
from augment.errors import AugmentStop
from augment.faults import point
from augment.judge import Policy
from augment.limits import Limits
from augment.meter import Meter
from augment.money import load_prices
from augment.plan_rows import plan_row
from augment.recover import recover
from augment.schemas import response_format
from augment.specs import TaskSpec, Wanted
from augment.store import Store, add_spec, plan, price_id
from augment.store.claims import count_open

BLOCK = 5_000


def plain_spec(kind="pairs", **other):
    values = {
        "kind": kind,
        "provider": "toy",
        "endpoint": "embeddings" if kind == "embed" else "chat.completions",
        "model": "gpt-4o-mini" if kind != "embed" else "text-embedding-3-small",
        "params": {"temperature": 0.6, "max_tokens": 64},
        "prompt_set": "" if kind == "embed" else "strict-1",
        "structured": "json_schema",
        "validator": f"{kind}/strict-1/1" if kind != "embed" else "embed/1",
        "dataset_fp": "none",
        "settings": {"n_candidates": 10, "max_tokens_ceiling": 256},
    }
    return TaskSpec(**{**values, **other})


def plain_row(spec, number, text=None, form=None):
    if spec.kind == "embed":
        body = {"model": spec.model, "input": text or f"text {number}", "encoding_format": "base64"}
        return plan_row(spec, Wanted(number, 0, body))
    body = {
        "model": spec.model,
        "messages": [{"role": "user", "content": text or f"ask {number}"}],
        "response_format": form or response_format(spec),
        **spec.params,
    }
    context = {"shown": list(range(10)), "ids": [str(i) for i in range(10)], "history": []}
    return plan_row(spec, Wanted(number, 0, body, context))


def plan_all(store, spec, n):
    spec_id, planned = store.do(lambda db: add_spec(db, spec, 0))
    if not planned:
        form = None if spec.kind == "embed" else response_format(spec)
        for start in range(0, n, BLOCK):
            some = range(start, min(n, start + BLOCK))
            rows = [plain_row(spec, i, form=form) for i in some]
            store.do(lambda db, rows=rows: plan(db, spec_id, rows))
            point("planned")
        store.do(lambda db: db.execute("UPDATE spec SET planned = 1").rowcount)
    return spec_id


async def work(store, spec, spec_id, args):
    clock = SystemClock()
    provider = Provider(
        name="local",
        label="toy",
        base_urls=args.url,
        chat_model=spec.model,
        concurrency=args.concurrency,
        timeout_s=args.timeout,
        read_timeout_s=args.read_timeout,
    )
    price = load_prices(None).find(spec.model, "sync") if args.priced else None
    if args.cap is not None:
        store.do(lambda db: set_cap(db, args.cap))
    run = store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
    answerer, meter = HttpAnswerer(provider, key=None), Meter()
    engine = Engine(
        store,
        spec_id,
        spec,
        answerer,
        Limits(
            clock,
            rpm=args.rpm,
            tpm=None,
            concurrency=args.concurrency,
            max_wait_s=args.max_wait,
            start=args.start,
        ),
        run=run,
        clock=clock,
        concurrency=args.concurrency,
        price=price,
        price_row=None if price is None else store.do(lambda db: price_id(db, price)),
        policy=Policy(max_unknowns=args.max_unknowns, max_tries=args.max_tries),
        max_reject_rate=1.0,
        meter=meter,
    )
    watch = asyncio.create_task(stop_after(engine, args.stop_after))
    begin = time.perf_counter()
    try:
        await engine.run()
    finally:
        watch.cancel()
        await answerer.close()
    return meter, time.perf_counter() - begin


async def stop_after(engine, n):
    while n is None or engine.meter.finished < n:
        await asyncio.sleep(0.05)
    engine.stop(asyncio.CancelledError())


def watch_commits(store, seconds):
    """Note how long each change takes from being asked for to being on disk."""
    put = store.put

    def timed(operation):
        begin = time.perf_counter()
        future = put(operation)
        future.add_done_callback(lambda _: seconds.append(time.perf_counter() - begin))
        return future

    store.put = timed


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--url", action="append", required=True)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--stop-after", type=int, metavar="N", help="leave after N answers")
    parser.add_argument("--commits", action="store_true", help="time the commits")
    parser.add_argument("--kind", default="pairs")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--start", type=int, default=8)
    parser.add_argument("--rpm", type=float)
    parser.add_argument("--cap", type=int)
    parser.add_argument("--priced", action="store_true")
    parser.add_argument("--timeout", type=float, default=20)
    parser.add_argument("--read-timeout", type=float, default=10)
    parser.add_argument("--max-wait", type=float, default=60)
    parser.add_argument("--max-unknowns", type=int, default=1)
    parser.add_argument("--max-tries", type=int, default=5)
    args = parser.parse_args(argv)
    spec, opened = plain_spec(args.kind), time.perf_counter()
    status = 0
    commits = []
    with Store(args.store, create=True) as store:
        if args.commits:
            watch_commits(store, commits)
        policy = Policy(max_unknowns=args.max_unknowns, max_tries=args.max_tries)
        found = recover(store, policy, 0)
        spec_id = plan_all(store, spec, args.n)
        left = store.do(lambda db: count_open(db, spec_id))
        ready = time.perf_counter() - opened
        said = {"recovered": [found.from_spool, found.adopted, found.unknown], "left": left}
        try:
            meter, seconds = asyncio.run(work(store, spec, spec_id, args))
            said |= {"sent": meter.sent, "seconds": seconds}
        except AugmentStop as stop:
            status = stop.exit_code
            said |= {"stop": type(stop).__name__, "message": str(stop)}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    if commits:
        said["commit_ms"] = {p: 1000 * sorted(commits)[int(p * len(commits))] for p in (0.5, 0.99)}
    said |= {"rss_mb": usage.ru_maxrss / 1024, "cpu_s": cpu, "ready_s": ready}
    print(json.dumps(said), flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
