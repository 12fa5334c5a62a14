"""Sends calls to an OpenAI-compatible server: once each, whole bodies kept, nothing raised.

The only file that knows the `openai` client and its transport. Retries, redirects and parsing of
the client are off: attempts are counted and journalled by the engine, and a 200 is handed to the
journal as raw bytes before anyone looks into it.

The transport is httpx2, not aiohttp: aiohttp reports a connection that was reset after sending as
a connect timeout, which would pass for "never sent, not billed".
"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import openai

from augment.redact import check_base_url, redact
from augment.wire import Reply
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from augment.config import Provider
    from augment.redact import Secret
    from augment.wire import Call

PATHS = {"chat.completions": "/chat/completions", "embeddings": "/embeddings"}
POOL_SIZE = 32
"""Connections of one pool: httpx2 looks through all of a pool's connections for each request."""
_CONNECT_S, _WRITE_S, _POOL_S = 5.0, 30.0, 5.0
# Below the 5 s after which uvicorn (vLLM, SGLang) and Node close an idle connection: a request
# that meets the closing would count as sent, perhaps billed.
_KEEPALIVE_S = 4.0
_REST_S = 10.0
_UNREACHED = (httpx2.ConnectError, httpx2.ConnectTimeout)
_LOOPBACK = ("127.", "localhost", "::1")

_head: ContextVar[list[httpx2.Response] | None] = ContextVar("_head", default=None)


class HttpAnswerer:
    """Answers calls over HTTP.

    Several base URLs are used in turn; one that refused a connection is left out for ten seconds
    while another is alive. Each has pools of at most 32 connections, made when needed.

    Args:
        provider: addresses, timeouts, kind of server.
        key: sent as a bearer token, or as `api-key` to Azure; None sends none.
        transport: takes the place of the network, for tests and replay.

    Raises:
        ConfigError: the key's environment variable is empty, an address is missing or unsafe, or
            `api_version` is missing for Azure.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        key: Secret | None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        check_provider(provider, key)
        self._timeout_s = provider.timeout_s
        self._servers = [
            _Server(provider, url, key, transport) for url in dict.fromkeys(provider.base_urls)
        ]
        self._turn = 0

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Send once; whatever goes wrong is in the reply.

        Args:
            call: what to send.
            journal: gets the raw body of a 200, or another 2xx, as soon as it is read.
        """
        begin = time.monotonic()
        heads: list[httpx2.Response] = []
        token = _head.set(heads)
        server = self._next_server()
        pool = server.pool()
        pool.in_flight += 1
        body: bytes | None = None
        error: BaseException | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await pool.client.post(
                    PATHS[call.endpoint], body=call.body, cast_to=httpx2.Response
                )
            body = response.content
            heads[:] = [response]
            if response.is_success:  # whatever 2xx it is, it may be an answer, and paid for
                journal(body)
        except openai.APIStatusError as refusal:
            body, heads[:] = refusal.response.content, [refusal.response]
        except Exception as problem:  # a call must end as a reply, whatever happens
            error = problem
            if isinstance(problem.__cause__, _UNREACHED):
                server.rest()
        finally:
            pool.in_flight -= 1
            _head.reset(token)
        return Reply(
            status=heads[0].status_code if heads else None,
            headers=dict(heads[0].headers) if heads else {},
            body=body,
            error=error,
            elapsed_ms=round(1000 * (time.monotonic() - begin)),
        )

    async def close(self) -> None:
        """Give back connections."""
        for server in self._servers:
            await server.close()

    def _next_server(self) -> _Server:
        """Take the servers in turn, passing over those at rest; all at rest, the next it is."""
        order = [
            self._servers[(self._turn + i) % len(self._servers)] for i in range(len(self._servers))
        ]
        chosen = next((server for server in order if not server.resting), order[0])
        self._turn = (self._servers.index(chosen) + 1) % len(self._servers)
        return chosen


