"""A proxy in front of a real server that loses, delays and damages replies, and counts them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("too_many", "broken", "lost_before", "lost_after", "cut")
"""429 with Retry-After, 500, a reset before the server saw it or after it answered, cut JSON."""


@dataclass
class Post:
    """One POST: its body, what was done to it, and the 200 body that went back whole or cut."""

    body: bytes
    fault: str | None
    reply: bytes | None = None

    @property
    def usage(self):
        """Tokens in and out as the server counted them; zeros where it gave no readable answer."""
        try:
            said = json.loads(self.reply or b"{}").get("usage", {})
        except ValueError:
            said = {}
        return said.get("prompt_tokens", 0), said.get("completion_tokens", 0)


class FaultProxy:
    """Forwards to one server; a body meets at most one fault, on its first POST.

    Args:
        upstream: base URL of the server.
        share: of the bodies that meet a fault.
        seed: of the choice.
    """

    def __init__(self, upstream: str, share: float = 0.0, seed: int = 0) -> None:
        self.posts: list[Post] = []
        self.upstream, self._share, self._random = urlsplit(upstream), share, random.Random(seed)
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                # A client that was killed is no error here.
                with contextlib.suppress(ConnectionError):
                    proxy._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        with self._lock:
            first = body not in self._seen
            self._seen.add(body)
            faulty = first and self._random.random() < self._share
            fault = self._random.choice(FAULTS) if faulty else None
            post = Post(body, fault)
            self.posts.append(post)
        if fault == "too_many":
            _answer(handler, 429, b'{"error": {"message": "slow down"}}', **{"retry-after": "1"})
        elif fault == "broken":
            _answer(handler, 500, b'{"error": {"message": "out of order"}}')
        elif fault == "lost_before":
            _reset(handler)
        else:
            status, reply = self._ask(handler.path, body)
            if fault == "lost_after":
                _reset(handler)
                return
            if fault == "cut":
                reply = reply[: len(reply) // 2]
            post.reply = reply if status == 200 else None
            _answer(handler, status, reply)

    def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        link = http.client.HTTPConnection(self.upstream.hostname, self.upstream.port, timeout=120)
        with contextlib.closing(link):
            link.request("POST", path, body, {"content-type": "application/json"})
            reply = link.getresponse()
            return reply.status, reply.read()


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"content-type": "application/json", **headers}.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    linger = struct.pack("ii", 1, 0)  # closing sends RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    handler.connection.close()
