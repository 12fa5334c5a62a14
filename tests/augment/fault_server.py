"""An OpenAI-compatible server that fails as told, in this process or as one of its own.

    python -m tests.augment.fault_server --script '["error_500", {"do": "ok", "latency": 0.5}]' \
        --log posts.jsonl

prints its base URL on the first line. A script is a list of steps (see fault_replies.as_step), its
last one served for ever, or in-process a function of (number from 0, body). Each POST is logged
when it comes and when it is over, so that the bill can be audited after the client was killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import socket
import struct
import threading
import time
from pathlib import Path

from augment.specs import canonical_json
from tests.augment.fault_replies import JSON, KEY, as_step, error, reply_body

_LINGER_0 = struct.pack("ii", 1, 0)  # close sends RST
_REASONS = {200: "OK", 307: "Temporary Redirect", 429: "Too Many Requests"}


def digest(body):
    """Return the name of a body in the log."""
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def read_log(path):
    """Return the POSTs of a log file; `end` is None where none was written."""
    posts = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        posts.setdefault(entry["n"], {"end": None}).update(entry)
    return [posts[n] for n in sorted(posts)]


def bill(posts):
    """Return (prompt tokens, completion tokens) that the server charges for."""
    charged = [post["usage"] for post in posts if post.get("usage")]
    return (
        sum(usage["prompt_tokens"] for usage in charged),
        sum(usage.get("completion_tokens", 0) for usage in charged),
    )


class FaultServer:
    """Serves a script on a loopback port, in a thread of its own.

    Args:
        script: list of steps or function of (number, body); valid answers by default.
        log: file that gets a JSON line at the start and at the end of each POST.
        rpm: refuse, with 429, what comes faster; a bucket that holds `burst` requests.
        burst: size of the bucket; one second's worth by default.
        routes: function of (method, path, headers, raw body) that answers everything but chat and
            embeddings with (status, headers, body), or None for 404.
        port: 0 takes a free one.
    """

    def __init__(self, script=(), *, log=None, rpm=None, burst=None, routes=None, port=0):
        self._script, self._routes = _script(script), routes
        self._log = None if log is None else Path(log).open("a", encoding="utf-8")  # noqa: SIM115
        self._rate = None if rpm is None else rpm / 60
        self._burst = burst if burst is not None else max(1.0, self._rate or 0.0)
        self._tokens, self._filled = self._burst, time.monotonic()
        self.port, self.posts, self.in_flight, self.most_in_flight = port, [], 0, 0
        self._count = itertools.count()
        self._loop = self._thread = self._server = None
        self._tasks = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bill(self):
        return bill(self.posts)

    # As a thread ---------------------------------------------------------------------------

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self.listen())
        return self

    def __exit__(self, *_):
        self._call(self.hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._log is not None:
            self._log.close()

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def down(self):
        """Refuse connections until `up`."""
        self._call(self.hang_up())

    def up(self):
        """Listen again on the same port."""
        self._call(self.listen())

    # In a loop -----------------------------------------------------------------------------

    async def listen(self):
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, backlog=1024, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def hang_up(self):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _request(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        raw = await _read_body(reader, headers)
        path = target.partition("?")[0]
        if method != "POST" or not path.endswith(("/chat/completions", "/embeddings")):
            return await self._other(writer, method, target, headers, raw)
        body = json.loads(raw)
        number = next(self._count)
        step = self._limit() or as_step(self._script(number, body))
        peer = writer.get_extra_info("peername")[1]
        post = self._begin(number, target, peer, headers, body, step)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if step.latency:
                await asyncio.sleep(step.latency)
            payload, usage = reply_body(step, path, body, number)
            if KEY.encode() in payload:
                payload = payload.replace(KEY.encode(), _key(headers).encode())
            post["usage"] = usage if step.charged else None
            return await _ACTIONS.get(step.do, _answer)(reader, writer, step, payload, post)
        except (ConnectionError, asyncio.CancelledError):
            post["outcome"] = "client_gone"
            raise
        finally:
            self.in_flight -= 1
            self._end(post)

    async def _other(self, writer, method, target, headers, raw):
        found = None if self._routes is None else self._routes(method, target, headers, raw)
        status, extra, payload = found or (404, {}, b'{"error":{"message":"no such path"}}')
        writer.write(_head(status, {"content-type": JSON, **extra}, len(payload)) + payload)
        await writer.drain()
        return True

    def _limit(self):
        if self._rate is None:
            return None
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return None
        wait = (1 - self._tokens) / self._rate
        return error(429, "rate_limit_exceeded", headers={"retry-after": f"{wait:.3f}"})

    def _begin(self, number, target, peer, headers, body, step):
        texts = body.get("input", [])
        post = {
            "n": number,
            "t": time.monotonic(),
            "path": target,
            "peer": peer,
            "digest": digest(body),
            "texts": [texts] if isinstance(texts, str) else texts,
            "do": step.do,
            "status": step.status,
            "sent": 0,
            "usage": None,
            "end": None,
        }
        self.posts.append({**post, "headers": headers, "body": body})
        self._write(post)
        return self.posts[-1]

    def _end(self, post):
        post["end"] = time.monotonic()
        post.setdefault("outcome", post["do"])
        self._write({name: post[name] for name in ("n", "end", "outcome", "sent", "usage")})

    def _write(self, entry):
        if self._log is not None:
            self._log.write(json.dumps(entry) + "\n")
            self._log.flush()


def _script(script):
    if callable(script):
        return script
    steps = [step for given in script or ["ok"] for step in [as_step(given)] * as_step(given).times]
    return lambda number, _body: steps[min(number, len(steps) - 1)]


async def _read_body(reader, headers):
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def _key(headers):
    return headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")


def _head(status, headers, length=None):
    if length is not None:
        headers = {**headers, "content-length": str(length)}
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Scripted')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _headers(step, post):
    return {"content-type": JSON, "x-request-id": f"req-{post['n']}", **step.headers}


async def _answer(_reader, writer, step, payload, post):
    await _send(writer, _head(step.status, _headers(step, post), len(payload)) + payload, post)
    return True


async def _drip(_reader, writer, step, payload, post):
    await _send(writer, _head(step.status, _headers(step, post), len(payload)), post)
    for byte in payload:
        await asyncio.sleep(step.every)
        await _send(writer, bytes([byte]), post)
    return True


async def _hang(reader, _writer, _step, _payload, _post):
    await reader.read(1)  # until the client goes
    raise ConnectionResetError


async def _reset(_reader, writer, _step, _payload, _post):
    _hard_close(writer)
    return False


async def _fin(_reader, writer, _step, _payload, _post):
    await _soft_close(writer)
    return False


async def _reset_body(_reader, writer, step, payload, post):
    await _half(writer, step, payload, post)
    # A reset discards what the peer has not read yet: let it read the half first.
    await asyncio.sleep(0.05)
    _hard_close(writer)
    return False


async def _fin_body(_reader, writer, step, payload, post):
    await _half(writer, step, payload, post)
    await _soft_close(writer)
    return False


async def _truncated_chunk(_reader, writer, step, payload, post):
    chunked = _head(step.status, {**_headers(step, post), "transfer-encoding": "chunked"})
    chunked += f"{len(payload):x}\r\n".encode() + payload[: len(payload) // 2]
    await _send(writer, chunked, post)
    await _soft_close(writer)
    return False


async def _bad_gzip(_reader, writer, step, payload, post):
    headers = {**_headers(step, post), "content-encoding": "gzip"}
    await _send(writer, _head(step.status, headers, len(payload)) + payload, post)
    return True


async def _bad_status_line(_reader, writer, _step, payload, post):
    await _send(writer, b"HTTP/1.1 two-hundred fine\r\n\r\n" + payload, post)
    await _soft_close(writer)
    return False


async def _half(writer, step, payload, post):
    head = _head(step.status, _headers(step, post), len(payload))
    await _send(writer, head + payload[: len(payload) // 2], post)


async def _send(writer, data, post):
    writer.write(data)
    await writer.drain()
    post["sent"] += len(data)


def _hard_close(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    writer.transport.abort()


async def _soft_close(writer):
    writer.close()
    await writer.wait_closed()


_ACTIONS = {
    "drip": _drip,
    "hang": _hang,
    "reset": _reset,
    "fin": _fin,
    "reset_body": _reset_body,
    "fin_body": _fin_body,
    "truncated_chunk": _truncated_chunk,
    "bad_gzip": _bad_gzip,
    "bad_status_line": _bad_status_line,
}


async def _forever(server):
    await server.listen()
    print(server.url, flush=True)
    await asyncio.Event().wait()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script", default="[]", help="JSON list of steps, or @FILE")
    parser.add_argument("--log")
    parser.add_argument("--rpm", type=float)
    parser.add_argument("--burst", type=float)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args(argv)
    text = args.script
    if text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8")
    server = FaultServer(
        json.loads(text), log=args.log, rpm=args.rpm, burst=args.burst, port=args.port
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_forever(server))


if __name__ == "__main__":
    main()
