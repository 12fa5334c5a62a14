"""How fast stage 1 asks, and what it keeps in memory, against a toy server on loopback.

Four questions, each answered by a ratio: which share of C/L calls a second (C in flight, latency
L) it reaches, which share of a rate limit and with how many refusals, how memory grows with the
plan, and how long a restart takes. Client and server are processes of their own.

    python -m benchmarks.augment_engine
    python -m benchmarks.augment_engine --quick --out quick.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.trials import write_json
from tests.augment.fault_server import read_log

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
LATENCY = [(64, 1.0, 0.92), (64, 0.5, 0.85), (256, 2.0, 0.80)]
"""Calls in flight, latency of the server in seconds, share of C/L to reach."""
ROUNDS = 20
RPM, RATE_SECONDS, RATE_SHARE = 1200, 60, 0.97
PLANS = (100_000, 1_000_000)
SENT = 20_000
MOST_MB, MOST_RESUME_S = 200, 3.0
console = Console(width=None if Console().is_terminal else 120)


def main() -> None:
    """Measure, print the tables, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/augment_engine.json"),
        metavar="FILE",
        help="figures go there, a picture beside it (%(default)s)",
    )
    args = parser.parse_args()
    found = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "python": platform.python_version(),
        "latency": [latency(*row, 2 if args.quick else ROUNDS) for row in LATENCY],
        "rate": rate(3 if args.quick else RATE_SECONDS),
        "memory": memory((2_000, 20_000) if args.quick else PLANS, 500 if args.quick else SENT),
    }
    show(found)
    write_json(args.out, found)
    plot(found, args.out.with_suffix(".png"))
    console.print(f"written to {args.out} and {args.out.with_suffix('.png')}", highlight=False)


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """Start the toy server in a process of its own; yields its address."""
    command = [sys.executable, "-m", "tests.augment.fault_server", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # asked for
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def drive(store: Path, url: str, **options: object) -> dict[str, Any]:
    """Run the engine in a process of its own; returns what it says at the end."""
    command = [sys.executable, "-m", "tests.augment.drive", str(store), "--url", url, "--commits"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"the engine failed: {run.stderr}")
    said: dict[str, Any] = json.loads(run.stdout)
    return said


def latency(concurrency: int, seconds: float, target: float, rounds: int) -> dict[str, Any]:
    """Measure the share of C/L that is reached."""
    n = concurrency * rounds
    script = json.dumps([{"do": "ok", "latency": seconds}])
    with tempfile.TemporaryDirectory() as folder, server("--script", script) as url:
        said = drive(
            Path(folder), url, n=n, concurrency=concurrency, start=concurrency, priced=True
        )
    return {
        "concurrency": concurrency,
        "latency_s": seconds,
        "requests": n,
        "per_second": n / said["seconds"],
        "share": n / said["seconds"] / (concurrency / seconds),
        "target": target,
        "cpu_ms": 1000 * said["cpu_s"] / n,
        "commit_ms": said["commit_ms"],
        "rss_mb": said["rss_mb"],
    }


def rate(seconds: int) -> dict[str, Any]:
    """Measure the share of a rate that is reached, of a server that refuses what is faster."""
    n = RPM * seconds // 60
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "posts.jsonl"
        script = json.dumps([{"do": "ok", "latency": 0.2}])
        options = ("--script", script, "--rpm", str(RPM), "--log", str(log))
        with server(*options) as url:
            said = drive(Path(folder) / "store", url, n=n, concurrency=64, rpm=RPM, priced=True)
        posts = read_log(log)
    return {
        "rpm": RPM,
        "requests": n,
        "share": n / said["seconds"] / (RPM / 60),
        "target": RATE_SHARE,
        "refused": sum(post.get("status") == 429 for post in posts),
        "posts": len(posts),
    }


def memory(plans: tuple[int, ...], sent: int) -> list[dict[str, Any]]:
    """Measure memory after `sent` answers of a plan, and how soon a second run is ready."""
    rows = []
    for n in plans:
        common: dict[str, object] = {"n": n, "concurrency": 64, "start": 64, "priced": True}
        with tempfile.TemporaryDirectory() as folder, server() as url:
            first = drive(Path(folder), url, stop_after=sent, **common)
            again = drive(Path(folder), url, stop_after=100, **common)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        rows.append(
            {
                "planned": n,
                "sent": first["sent"],
                "plan_s": first["ready_s"],
                "rss_mb": first["rss_mb"],
                "resume_s": again["ready_s"],
                "resume_rss_mb": again["rss_mb"],
                "bytes_a_row": size / n,
            }
        )
    return rows


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table(
        "in flight", "latency", "calls/s", "of C/L", "target", "CPU a call", "commit p50 / p99"
    )
    for row in found["latency"]:
        commit = " / ".join(f"{value:.1f}" for value in row["commit_ms"].values())
        table.add_row(
            str(row["concurrency"]),
            f"{row['latency_s']:g} s",
            f"{row['per_second']:.0f}",
            f"{row['share']:.3f}",
            f"{row['target']:.2f}",
            f"{row['cpu_ms']:.1f} ms",
            f"{commit} ms",
        )
    console.print(table)
    row = found["rate"]
    console.print(
        f"at {row['rpm']} requests a minute: {row['share']:.3f} of the rate (target "
        f"{row['target']}), {row['refused']} of {row['posts']} refused",
        highlight=False,
    )
    table = Table("planned", "answered", "planning", "memory", "restart", "on disk")
    for row in found["memory"]:
        table.add_row(
            f"{row['planned']:,}",
            f"{row['sent']:,}",
            f"{row['plan_s']:.1f} s",
            f"{row['rss_mb']:.0f} MB",
            f"{row['resume_s']:.2f} s",
            f"{row['bytes_a_row']:.0f} B a row",
        )
    console.print(table)
    console.print(f"targets: at most {MOST_MB} MB, restart within {MOST_RESUME_S:g} s")


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the shares against their targets, and memory over the size of the plan."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    bars = [(f"{r['concurrency']} in flight,\n{r['latency_s']:g} s", r) for r in found["latency"]]
    bars.append((f"{found['rate']['rpm']} calls\na minute", found["rate"]))
    for place, (_, row) in enumerate(bars):
        left.bar(place, row["share"], color="#1f5fa8", width=0.55)
        left.plot([place - 0.4, place + 0.4], [row["target"]] * 2, color="#c2410c", lw=2)
        left.annotate(f"{row['share']:.2f}", (place, row["share"]), (0, 3), ha="center",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    left.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    left.set_ylim(0, 1.2)
    left.set_title("share of the possible calls a second; lines: targets", loc="left", fontsize=9)
    sizes = [row["planned"] for row in found["memory"]]
    right.plot(sizes, [row["rss_mb"] for row in found["memory"]], "o-", color="#1f5fa8")
    right.axhline(MOST_MB, color="#c2410c", lw=2)
    right.set(xscale="log", xlabel="planned requests", ylim=(0, 1.15 * MOST_MB))
    right.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    right.set_xticks([], minor=True)
    right.set_title("memory of the process, MB; line: target", loc="left", fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
