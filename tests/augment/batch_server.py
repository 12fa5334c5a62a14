"""Files and batches of an account with a provider, kept in memory, that fail as told.

An `Account` answers the routes of a FaultServer. Batches end after `looks` polls with `status`;
what their lines come to is a function of (number from 0, request line), `answers`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from tests.augment.fault_replies import as_step, reply_body


@dataclass
class Fault:
    """What calls that fit get instead; `done` does first what was asked, then loses the reply."""

    method: str
    path: str
    status: int = 502
    times: int = 1
    done: bool = False
    headers: dict = field(default_factory=dict)
    body: bytes = b"<html>Bad Gateway</html>"


def answered(number, asked, step="ok"):
    """The line of a request that was answered with a 200."""
    raw, _ = reply_body(as_step(step), asked["url"], asked["body"], number)
    return response(number, asked, 200, json.loads(raw))


def response(number, asked, status, body):
    """A line with a response of any kind."""
    said = {"status_code": status, "request_id": f"req-{number}", "body": body}
    return {
        "id": f"batch_req_{number}",
        "custom_id": asked["custom_id"],
        "response": said,
        "error": None,
    }


def refused(number, asked, status, code="server_error"):
    """A line whose request failed with a status."""
    return response(number, asked, status, {"error": {"message": "scripted", "code": code}})


def never_tried(number, asked, code="batch_expired"):
    """A line whose request the provider did not get to."""
    error = {"code": code, "message": "This request could not be executed."}
    return {
        "id": f"batch_req_{number}",
        "custom_id": asked["custom_id"],
        "response": None,
        "error": error,
    }


def is_answer(line):
    return (
        isinstance(line, dict)
        and bool(line.get("response"))
        and (line["response"]["status_code"] == 200)
    )


class Account:
    """Files and batches; give it to `FaultServer(routes=...)`.

    Attributes:
        answers: function of (number, request line) that gives the lines of the answer files: one
            line, a list of lines, or None for no line. A line may be raw text.
        status: how batches end.
        looks: polls before they do.
        errors: what is wrong with a failed batch, [{"code":, "message":}].
        usage_off: tokens that `batch.usage` has too many.
        patch: fields of an ended batch that are other than they should be.
        faults: what goes wrong with coming calls.
        calls: (method, path) of each call.
    """

    def __init__(self):
        self.files, self.content, self.batches = {}, {}, {}
        self.answers = answered
        self.status, self.looks, self.errors = "completed", 1, []
        self.usage_off, self.patch = 0, {}
        self.faults, self.calls, self.keys = [], [], set()
        self._polls = {}

    def __call__(self, method, target, headers, raw):
        path, _, query = target.removeprefix("/v1").partition("?")
        self.calls.append((method, path))
        self.keys.add(headers.get("authorization"))
        fault = self._fault(method, path)
        if fault is not None and not fault.done:
            return fault.status, fault.headers, fault.body
        status, payload = self._do(method, path.strip("/").split("/"), query, raw)
        if fault is not None:
            return fault.status, fault.headers, fault.body
        return status, {}, payload

    def _fault(self, method, path):
        for fault in self.faults:
            if fault.times and fault.method == method and re.fullmatch(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _do(self, method, parts, query, raw):
        shelf = self.files if parts[0] == "files" else self.batches
        if len(parts) > 1 and parts[1] not in shelf:
            return 404, b'{"error":{"message":"no such object","code":"not_found"}}'
        if parts[-1] == "content":
            return 200, self.content[parts[1]]
        return 200, json.dumps(self._object(method, parts, query, raw, shelf)).encode()

    def _object(self, method, parts, query, raw, shelf):
        if method == "POST" and parts == ["files"]:
            name = re.search(rb'filename="([^"]+)"', raw)[1].decode()
            part = raw[raw.index(b'filename="') :]
            return self._file(name, part[part.index(b"\r\n\r\n") + 4 : part.rindex(b"\r\n--")])
        if method == "POST" and parts == ["batches"]:
            return self._begin(json.loads(raw))
        if method == "DELETE":
            del shelf[parts[1]]
            return {"id": parts[1], "object": "file", "deleted": True}
        if len(parts) == 1:
            return _page(list(shelf.values())[::-1], query)
        if parts[-1] == "cancel":
            shelf[parts[1]]["status"], self.status = "cancelling", "cancelled"
            return shelf[parts[1]]
        return self._look(shelf[parts[1]]) if parts[0] == "batches" else shelf[parts[1]]

    def _file(self, name, content):
        made = {"id": f"file-{len(self.content)}", "object": "file", "filename": name}
        made |= {"bytes": len(content), "created_at": 1, "purpose": "batch", "status": "processed"}
        self.files[made["id"]], self.content[made["id"]] = made, content
        return made

    def _begin(self, asked):
        made = {"id": f"batch_{len(self.batches)}", "object": "batch", "status": "validating"}
        made |= {"created_at": 1, "errors": None, "output_file_id": None, "error_file_id": ""}
        self.batches[made["id"]] = made | asked
        return self.batches[made["id"]]

    def _look(self, batch):
        polls = self._polls[batch["id"]] = self._polls.get(batch["id"], 0) + 1
        if batch["status"] in ("validating", "in_progress", "cancelling"):
            if polls < self.looks:
                batch["status"] = "in_progress"
            else:
                self._end(batch)
        return batch

    def _end(self, batch):
        batch["status"] = self.status
        if self.status == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return
        asked = [json.loads(text) for text in self.content[batch["input_file_id"]].splitlines()]
        lines = []
        for number, request in enumerate(asked):
            made = self.answers(number, request)
            lines += made if isinstance(made, list) else [] if made is None else [made]
        good = [line for line in lines if is_answer(line) or isinstance(line, str)]
        bad = [line for line in lines if not (is_answer(line) or isinstance(line, str))]
        if good:
            batch["output_file_id"] = self._file("out.jsonl", _text(good))["id"]
        if bad:
            batch["error_file_id"] = self._file("err.jsonl", _text(bad))["id"]
        done = [line for line in good if not isinstance(line, str)]
        batch["request_counts"] = {
            "total": len(asked),
            "completed": len({line["custom_id"] for line in done}),
            "failed": len(bad),
        }
        batch["usage"] = self._usage(done)
        batch |= self.patch

    def _usage(self, lines):
        usages = [line["response"]["body"].get("usage", {}) for line in lines]
        tokens_in = sum(usage.get("prompt_tokens", 0) for usage in usages) + self.usage_off
        tokens_out = sum(usage.get("completion_tokens", 0) for usage in usages)
        return {
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }


def _text(lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return ("\n".join(texts) + "\n").encode()


def _page(entries, query):
    after = re.search(r"after=([^&]+)", query)
    start = [entry["id"] for entry in entries].index(after[1]) + 1 if after else 0
    page = entries[start : start + 2]
    return {"object": "list", "data": page, "has_more": start + 2 < len(entries)}
