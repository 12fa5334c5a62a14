"""Sends over HTTP; the only file that knows the `openai` package.

The package brings authentication, Azure routing and connection pools. Retries are ours: it would
repeat a POST after a read timeout, which may be paid twice. Raw bodies are taken as they come,
without its models in between.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from augment.redact import Secret, check_base_url, read_key
from augment.wire import Call, Reply
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from augment.config import Provider

_PATHS = {"chat.completions": "/chat/completions", "embeddings": "/embeddings"}
_PER_POOL = 32
"""Connections a pool: httpx2 looks through all of them for each request."""
_REST_S = 10.0


def http_answerer(provider: Provider) -> HttpAnswerer:
    """Return a client for a provider, with its key from the environment.

    Raises:
        ConfigError: the key's variable is unset, or an address is missing or unsafe.
    """
    key = None
    if provider.key_env:
        key = read_key(provider.key_env)
        if key is None:
            raise ConfigError(
                f"environment variable `{provider.key_env}` holds no key. Set it, name another "
                "one under `provider.key_env`, or run without an LLM: `--provider heuristic`."
            )
    return HttpAnswerer(provider, key=key)


class HttpAnswerer:
    """Answers calls from one or several OpenAI-compatible servers, used in turn.

    Args:
        provider: addresses, timeouts, concurrency.
        key: sent as the provider expects it; None for a server without keys.
        transport: replaces the network in tests.

    Raises:
        ConfigError: an address is missing or unsafe.
    """

    def __init__(self, provider: Provider, *, key: Secret | None, transport: Any = None) -> None:
        if not provider.base_urls:
            raise ConfigError(
                "`provider.base_urls` is empty: name the server's address, for Azure "
                "https://<resource>.openai.azure.com."
            )
        for url in provider.base_urls:
            check_base_url(url, insecure_http=provider.insecure_http)
        pools = max(1, -(-provider.concurrency // (_PER_POOL * len(provider.base_urls))))
        self._total = provider.timeout_s
        self._clients = [
            (url, _client(provider, url, key, transport))
            for _ in range(pools)
            for url in provider.base_urls
        ]
        self._turn = itertools.count()
        self._resting: dict[str, float] = {}

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Send once, without retries; see `Answerer`."""
        url, client = self._pick()
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._total):
                response = await client.post(
                    _PATHS[call.endpoint], body=call.body, cast_to=httpx2.Response
                )
            return self._reply(response, journal, begin)
        except openai.APIStatusError as error:
            return self._reply(error.response, journal, begin)
        except Exception as error:  # told apart by `classify`, never raised
            self._resting[url] = time.monotonic() + _REST_S
            status = getattr(getattr(error, "response", None), "status_code", None)
            return Reply(status=status, error=error, elapsed_ms=_since(begin))

    def _reply(
        self, response: httpx2.Response, journal: Callable[[bytes], None], begin: float
    ) -> Reply:
        body = response.content
        if response.status_code == 200:
            journal(body)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, body, elapsed_ms=_since(begin))

    def _pick(self) -> tuple[str, openai.AsyncOpenAI]:
        """Return the next client; a server that just failed rests while another is up."""
        now = time.monotonic()
        for _ in self._clients:
            url, client = self._clients[next(self._turn) % len(self._clients)]
            if self._resting.get(url, 0.0) <= now:
                return url, client
        return self._clients[next(self._turn) % len(self._clients)]

    async def close(self) -> None:
        """Close all connections."""
        for _, client in self._clients:
            await client.close()


def _client(provider: Provider, url: str, key: Secret | None, transport: Any) -> openai.AsyncOpenAI:
    limits = httpx2.Limits(max_connections=_PER_POOL, max_keepalive_connections=_PER_POOL)
    timeout = httpx2.Timeout(
        connect=5.0, read=provider.read_timeout_s, write=30.0, pool=provider.timeout_s
    )
    web = httpx2.AsyncClient(
        limits=limits,
        timeout=timeout,
        follow_redirects=False,
        transport=transport,
        trust_env=not url.startswith("http://"),  # a proxy is of no use for a host nearby
    )
    shown = key.reveal() if key is not None else "none"
    common: dict[str, Any] = {"api_key": shown, "max_retries": 0, "timeout": timeout}
    if provider.name == "azure":
        return openai.AsyncAzureOpenAI(
            azure_endpoint=url, api_version=provider.api_version, http_client=web, **common
        )
    return openai.AsyncOpenAI(base_url=url, http_client=web, **common)


def _since(begin: float) -> int:
    return round(1000 * (time.monotonic() - begin))
