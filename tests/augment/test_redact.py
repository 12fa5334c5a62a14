"""No key leaves through text, logs, pickles or addresses."""

import copy
import io
import json
import logging
import pickle
import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from augment.redact import HIDDEN, RedactingFilter, Secret, check_base_url, read_key, redact
from llmrec_pl.errors import ConfigError

KEY = "Zq7-live_KEY.0123456789"


@pytest.fixture(autouse=True)
def key():
    return Secret(KEY)


@pytest.mark.parametrize(
    "text",
    [
        f"the key is {KEY}",
        f"{{'api-key': '{KEY}'}}",
        f"x{KEY}x{KEY}",
        json.dumps({"headers": {"authorization": f"Bearer {KEY}"}}),
    ],
)
def test_a_live_key_is_hidden_wherever_it_stands(text):
    assert KEY not in redact(text)
    assert HIDDEN in redact(text)


def test_a_live_key_is_hidden_in_addresses_too():
    Secret("a/b+c=d/longer")
    assert "longer" not in redact("https://x.y/?q=a%2Fb%2Bc%3Dd%2Flonger")


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("Incorrect API key provided: sk-abc***xyz.", "abc"),
        ("Incorrect API key provided: sk-abc***xyz.", "xyz"),
        ("Incorrect API key provided: sk-proj-Ab_1-...9f3Z.", "9f3Z"),
        ("Incorrect API key provided: abcd1234****wxyz", "wxyz"),
        ("key sk-proj-AAAAbbbb1111_-cc in use", "AAAA"),
        ("Authorization: Bearer abc.def-ghi", "def"),
        ("authorization: Basic dXNlcjpwdw==", "dXNl"),
        ("{'Authorization': 'Bearer abcdefgh'}", "abcdefgh"),
        ("{'api-key': 'ffeeddcc'}", "ffeeddcc"),
        ('{"api_key": "ffeeddcc"}', "ffeeddcc"),
        ("[(b'api-key', b'ffeeddcc')]", "ffeeddcc"),
        ("x-api-key=ffeeddcc&x=1", "ffeeddcc"),
        ("Ocp-Apim-Subscription-Key: ffeeddcc", "ffeeddcc"),
        ("GET https://h/v1?key=ffeeddcc&x=1", "ffeeddcc"),
        ("GET https://h/v1?x=1&sig=ffeeddcc", "ffeeddcc"),
        ("https://user:ffeeddcc@host/v1", "ffeeddcc"),
        ("wrong token in `bearer ffeeddcc11`", "ffeeddcc"),
    ],
)
def test_what_looks_like_a_key_is_hidden(text, leak):
    assert leak not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "HTTP 429: Rate limit reached for gpt-4o-mini on tokens per min (TPM): Limit 200000.",
        "'$.input' is invalid. max_tokens: 300, temperature=0.6",
        "scikit-learn and risk-averse users; task-1 failed",
        "ConnectError: [Errno 111] Connection refused",
        "see https://api.openai.com/v1/chat/completions?api-version=2024-10-21",
    ],
)
def test_plain_messages_stay_as_they_are(text):
    assert redact(text) == text


@given(before=st.text(max_size=20), after=st.text(max_size=20), secret=st.text(min_size=4))
@example("", "", "aaaa")
def test_any_given_secret_is_gone(before, after, secret):
    shown = redact(f"{before}{secret}{after}", [secret, secret[:-1]])
    rest = shown.replace(HIDDEN, "")
    assert secret not in rest or secret in before + after


def test_the_longer_of_two_secrets_goes_first():
    assert redact("abcdefgh", ["abcd", "abcdefgh"]) == HIDDEN
    assert redact("an odd key", ["k"]) == "an odd key"  # too short to be one


