"""The client over sockets: what it sends to whom, with which key, over which connections."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx2
import pytest

from augment.classify import classify
from augment.client import POOL_SIZE, HttpAnswerer
from augment.money import Usage
from augment.redact import RedactingFilter, Secret
from augment.wire import Call
from llmrec_pl.errors import ConfigError
from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer, digest
from tests.augment.http_calls import FORM, KEY, Journal, chat, provider, send

# What goes well -----------------------------------------------------------------------------


def test_a_valid_answer_is_journalled_as_the_exact_bytes_of_the_body():
    with FaultServer() as server:
        (reply,), journal = send(server, chat(response_format=FORM))
    assert reply.status == 200
    assert reply.error is None
    assert journal == [reply.body]
    assert reply.headers["x-request-id"] == "req-0"
    content = json.loads(json.loads(reply.body)["choices"][0]["message"]["content"])
    assert content == {"most_liked": 1, "least_liked": 2}
    assert Usage.from_body(reply.body).input == server.bill[0]


def test_the_server_gets_the_body_as_it_was_keyed():
    call = chat('Amélie "quoted"\n😀', response_format=FORM, temperature=0.6, seed=3)
    with FaultServer() as server:
        send(server, call)
    assert server.posts[0]["digest"] == digest(call.body)
    assert server.posts[0]["path"] == "/v1/chat/completions"


def test_embeddings_come_as_raw_base64_and_in_the_order_the_server_chose():
    call = Call(
        "embeddings",
        {"model": "e", "input": ["a", "b", "a"], "encoding_format": "base64"},
        (b"1", b"2", b"3"),
    )
    with FaultServer(["permuted"]) as server:
        (reply,), journal = send(server, call)
    rows = json.loads(reply.body)["data"]
    assert journal == [reply.body]
    assert [row["index"] for row in rows] == [1, 0, 2]
    assert rows[1]["embedding"] == rows[2]["embedding"] != rows[0]["embedding"]


def test_a_keep_alive_connection_is_used_again():
    ports = set()
    with FaultServer(routes=None) as server:
        replies, _ = send(server, *[chat(str(i)) for i in range(5)])
        ports = {post["peer"] for post in server.posts}
    assert [reply.status for reply in replies] == [200] * 5
    assert len(ports) == 1


def test_any_success_is_journalled():
    with FaultServer([Step(status=202)]) as server:
        (reply,), journal = send(server, chat(response_format=FORM))
    assert reply.status == 202
    assert journal == [reply.body]


# Keys and addresses -------------------------------------------------------------------------


def test_the_key_goes_as_a_bearer_token():
    with FaultServer() as server:
        send(server, key=Secret(KEY), name="openai")
    assert server.posts[0]["headers"]["authorization"] == f"Bearer {KEY}"


def test_no_key_sends_none_whatever_the_environment_holds(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    with FaultServer() as server:
        (reply,), _ = send(server)
    sent = server.posts[0]["headers"]
    assert reply.status == 200
    assert not {"authorization", "api-key", "openai-organization", "openai-project"} & set(sent)
    assert KEY not in json.dumps(sent)


def test_azure_gets_the_deployment_in_the_path_and_the_key_in_its_header(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "another-token")
    with FaultServer() as server:
        endpoint = server.url.removesuffix("/v1")
        azure = provider(endpoint, name="azure", api_version="2024-10-21")

        async def work():
            answerer = HttpAnswerer(azure, key=Secret(KEY))
            embed = Call("embeddings", {"model": "small", "input": ["a"]}, (b"",))
            replies = [await answerer.send(call, Journal()) for call in (chat(), embed)]
            await answerer.close()
            return replies

        replies = asyncio.run(work())
    assert [reply.status for reply in replies] == [200, 200]
    paths = [post["path"] for post in server.posts]
    assert paths == [
        "/openai/deployments/m/chat/completions?api-version=2024-10-21",
        "/openai/deployments/small/embeddings?api-version=2024-10-21",
    ]
    for post in server.posts:
        assert post["headers"]["api-key"] == KEY
        assert "authorization" not in post["headers"]


def test_proxies_of_the_environment_are_left_out_for_this_machine(monkeypatch):
    with FaultServer() as proxy, FaultServer() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        (reply,), _ = send(server)
    assert reply.status == 200
    assert (len(server.posts), proxy.posts) == (1, [])


def test_a_missing_key_names_the_environment_variable():
    with pytest.raises(ConfigError, match="'TOY_KEY' is not set"):
        HttpAnswerer(provider("http://127.0.0.1:9/v1", key_env="TOY_KEY"), key=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_urls": []}, "`provider.base_urls` is empty"),
        ({"base_urls": ["http://example.com/v1"]}, "unencrypted"),
        ({"base_urls": [f"http://u:{KEY}@127.0.0.1/v1"]}, "user info"),
        ({"name": "azure", "base_urls": ["https://a.openai.azure.com"]}, "api_version"),
    ],
)
def test_unusable_addresses_are_refused_before_anything_is_sent(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        HttpAnswerer(provider(**values), key=None)
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_log_message_or_error(caplog):
    """At DEBUG, with a 401 that echoes the key and a connection that breaks."""
    caplog.set_level(logging.DEBUG)
    script = ["unauthorized", "reset", "ok"]
    with FaultServer(script) as server:
        replies, _ = send(server, chat(), chat(), chat(), key=Secret(KEY), name="openai")
    assert KEY.encode() in replies[0].body  # the server did echo it
    assert KEY not in classify(replies[0]).message
    assert KEY not in repr([reply.error for reply in replies])
    assert len(caplog.records) > 10
    for record in caplog.records:
        assert KEY not in logging.Formatter().format(record)
        RedactingFilter().filter(record)
        assert "ask" not in record.getMessage().split()  # nor any prompt


# Several servers and many connections -------------------------------------------------------


def test_several_base_urls_are_used_in_turn():
    with FaultServer() as one, FaultServer() as two:

        async def work():
            answerer = HttpAnswerer(provider(one.url, two.url), key=None)
            for i in range(10):
                assert (await answerer.send(chat(str(i)), Journal())).status == 200
            await answerer.close()

        asyncio.run(work())
    assert (len(one.posts), len(two.posts)) == (5, 5)


def test_a_dead_server_is_left_out_and_taken_up_again(monkeypatch):
    monkeypatch.setattr("augment.client._REST_S", 0.5)
    with FaultServer() as one, FaultServer() as two:
        one.down()

        async def work():
            answerer = HttpAnswerer(provider(one.url, two.url), key=None)
            first = [(await answerer.send(chat(str(i)), Journal())).status for i in range(9)]
            one.up()
            await asyncio.sleep(0.6)
            later = [(await answerer.send(chat(str(i)), Journal())).status for i in range(8)]
            await answerer.close()
            return first, later

        first, later = asyncio.run(work())
    assert first == [None] + [200] * 8
    assert later == [200] * 8
    assert (len(one.posts), len(two.posts)) == (4, 12)


def test_with_all_servers_down_calls_go_on_being_tried():
    with FaultServer() as one, FaultServer() as two:
        one.down()
        two.down()

        async def work():
            answerer = HttpAnswerer(provider(one.url, two.url), key=None)
            replies = [await answerer.send(chat(), Journal()) for _ in range(4)]
            one.up()
            two.up()
            replies.append(await answerer.send(chat(), Journal()))
            await answerer.close()
            return replies

        replies = asyncio.run(work())
    assert [reply.status for reply in replies] == [None] * 4 + [200]


def test_more_calls_than_one_pool_holds_run_at_once():
    n = 2 * POOL_SIZE + 6

    async def work(url):
        answerer = HttpAnswerer(provider(url, timeout_s=20.0), key=None)
        replies = await asyncio.gather(*(answerer.send(chat(str(i)), Journal()) for i in range(n)))
        await answerer.close()
        return replies

    with FaultServer([Step(latency=1.0)]) as server:
        replies = asyncio.run(work(server.url))
    assert [reply.status for reply in replies] == [200] * n
    assert server.most_in_flight == n
    texts = [json.loads(reply.body)["id"] for reply in replies]
    assert len(set(texts)) == n


def test_a_transport_can_take_the_place_of_the_network():
    seen = []

    def answer(request):
        seen.append(request)
        return httpx2.Response(200, content=b'{"choices": []}')

    async def work():
        answerer = HttpAnswerer(
            provider("https://api.example.com/v1"),
            key=None,
            transport=httpx2.MockTransport(answer),
        )
        reply = await answerer.send(chat(), Journal())
        await answerer.close()
        return reply

    reply = asyncio.run(work())
    assert reply.body == b'{"choices": []}'
    assert str(seen[0].url) == "https://api.example.com/v1/chat/completions"
