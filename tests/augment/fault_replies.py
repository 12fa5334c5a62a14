"""What the fault server says: valid answers made from a request, and every way to fail.

An answer is a function of the request alone, so that two runs can be compared byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace

JSON = "application/json"
HTML = "<html><head><title>Bad Gateway</title></head><body>nginx</body></html>"
KEY = "{key}"  # in a body: the key that the client sent
TRANSPORT_FAULTS = (
    "reset",  # RST before any byte of the answer
    "fin",  # FIN before any byte of the answer
    "reset_body",  # RST after half of the body
    "fin_body",  # FIN after half of the body
    "truncated_chunk",  # FIN inside a chunk of a chunked body
    "bad_gzip",  # says gzip, is none
    "bad_status_line",
    "hang",  # reads and never answers
)


@dataclass(frozen=True)
class Step:
    """How one request is treated.

    Attributes:
        do: "ok", "drip" (a byte each `every` seconds) or one of TRANSPORT_FAULTS.
        latency: seconds before the first byte.
        status: of the answer.
        headers: further ones.
        body: raw text of the answer; None for a valid one.
        billed: whether the provider charges for it; None for every 200.
        content: text of the chat answer; None for one that obeys the schema.
        finish: `finish_reason`.
        refusal: text of the refusal.
        usage: False leaves it out; a dict replaces figures.
        permute: embeddings come in another order, with their true `index`.
        dim: of embeddings.
        every: seconds between the bytes of a drip.
        times: requests that a step of a script serves.
    """

    do: str = "ok"
    latency: float = 0.0
    status: int = 200
    headers: dict = field(default_factory=dict)
    body: str | None = None
    billed: bool | None = None
    content: str | None = None
    finish: str = "stop"
    refusal: str | None = None
    usage: bool | dict = True
    permute: bool = False
    dim: int = 8
    every: float = 0.1
    times: int = 1

    @property
    def charged(self):
        return self.status == 200 if self.billed is None else self.billed


def error(status, code, message="scripted", *, headers=None, kind="error"):
    """An error with a JSON body, as the real ones have it."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return Step(status=status, headers=headers or {}, body=body)


def limited(**headers):
    """A 429; `retry_after="7"` becomes the header `retry-after: 7`."""
    named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return error(429, "rate_limit_exceeded", "slow down", headers=named)


def page(status, text=HTML):
    """An HTML page of some proxy in between."""
    return Step(status=status, headers={"content-type": "text/html"}, body=text)


NAMED = {
    "ok": Step(),
    "rate_limited": limited(),
    "quota": error(429, "insufficient_quota", "You exceeded your current quota."),
    "unauthorized": error(401, "invalid_api_key", f"Incorrect API key provided: {KEY}."),
    "forbidden": error(403, "unsupported_country"),
    "no_model": error(404, "model_not_found", "The model `m` does not exist."),
    "bad_request": error(400, "invalid_value"),
    "azure_filtered": error(400, "content_filter", "The response was filtered."),
    "redirect": Step(status=307, headers={"location": "http://127.0.0.1:9/v1/elsewhere"}, body=""),
    "error_500": error(500, "server_error"),
    "error_503": error(503, "overloaded"),
    "error_529": error(529, "overloaded_error"),
    "html_502": page(502),
    "html_504": page(504),
    "timeout_408": error(408, "timeout"),
    "conflict_409": error(409, "conflict"),
    "html_200": page(200),
    "empty_200": Step(body=""),
    "cut_json": Step(body='{"id": "chatcmpl-1", "object": "chat.comp'),
    "no_choices": Step(body='{"id":"1","choices":[],"usage":{"prompt_tokens":5}}'),
    "no_usage": Step(usage=False),
    "truncated": Step(content="", finish="length"),
    "refusal": Step(content=None, refusal="I cannot help with that."),
    "filtered": Step(content="", finish="content_filter"),
    "permuted": Step(permute=True),
    "drip": Step(do="drip"),
    **{name: Step(do=name) for name in TRANSPORT_FAULTS},
}
"""Steps by name, for scripts written as JSON."""


def as_step(value):
    """Read a step: a Step, a name, or a dict of a Step's fields with `do` as a name."""
    if isinstance(value, Step):
        return value
    if isinstance(value, str):
        return NAMED[value]
    known = {f.name for f in fields(Step)} - {"do"}
    if unknown := set(value) - known - {"do"}:
        raise ValueError(f"unknown fields of a step: {sorted(unknown)}")
    return replace(NAMED[value.get("do", "ok")], **{k: v for k, v in value.items() if k in known})


