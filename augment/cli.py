"""The command line of stage 1: a table of plain commands, imported when they are called."""

from __future__ import annotations

import argparse
import logging
import os
import sqlite3
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from augment.errors import AugmentStop
from augment.redact import RedactingFilter, redact
from llmrec_pl.errors import LLMRecError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "init": "write a config for a data set",
    "estimate": "what a run would ask and cost; sends nothing",
    "plan": "write what is to be asked into the store; sends nothing",
    "run": "ask what is not answered yet, then export",
    "status": "what is planned, answered, failed and spent; also during a run",
    "export": "write the folder that the trainer reads",
    "report": "look at the quality of what was answered",
    "cost": "what was paid for, by task, model and temperature; audit of the ledger",
    "budget": "show or set the store's budget",
    "unknown": "calls whose outcome nobody knows: list, release, retry",
    "retry-failed": "open quarantined requests again",
    "revalidate": "judge stored replies again; sends nothing",
    "batch": "ask by the Batch API, or by files for an offline server",
    "cassette": "write all replies as one portable file, or check one",
    "replay": "run a cassette through the whole engine, without a network",
    "serve-local": "start a local server with a small real model",
    "doctor": "check store, disk, versions and key",
}
_MODULES = {"serve-local": "augment.local_server"}
_USAGE = "usage: python -m augment COMMAND [options]\n"
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET")


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; errors end with one line and the status that names their kind."""
    arguments = sys.argv[1:] if args is None else list(args)
    if not arguments or arguments[0] in ("-h", "--help"):
        try:
            print(_help(), flush=True)
        except BrokenPipeError:  # `| head` has seen enough
            _close_output()
        return
    name = arguments[0]
    if name == "--version":
        from llmrec_pl import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        _say(f"{_USAGE}unknown command {name!r}; see --help.")
        sys.exit(2)
    # before `openai` sets up its own handlers, which would not redact
    handler = logging.StreamHandler()
    handler.addFilter(RedactingFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        run_command(name, arguments[1:])
    except AugmentStop as stop:
        _say(f"stopped: {_one_line(stop)}")
        sys.exit(stop.exit_code)
    except LLMRecError as error:
        _say(f"error: {_one_line(error)}")
        sys.exit(1)
    except BrokenPipeError:  # `| head` has seen enough
        _close_output()
        sys.exit(1)
    except OSError as error:
        _say(f"error: {_one_line(error)}; check the path, its permissions and the free space.")
        sys.exit(1)
    except sqlite3.DatabaseError as error:
        _say(f"error: the store cannot be read: {_one_line(error)}; see `doctor`.")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("stopped.")
        sys.exit(130)


def _close_output() -> None:
    """Let nothing more be written into a pipe that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: BaseException) -> str:
    return str(error).replace("\n", " ")


def _say(text: str) -> None:
    """Write to standard error, without keys."""
    named = (v for k, v in os.environ.items() if k.upper().endswith(_SECRET_NAMES))
    secrets = [value.strip() for value in named if len(value.strip()) >= 8]
    sys.stderr.write(redact(text, secrets) + "\n")


def run_command(name: str, arguments: list[str]) -> None:
    """Run one command; its module is imported only now.

    Args:
        name: a key of `COMMANDS`.
        arguments: what stands after the name on the command line.
    """
    _module_of(name).run(parser_of(name).parse_args(arguments))


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    module = _module_of(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m augment {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _module_of(name: str) -> Any:  # noqa: ANN401  # modules of commands have no common type
    return import_module(_MODULES.get(name, f"augment.commands.{name.replace('-', '_')}"))


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