class _Pool:
    """A client with connections of its own."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client, self.in_flight = client, 0


class _Server:
    """The pools of one base URL."""

    def __init__(
        self,
        provider: Provider,
        url: str,
        key: Secret | None,
        transport: httpx2.AsyncBaseTransport | None,
    ) -> None:
        self._make: Callable[[], openai.AsyncOpenAI] = lambda: connect(
            provider, key, url, transport=transport, pool_size=POOL_SIZE
        )
        self._pools: list[_Pool] = []
        self._until = 0.0

    @property
    def resting(self) -> bool:
        """True for a while after a connection failed."""
        return time.monotonic() < self._until

    def rest(self) -> None:
        """Leave this server alone for a while."""
        self._until = time.monotonic() + _REST_S

    def pool(self) -> _Pool:
        """Return the first pool with a free connection; a new one if there is none.

        The first, not the emptiest: so few connections stay open when few calls are in flight.
        """
        for pool in self._pools:
            if pool.in_flight < POOL_SIZE:
                return pool
        self._pools.append(_Pool(self._make()))
        return self._pools[-1]

    async def close(self) -> None:
        """Close all connections."""
        while self._pools:
            await self._pools.pop().client.close()


def check_provider(provider: Provider, key: Secret | None) -> None:
    """Refuse settings that cannot work or would leak, before anything is sent.

    Raises:
        ConfigError: see `HttpAnswerer`.
    """
    if provider.key_env and key is None:
        raise ConfigError(
            f"the environment variable {provider.key_env!r} is not set; it must hold the key of "
            f"provider {provider.name!r}. Name another with `provider.key_env`, or set that to "
            "null for a server that wants none."
        )
    if not provider.base_urls:
        raise ConfigError(
            f"`provider.base_urls` is empty for provider {provider.name!r}; give at least one "
            "address."
        )
    for url in provider.base_urls:
        check_base_url(url, insecure_http=provider.insecure_http)
    if provider.name == "azure" and not provider.api_version:
        raise ConfigError("`provider.api_version` is missing; Azure needs one, like '2024-10-21'.")


def connect(
    provider: Provider,
    key: Secret | None,
    url: str,
    *,
    transport: httpx2.AsyncBaseTransport | None = None,
    pool_size: int = POOL_SIZE,
) -> openai.AsyncOpenAI:
    """Build a client that sends once, follows nothing and says nothing of its own.

    Args:
        provider: kind of server and timeouts.
        key: None sends no credentials, whatever the environment holds.
        url: one of the base URLs; for Azure the resource's endpoint.
        transport: takes the place of the network.
        pool_size: most connections.
    """
    timeout = httpx2.Timeout(
        connect=_CONNECT_S, read=provider.read_timeout_s, write=_WRITE_S, pool=_POOL_S
    )
    host = urlsplit(url).hostname or ""
    http = httpx2.AsyncClient(
        verify=_tls(),
        # A proxy of the environment cannot reach this machine's own servers.
        trust_env=not host.startswith(_LOOPBACK),
        timeout=timeout,
        limits=httpx2.Limits(
            max_connections=pool_size,
            max_keepalive_connections=pool_size,
            keepalive_expiry=_KEEPALIVE_S,
        ),
        follow_redirects=False,
        transport=transport,
        event_hooks={
            "request": [] if key is not None else [_drop_credentials],
            "response": [_note_head],
        },
    )
    common: dict[str, Any] = {"max_retries": 0, "timeout": timeout, "http_client": http}
    if provider.name == "azure":
        return openai.AsyncAzureOpenAI(
            azure_endpoint=url.rstrip("/"),
            api_version=provider.api_version,
            api_key="none" if key is None else key.reveal(),
            **common,
        )
    if provider.name != "openai":
        # The environment may name an account with OpenAI, which is no business of other servers.
        account = ("OpenAI-Organization", "OpenAI-Project")
        common["default_headers"] = dict.fromkeys(account, openai.Omit())
    return openai.AsyncOpenAI(
        base_url=url, api_key="none" if key is None else key.reveal(), **common
    )


def status_and_message(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status, if there was one, and a sentence without keys."""
    if isinstance(error, openai.APIStatusError):
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return error.status_code, redact(str(said or error.message))[:500]
    cause = error.__cause__ or error
    return None, redact(f"{type(cause).__name__}: {cause}")[:500]


async def _drop_credentials(request: httpx2.Request) -> None:
    """Take out the placeholder without which the client would look for a key by itself."""
    for name in ("authorization", "api-key"):
        request.headers.pop(name, None)


async def _note_head(response: httpx2.Response) -> None:
    """Keep the head of a reply whose body may yet fail: a broken 429 is still a 429."""
    heads = _head.get()
    if heads is not None:
        heads[:] = [response]


_shared: list[ssl.SSLContext] = []


def _tls() -> ssl.SSLContext:
    """Return one TLS context for all pools; each takes some 20 ms to make."""
    if not _shared:
        _shared.append(httpx2.create_ssl_context())
    return _shared[0]