def test_a_secret_shows_itself_only_on_request(key):
    assert key.reveal() == KEY
    shown = [
        repr(key),
        str(key),
        f"{key}",
        f"{key!r:>60}",
        "{} {!r:>9}".format(*[key] * 2),
        repr([key]),
    ]
    shown += [repr(vars(type(key))), str({"key": key})]
    assert not any(KEY in text for text in shown)
    for save in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            save(key)
    with pytest.raises(TypeError):
        json.dumps({"key": key})
    assert not hasattr(key, "__dict__")


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_KEY", "  sk-12345678\n")
    assert read_key("MY_KEY").reveal() == "sk-12345678"
    monkeypatch.setenv("MY_KEY", " ")
    assert read_key("MY_KEY") is None
    monkeypatch.delenv("MY_KEY")
    assert read_key("MY_KEY") is None
    for wrong in ("sk-1 234", "sk-1\n234", "sk-ключ", "sk-1\x7f"):
        monkeypatch.setenv("MY_KEY", wrong)
        with pytest.raises(ConfigError, match="MY_KEY") as caught:
            read_key("MY_KEY")
        assert "sk-1" not in str(caught.value)


@pytest.fixture
def log():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        logging.Formatter("%(levelname)s %(message)s %(extra)s", defaults={"extra": ""})
    )
    handler.addFilter(RedactingFilter())
    logger = logging.getLogger("augment.test.redact")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)


def test_logs_hold_no_key(log):
    logger, stream = log
    logger.info("sent %s", {"authorization": f"Bearer {KEY}"})
    logger.info("sent %(key)s", {"key": KEY})
    logger.info(f"plain {KEY}", stack_info=True)
    logger.info("extra", extra={"extra": f"api-key: {KEY}"})
    logger.info("does not fit %d", KEY)
    logging.getLogger("augment.test.redact.child").warning("child %s", KEY)
    error = RuntimeError("outer")
    error.__cause__ = ValueError(f"header {KEY}")
    assert KEY in "".join(traceback.format_exception(error))  # there is something to hide
    logger.error("failed with %s", KEY, exc_info=error)
    text = stream.getvalue()
    assert KEY not in text
    assert text.count(HIDDEN) >= 7
    assert "RuntimeError: outer" in text
    assert "test_redact.py" in text


def test_a_redacted_record_carries_no_key_to_handlers_that_format_by_themselves():
    error = ValueError(f"header {KEY}")
    record = logging.LogRecord("n", 40, "p", 1, "%s", (KEY,), (ValueError, error, None))
    assert RedactingFilter().filter(record)
    assert KEY not in repr(vars(record))
    assert record.exc_info is None


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://my.openai.azure.com/?api-version=2024-10-21",
        "http://127.0.0.1:8089/v1",
        "http://localhost:8000/v1",
        "http://gpu.localhost/v1",
        "http://[::1]:8000/v1",
        "http://10.0.0.7:8000/v1",
        "http://192.168.1.5/v1",
        "http://vllm:8000/v1",
    ],
)
def test_good_addresses(url):
    check_base_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://user:hunter2@api.example.com/v1", "user info"),
        ("https://hunter2@api.example.com/v1", "user info"),
        ("https://@api.example.com/v1", "user info"),
        ("https://api.example.com/v1?key=hunter2", "secret"),
        ("https://api.example.com/v1?x=1&access_token=hunter2", "secret"),
        ("https://api.example.com/v1#token=hunter2", "secret"),
        ("https://api.example.com/v1?x=sk-hunter2hunter2", "secret"),
        ("http://api.openai.com/v1", "unencrypted"),
        ("http://8.8.8.8/v1", "unencrypted"),
        ("http://[2001:4860:4860::8888]/v1", "unencrypted"),
        ("http://[::ffff:8.8.8.8]/v1", "unencrypted"),
        ("http://2130706433.example.com", "unencrypted"),
        ("http://134744072/v1", "unencrypted"),
        ("http://localhost.example.com/v1", "unencrypted"),
        ("ftp://api.example.com", "no http"),
        ("api.example.com/v1", "no http"),
        ("", "no http"),
        ("https://", "no http"),
        ("https://[::1", "no http"),
        ("https://host:99999/v1", "no http"),
        ("https://exa mple.com", "no http"),
        ("https://good.example\\@evil.example", "no http"),
        ("https://exam\nple.com", "no http"),
    ],
)
def test_bad_addresses(url, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        check_base_url(url)
    assert "hunter2" not in str(caught.value)


def test_plain_http_can_be_asked_for():
    check_base_url("http://api.example.com/v1", insecure_http=True)
    with pytest.raises(ConfigError):
        check_base_url("http://u:p@api.example.com/v1", insecure_http=True)
