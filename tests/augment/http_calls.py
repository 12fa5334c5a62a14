"""Calls to the fault server through the real client."""

from __future__ import annotations

import asyncio

from augment.client import HttpAnswerer
from augment.config import Provider
from augment.wire import Call

KEY = "sk-live-0123456789abcdef"
SCHEMA = {
    "type": "object",
    "properties": {
        "most_liked": {"type": "integer", "enum": [1, 2, 3]},
        "least_liked": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["most_liked", "least_liked"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": SCHEMA}}


def provider(*urls, **other):
    values = {"name": "local", "label": "toy", "base_urls": list(urls), "timeout_s": 5.0}
    return Provider(**{**values, **other})


def chat(text="ask", **other):
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 64}
    return Call("chat.completions", {**body, **other}, (b"key",))


class Journal(list):
    """What was journalled, and that it was whole before `send` returned."""

    def __call__(self, body):
        self.append(body)


def send(server, *calls, key=None, **other):
    """Send calls one after the other; return the replies and what was journalled."""
    journal = Journal()

    async def work():
        answerer = HttpAnswerer(provider(server.url, **other), key=key)
        try:
            return [await answerer.send(call, journal) for call in calls or (chat(),)]
        finally:
            await answerer.close()

    return asyncio.run(work()), journal
