"""What replies and exceptions mean; exceptions are those that real failures raise."""

import asyncio
import contextlib
import json
import ssl

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.classify import Outcome, classify
from augment.wire import Reply


def error_body(code=None, message="no", kind=None):
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


HTML = b"<html><body><h1>Bad Gateway</h1></body></html>"


@pytest.mark.parametrize(
    ("status", "body", "outcome", "billed"),
    [
        (200, b'{"choices": []}', "ok", "yes"),
        (200, b"", "ok", "yes"),
        (200, HTML, "ok", "yes"),
        (201, b"{}", "ok", "yes"),
        (200, None, "ambiguous", "unknown"),
        (301, b"", "auth", "no"),
        (307, b"", "auth", "no"),
        (400, error_body("context_length_exceeded"), "refused_input", "no"),
        (400, error_body(None, "bad schema", "invalid_request_error"), "refused_input", "no"),
        (400, error_body("content_filter"), "refused", "no"),
        (400, error_body("model_not_found"), "auth", "no"),
        (400, error_body("billing_hard_limit_reached"), "quota", "no"),
        (400, HTML, "refused_input", "no"),
        (401, error_body("invalid_api_key"), "auth", "no"),
        (402, error_body(None, "Insufficient Balance"), "quota", "no"),
        (403, error_body("unsupported_country_region_territory"), "auth", "no"),
        (403, error_body("insufficient_quota"), "quota", "no"),
        (404, error_body("model_not_found"), "auth", "no"),
        (404, HTML, "auth", "no"),
        (405, b"", "auth", "no"),
        (408, error_body("timeout"), "server", "no"),
        (408, b"", "server", "unknown"),
        (499, error_body("closed"), "server", "unknown"),
        (409, error_body(), "server", "no"),
        (413, HTML, "refused_input", "no"),
        (422, b'{"detail": [{"loc": ["body"]}]}', "refused_input", "no"),
        (429, error_body("rate_limit_exceeded"), "rate_limited", "no"),
        (429, b"", "rate_limited", "no"),
        (429, None, "rate_limited", "no"),
        (429, error_body("429"), "rate_limited", "no"),
        (429, error_body("insufficient_quota"), "quota", "no"),
        (429, error_body(None, "pay", "insufficient_quota"), "quota", "no"),
        (500, error_body("server_error"), "server", "no"),
        (500, b'{"message": "CUDA out of memory", "code": 500}', "server", "no"),
        (500, b'{"error": "overloaded"}', "server", "no"),
        (502, HTML, "server", "unknown"),
        (503, error_body(), "server", "no"),
        (504, HTML, "server", "unknown"),
        (504, None, "server", "unknown"),
        (529, error_body("overloaded_error"), "server", "no"),
    ],
)
def test_statuses(status, body, outcome, billed):
    said = classify(Reply(status, {}, body))
    assert (said.outcome, said.billed) == (outcome, billed)
    assert said.code == {
        "ok": "ok", "refused": "refused", "ambiguous": "ambiguous"
    }.get(outcome, f"http_{status}")  # fmt: skip


def test_the_filter_of_azure_is_a_refusal():
    body = json.dumps(
        {
            "error": {
                "message": "The response was filtered",
                "code": None,
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        }
    )
    said = classify(Reply(400, {}, body.encode()))
    assert (said.outcome, said.code) == (Outcome.refused, "refused")
    assert "The response was filtered" in said.message


@given(
    status=st.one_of(st.none(), st.integers(100, 599)),
    body=st.one_of(
        st.none(),
        st.binary(max_size=50),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["error", "code", "message", "type"]), inner)
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    after=st.text(max_size=20),
)
def test_nothing_that_comes_back_raises_or_is_called_paid_without_a_body(status, body, after):
    headers = {"retry-after": after, "retry-after-ms": after, "location": after, "date": after}
    said = classify(Reply(status, headers, body))
    assert (said.outcome == Outcome.ok) == (
        status is not None and 200 <= status < 300 and body is not None
    )
    assert said.billed in ("yes", "no", "unknown")
    assert said.retry_after_s is None or 0 < said.retry_after_s <= 7 * 86_400
    assert len(said.message) <= 500
    assert "\n" not in said.message


