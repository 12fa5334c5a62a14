"""The command line of stage 1: a table of plain commands, imported when they are called."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from augment.errors import AugmentStop
from augment.redact import redact
from llmrec_pl.errors import LLMRecError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": "ask what is not answered yet, then export",
    "status": "what is planned, answered, failed and spent; also during a run",
    "estimate": "what a run would ask and cost; sends nothing",
    "cost": "what was paid for, by task, model and temperature; audit of the ledger",
    "budget": "show or set the store's budget",
    "unknown": "calls whose outcome nobody knows: list, release, retry",
    "retry-failed": "open quarantined requests again",
    "export": "write the folder that the trainer reads",
    "cassette": "write all replies as one portable file, or check one",
    "replay": "run a cassette through the whole engine, without a network",
    "serve-local": "start a local server with a small real model",
    "doctor": "check store, disk, versions and key",
}
_MODULES = {"serve-local": "augment.local_server"}
_USAGE = "usage: python -m augment COMMAND [options]\n"


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; errors end with one line and the status that names their kind."""
    arguments = sys.argv[1:] if args is None else list(args)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    name = arguments[0]
    if name not in COMMANDS:
        sys.stderr.write(f"{_USAGE}unknown command {name!r}; see --help.\n")
        sys.exit(2)
    try:
        run_command(name, arguments[1:])
    except AugmentStop as stop:
        sys.stderr.write(redact(f"stopped: {stop}\n"))
        sys.exit(stop.exit_code)
    except LLMRecError as error:
        sys.stderr.write(redact(f"error: {error}\n"))
        sys.exit(1)
    except OSError as error:
        hint = "check the path, its permissions and the free space."
        sys.stderr.write(redact(f"error: {error}; {hint}\n"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped.\n")
        sys.exit(130)


def run_command(name: str, arguments: list[str]) -> None:
    """Run one command; its module is imported only now."""
    module = import_module(_MODULES.get(name, f"augment.commands.{name.replace('-', '_')}"))
    parser = argparse.ArgumentParser(
        prog=f"python -m augment {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    module.run(parser.parse_args(arguments))


def _help() -> str:
    lines = [_USAGE, "Ask an LLM for edges, profiles and attributes; lose nothing, pay once.\n"]
    lines += [f"  {name:<14}{text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "Each command has its own --help. Without a key, then with one:",
        "  python -m augment run --config configs/augment/ml-100k.yaml",
        "  python -m augment run --config configs/augment/ml-100k.yaml --provider openai "
        "--max-usd 2",
        "",
        "Keys come from the environment only (OPENAI_API_KEY, or `provider.key_env`).",
    ]
    return "\n".join(lines)
