"""Renders prompts: templates of a set, filled with data that can never become a template.

Titles are other people's words. They stand as JSON strings inside a delimited block, without
control characters and cut at 200 characters, so the worst a hostile title can do is to sway the
choice between valid answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from functools import lru_cache
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from augment.schemas import form_in_words, response_format
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from augment.specs import Kind, TaskSpec

MAX_TEXT = 200
LOCK = "prompts.lock"
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Return text that is safe to show: no control characters, one line, at most 200 characters.

    Lone surrogates become U+FFFD; delimiters of the block are broken up.
    """
    text = _SURROGATE.sub("\ufffd", text[: 4 * MAX_TEXT])
    kept = "".join(c if unicodedata.category(c)[0] != "C" or c == "\ufffd" else " " for c in text)
    return " ".join(kept.replace("<<<", "< < <").replace(">>>", "> > >").split())[:MAX_TEXT]


@lru_cache(maxsize=32)
def template(prompt_set: str, kind: Kind) -> str:
    """Return the template of a task.

    Raises:
        ConfigError: the set has none.
    """
    file = resources.files("augment").joinpath("prompts", prompt_set, f"{kind}.txt")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"prompt set {prompt_set!r} has no prompt for {kind!r}.") from error


def template_sha(prompt_set: str, kind: Kind) -> str:
    """Return the sha256 of a template; "" where there is none to read (heuristics)."""
    if prompt_set in ("", "heuristic-1"):
        return ""
    return hashlib.sha256(template(prompt_set, kind).encode()).hexdigest()


def locked_shas() -> dict[str, str]:
    """Return the hashes of ``prompts.lock``; a changed template needs a new set or a new lock."""
    text = resources.files("augment").joinpath("prompts", LOCK).read_text(encoding="utf-8")
    return dict(line.split("  ")[::-1] for line in text.splitlines() if line)


def shown_line(spec: TaskSpec, item: Mapping[str, Any], label: str | None = None) -> str:
    """Return one item as a line of the block, in the form of the prompt set.

    Args:
        spec: the task.
        item: "id" and, unless masked, "title", "year" and the category's texts.
        label: number shown instead of the id.
    """
    if spec.prompt_set == "llmrec-2024":
        rest = ", ".join(json.dumps(v, ensure_ascii=False) for k, v in item.items() if k != "id")
        return f"[{label or item['id']}] {rest}"
    record = {k: v for k, v in item.items() if k != "id" or spec.kind == "attributes"}
    line = json.dumps(record, ensure_ascii=False)
    return line if label is None else f"{label}. {line}"


def render(spec: TaskSpec, **blocks: str) -> dict[str, Any]:
    """Return the body of a chat request.

    Args:
        spec: the task.
        blocks: values of the template's names: history, candidates, listed, n.
    """
    words: dict[str, str] = dict(spec.settings["domain"])
    words |= {name.capitalize(): words[name].capitalize() for name in ("item", "items")}
    text = Template(template(spec.prompt_set, spec.kind)).substitute(
        words,
        form=form_in_words(spec),
        fields=", ".join(spec.settings.get("fields", [])),
        **blocks,
    )
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": [{"role": "user", "content": text.rstrip("\n")}],
        **spec.params,
    }
    form = response_format(spec)
    return body if form is None else {**body, "response_format": form}


def repair(body: Mapping[str, Any], answer: str, problem: str) -> dict[str, Any]:
    """Return a body that shows a faulty answer, says what is wrong and asks again."""
    messages: Sequence[dict[str, str]] = body["messages"]
    more = [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"That cannot be used: {problem} Answer again, in the form."},
    ]
    return {**body, "messages": [*messages, *more]}