def test_deep_nesting_is_no_json_error():
    said = classify(Reply(502, {}, b"[" * 100_000))
    assert (said.outcome, said.billed) == (Outcome.server, "unknown")


# Pauses ------------------------------------------------------------------------------------


def pause(**headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(Reply(429, headers, b"")).retry_after_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": " 7.5 "}, 7.5),
        ({"retry_after": "300"}, 300.0),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after_ms": "250", "retry_after": "7"}, 0.25),
        ({"retry_after_ms": "soon", "retry_after": "7"}, 7.0),
        ({"retry_after_ms": "-1", "retry_after": "7"}, 7.0),
        *(
            ({"retry_after": text}, None)
            for text in [
                "0",
                "-1",
                "inf",
                "nan",
                "1e3",
                "1_000",
                "",
                "soon",
                "7, 7",
                "\u0667",
                "9" * 400,
            ]
        ),
    ],
)
def test_pauses_in_numbers(headers, seconds):
    assert pause(**headers) == seconds


def test_a_date_is_held_against_the_date_of_the_server():
    then = "Wed, 21 Oct 2015 07:28:30 GMT"
    assert pause(retry_after=then, date="Wed, 21 Oct 2015 07:28:00 GMT") == 30.0
    assert pause(retry_after=then, date="Wed, 21 Oct 2015 07:29:00 GMT") is None
    assert pause(retry_after=then, date="yesterday") is None  # past by any clock
    assert pause(retry_after=then) is None
    assert pause(retry_after="Wed, 21 Oct 2015 07:28:30 -0000", date=then) is None


def test_a_date_without_the_date_of_the_server_is_held_against_ours():
    import datetime as dt
    from email.utils import format_datetime

    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
    assert 80 < pause(retry_after=format_datetime(soon, usegmt=True)) <= 90


# What real failures raise -------------------------------------------------------------------


async def ask(url, timeout=1.0, **other):
    """POST through the client package; return what it raises."""
    web = httpx2.AsyncClient(trust_env=False, timeout=httpx2.Timeout(timeout), **other)
    client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=web)
    try:
        await client.post("/chat/completions", body={}, cast_to=httpx2.Response)
    except openai.APIStatusError:
        raise
    except Exception as error:  # what it is, is the question
        return error
    finally:
        await client.close()
    return None


