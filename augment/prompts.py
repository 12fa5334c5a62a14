"""Renders prompts: templates of a set, filled with data that can never become a template.

Titles are other people's words. They stand as JSON strings inside a delimited block, without
control characters and cut at 200 characters, so the worst a hostile title can do is to sway the
choice between valid answers.
"""

from __future__ import annotations

import hashlib
import json
import re
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
MAX_ID = 60
HEURISTIC = "heuristic-1"
_BLOCKS = ("history", "candidates", "listed", "n", "user")
FORMS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("",),
    "profiles": ("",),
    "attributes": ("",),
    "memorisation": ("item_id", "item_title", "history"),
}
"""The questions of a task that asks several, each with a template and an answer of its own."""

# Written out, not asked of `unicodedata`: its categories change between versions of Python, and
# with them would the keys of what was paid.
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\U000e0000-\U000e0fff]"
)
_UNSAFE_IN_ID = re.compile(r"[\s:\[\]<>\"'`,\\]+")


def without_surrogates(text: str) -> str:
    """Return text that UTF-8 can hold: each lone surrogate becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def clean_text(text: str) -> str:
    """Return text that is safe to show: visible characters, one line, at most 200 characters.

    Lone surrogates become U+FFFD; delimiters of the block are broken up. Joiners stay, since
    Persian words and emoji need them.
    """
    text = without_surrogates(text[: 4 * MAX_TEXT])
    text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))
    return " ".join(text.replace("<<<", "< < <").replace(">>>", "> > >").split())[:MAX_TEXT]


def shown_id(name: str) -> str:
    """Return what stands for an original id in a prompt and comes back in an answer.

    An ordinary id stands for itself. One that is long, or holds what answers are split at, gets
    a readable part and a hash, so that two of them never look alike.
    """
    if len(name) <= MAX_ID and not _UNSAFE_IN_ID.search(name) and clean_text(name) == name != "":
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_UNSAFE_IN_ID.sub('_', clean_text(name))[:40]}~{digest}"


@lru_cache(maxsize=32)
def template(prompt_set: str, kind: Kind, form: str = "") -> str:
    """Return the template of a task, or of one of its forms.

    Raises:
        ConfigError: the set has none.
    """
    name = f"{kind}-{form}.txt" if form else f"{kind}.txt"
    file = resources.files("augment").joinpath("prompts", prompt_set, name)
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"prompt set {prompt_set!r} has no prompt for {kind!r}.") from error


def template_sha(prompt_set: str, kind: Kind) -> str:
    """Return the sha256 of a task's templates; "" where there is none to read (heuristics)."""
    if prompt_set in ("", HEURISTIC):
        return ""
    texts = [template(prompt_set, kind, form) for form in FORMS[kind]]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def shown_line(spec: TaskSpec, item: Mapping[str, Any]) -> str:
    """Return one item as a line of the block, in the form of the prompt set.

    Args:
        spec: the task.
        item: "id" and what is shown of it: "title", "year" and the category's texts.
    """
    if spec.prompt_set == "llmrec-2024":
        rest = ", ".join(json.dumps(v, ensure_ascii=False) for k, v in item.items() if k != "id")
        return f"[{item['id']}] {rest}"
    shown = {k: v for k, v in item.items() if k != "id" or spec.kind == "attributes"}
    return json.dumps(shown, ensure_ascii=False)


class Renderer:
    """Makes the bodies of a task's chat requests; the template is taken apart once.

    Args:
        spec: the task.
        form: which question, of a task that asks several.

    Raises:
        ConfigError: the prompt set has no template for it.
    """

    def __init__(self, spec: TaskSpec, form: str = "") -> None:
        words: dict[str, str] = dict(spec.settings["domain"])
        words |= {name.capitalize(): _upper(words[name]) for name in ("item", "items")}
        words |= {"form": form_in_words(spec, form), "fields": ", ".join(spec.settings["fields"])}
        words["data"] = spec.settings.get("data_name", "")
        self._pieces: list[tuple[str, str]] = []  # text, and the block that follows it
        text, end, before = template(spec.prompt_set, spec.kind, form).rstrip("\n"), 0, ""
        for found in Template.pattern.finditer(text):
            name = found["named"]
            before, end = before + text[end : found.start()], found.end()
            if name in _BLOCKS:
                self._pieces.append((before, name))
                before = ""
            else:
                before += words[name]
        self._rest = before + text[end:]
        self._fixed: dict[str, Any] = {"model": spec.model, **spec.params}
        response = response_format(spec, form)
        if response is not None:
            self._fixed["response_format"] = response

    def body(self, draw: int = 0, **blocks: str) -> dict[str, Any]:
        """Return a request's body.

        Args:
            draw: number of the sample; moves the seed, where one is sent.
            blocks: history, candidates, listed, n, user, as the template needs them.
        """
        text = "".join([before + blocks[name] for before, name in self._pieces]) + self._rest
        body = {**self._fixed, "messages": [{"role": "user", "content": text}]}
        if draw and "seed" in body:  # else every draw would be the same answer, paid again
            body["seed"] += draw
        return body


def _upper(word: str) -> str:
    return word[:1].upper() + word[1:]


def repair(body: Mapping[str, Any], answer: str, problem: str) -> dict[str, Any]:
    """Return a body that shows a faulty answer, says what is wrong and asks again."""
    messages: Sequence[dict[str, str]] = body["messages"]
    more = [
        {"role": "assistant", "content": without_surrogates(answer)},
        {"role": "user", "content": f"That cannot be used: {problem} Answer again, in the form."},
    ]
    return {**body, "messages": [*messages, *more]}