def reply_body(step, path, body, number):
    """Return (bytes of the answer, usage or None)."""
    if step.body is not None:
        return step.body.encode(), None
    if path.endswith("/embeddings"):
        return embeddings(step, body)
    return chat(step, body, number)


def chat(step, body, number):
    prompt = sum(len(str(m.get("content") or "").encode()) for m in body["messages"])
    content = step.content
    if content is None and step.refusal is None:
        content = answer(body)
    usage = {
        "prompt_tokens": prompt // 4 + 8,
        "completion_tokens": min(len(content or "") // 4 + 1, body.get("max_tokens", 10**9)),
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    if isinstance(step.usage, dict):
        usage |= step.usage
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    message = {"role": "assistant", "content": content, "refusal": step.refusal}
    choice = {"index": 0, "message": message, "finish_reason": step.finish, "logprobs": None}
    reply = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model"),
        "system_fingerprint": "fp_fault",
        "choices": [choice],
    }
    if step.usage is not False:
        reply["usage"] = usage
    return json.dumps(reply).encode(), usage


def answer(body):
    """Return an answer in the form that the body asks for, by schema or in words."""
    text = str(body["messages"][0].get("content") or "")
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        made = example(form["json_schema"]["schema"])
    elif "most_liked" in text:
        made = {"most_liked": 1, "least_liked": 2}
    elif (start := max(text.rfind("\n{"), text.rfind(": {"))) >= 0:
        made = _filled(json.loads(text[start + 1 :].strip()))
    elif form.get("type") == "json_object":
        made = {"answer": 1}
    else:
        first, second, *_ = [*_ids(text), "1", "2"]
        return f"{first}::{second}"
    if isinstance(made.get("items"), list) and made["items"]:
        made["items"] = [{**made["items"][0], "id": name} for name in _ids(text)]
    return json.dumps(made)


def _ids(text):
    """Return the ids of the last block between <<< and >>>."""
    block = text[text.rfind("<<<\n") + 4 : text.rfind("\n>>>")]
    return [a or b for a, b in re.findall(r'(?m)^(?:\[([^\]]+)\]|.*?"id": "([^"]+)")', block)]


def _filled(form, name=""):
    """Put values into a form such as {"age": "<number>", "genres": ["<name>"]}."""
    if isinstance(form, dict):
        return {key: _filled(value, key) for key, value in form.items()}
    if isinstance(form, list):
        return [_filled(value) for value in form]
    return {"age": 30, "gender": "other"}.get(name, "Example")


def example(schema, rank=0):
    """Return a value that a schema allows; fields with equal enums get distinct values."""
    if "enum" in schema:
        return schema["enum"][rank % len(schema["enum"])]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], rank)
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    if kind == "object":
        seen = []
        made = {}
        for name, part in schema["properties"].items():
            made[name] = example(part, seen.count(part))
            seen.append(part)
        return made
    if kind == "array":
        return [example(schema["items"])] * min(1, schema.get("maxItems", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"string": "Example", "boolean": True, "null": None}[kind]


def embeddings(step, body):
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    dim = body.get("dimensions") or step.dim
    rows = [
        {"object": "embedding", "index": i, "embedding": _coded(vector(text, dim), body)}
        for i, text in enumerate(texts)
    ]
    if step.permute:
        rows = rows[1::2] + rows[0::2]
    tokens = sum(len(text.encode()) // 4 + 1 for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    if isinstance(step.usage, dict):
        usage |= step.usage
    reply = {"object": "list", "data": rows, "model": body.get("model")}
    if step.usage is not False:
        reply["usage"] = usage
    return json.dumps(reply).encode(), usage


def vector(text, dim):
    """Return float32 bytes that depend on the text alone, each number in [1, 2)."""
    noise = hashlib.shake_256(text.encode()).digest(4 * dim)
    coded = bytearray(noise)
    coded[3::4] = b"\x3f" * dim
    coded[2::4] = bytes(byte | 0x80 for byte in noise[2::4])
    return bytes(coded)


def _coded(raw, body):
    if body.get("encoding_format") == "base64":
        return base64.b64encode(raw).decode()
    import struct

    return list(struct.unpack(f"<{len(raw) // 4}f", raw))