@contextlib.asynccontextmanager
async def server(answer):
    """Listen on loopback; `answer(reader, writer)` gets a connection whose request was read."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    finally:
        listening.close()


def failure(answer, **other):
    async def main():
        async with server(answer) as url:
            return await ask(url, **other)

    return asyncio.run(main())


def sends(data):
    async def answer(reader, writer):
        writer.write(data)
        await writer.drain()

    return answer


async def resets(reader, writer):
    writer.transport.abort()


async def hangs(reader, writer):
    await reader.read()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(resets, id="reset before headers"),
        pytest.param(sends(b""), id="closed before headers"),
        pytest.param(sends(HEAD + b"Content-Length: 100\r\n\r\n{"), id="closed in the body"),
        pytest.param(
            sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{"), id="closed in a chunk"
        ),
        pytest.param(
            sends(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"), id="bad gzip"
        ),
        pytest.param(sends(b"HTTP/9 what\r\n\r\n"), id="malformed status line"),
        pytest.param(hangs, id="no answer"),
    ],
)
def test_a_call_that_may_have_been_answered_is_ambiguous(answer):
    error = failure(answer, timeout=0.3)
    assert error is not None
    said = classify(Reply(None, error=error))
    assert (said.outcome, said.billed) == (Outcome.ambiguous, "unknown")
    assert said.code == ("timeout" if answer is hangs else "ambiguous")
    if answer is hangs:
        assert said.message == "no byte came within `provider.read_timeout_s`"


def test_the_total_deadline_is_ambiguous_even_while_connecting():
    async def main():
        async with server(hangs) as url:
            try:
                async with asyncio.timeout(0.1):
                    await ask(url, timeout=30.0)
            except TimeoutError as error:
                return error

    said = classify(Reply(None, error=asyncio.run(main())))
    assert (said.outcome, said.code) == (Outcome.ambiguous, "timeout")
    assert said.message == "no whole reply came within `provider.timeout_s`"


def test_refused_connections_unknown_hosts_and_failed_handshakes_were_not_sent():
    async def main():
        listening = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        no_tls = await ask(f"https://127.0.0.1:{port}/v1")
        listening.close()
        await listening.wait_closed()
        return [no_tls, await ask(f"http://127.0.0.1:{port}/v1"), await ask("http://no.invalid/v1")]

    for error in asyncio.run(main()):
        said = classify(Reply(None, error=error))
        assert (said.outcome, said.billed, said.code) == (Outcome.not_sent, "no", "not_sent")
        assert said.message.startswith("ConnectError: ")


def test_a_certificate_that_does_not_fit_was_not_sent():
    assert (
        classify(Reply(None, error=ssl.SSLCertVerificationError("self-signed"))).outcome
        == Outcome.not_sent
    )


def test_a_pool_without_a_free_connection_was_not_sent():
    async def main():
        async with server(hangs) as url:
            limits = httpx2.Limits(max_connections=1)
            timeout = httpx2.Timeout(5.0, pool=0.2)
            async with httpx2.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as web:
                first = asyncio.ensure_future(web.post(url))
                await asyncio.sleep(0.1)
                with pytest.raises(httpx2.PoolTimeout) as caught:
                    await web.post(url)
                first.cancel()
                return caught.value

    assert classify(Reply(None, error=asyncio.run(main()))).outcome == Outcome.not_sent


def test_an_address_or_header_that_cannot_be_sent_stops_the_run_and_shows_no_key():
    async def main():
        ftp = await ask("ftp://127.0.0.1/v1")
        async with server(hangs) as url:
            broken = {"api-key": "azure0123456789abcdef\n"}
            return ftp, await ask(url, headers=broken)

    for error in asyncio.run(main()):
        said = classify(Reply(None, error=error))
        assert (said.outcome, said.billed) == (Outcome.auth, "no")
        assert "azure0123456789" not in said.message


def test_an_earlier_failure_in_the_context_does_not_hide_that_it_was_sent():
    """Happy eyeballs: the first address refuses, the second breaks after the request."""
    error = httpx2.ReadError("second address")
    error.__context__ = httpx2.ConnectError("first address")
    assert classify(Reply(None, error=error)).outcome == Outcome.ambiguous


def test_under_aiohttp_a_connect_timeout_says_nothing():
    gone = type(
        "ServerDisconnectedError", (Exception,), {"__module__": "aiohttp.client_exceptions"}
    )
    error = httpx2.ConnectTimeout("disconnected")
    error.__cause__ = gone()
    assert classify(Reply(None, error=error)).outcome == Outcome.ambiguous


def test_unknown_exceptions_are_ambiguous():
    error = RuntimeError("a fault of ours")
    error.__context__ = error  # a loop must not hang it
    said = classify(Reply(None, error=error))
    assert said.outcome == Outcome.ambiguous
    assert said.message == "RuntimeError: a fault of ours"
    assert classify(Reply(None)).outcome == Outcome.ambiguous


def test_messages_hold_no_keys():
    text = "Incorrect API key provided: sk-abc***xyz. You can find your API key at https://x.y."
    said = classify(Reply(401, {}, error_body("invalid_api_key", text)))
    assert "sk-abc" not in said.message
    assert "xyz" not in said.message
    moved = classify(Reply(307, {"location": "https://u:pw1234@evil.example/?key=k123"}, b""))
    assert "pw1234" not in moved.message
    assert "k123" not in moved.message
    assert "evil.example" in moved.message
    assert "not followed" in moved.message
