"""Asks a server once which form of structured answers it knows; part of every body after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from augment.classify import Outcome, classify
from augment.errors import AugmentStop, AuthStop, QuotaStop
from augment.wire import Call

if TYPE_CHECKING:
    from augment.wire import Answerer

Structured = Literal["json_schema", "json_object", "none"]
_SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer", "enum": [1, 2]}},
    "required": ["number"],
    "additionalProperties": False,
}
_FORMS: dict[Structured, dict[str, Any] | None] = {
    "json_schema": {
        "type": "json_schema",
        "json_schema": {"name": "probe", "strict": True, "schema": _SCHEMA},
    },
    "json_object": {"type": "json_object"},
    "none": None,
}


async def probe_structured(answerer: Answerer, model: str) -> Structured:
    """Return the most demanding form that the server accepts.

    Sends one to three tiny requests, which are outside the ledger (about 30 tokens each).

    Raises:
        AuthStop: the key, model or address is refused.
        QuotaStop: no credit left.
        AugmentStop: the server cannot be reached or fails.
    """
    text = 'Answer with JSON only: {"number": 1}'
    for mode, form in _FORMS.items():
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 16,
        }
        if form is not None:
            body["response_format"] = form
        said = classify(await answerer.send(Call("chat.completions", body, ()), _drop))
        if said.outcome == Outcome.ok:
            return mode
        if said.outcome == Outcome.auth:
            raise AuthStop(f"the provider refused the call: {said.message}")
        if said.outcome == Outcome.quota:
            raise QuotaStop(f"the account has no credit left: {said.message}")
        if said.outcome != Outcome.refused_input:
            raise AugmentStop(
                f"the server does not answer a first small request: {said.message} Check "
                "`provider.base_urls`, or start one with `python -m augment serve-local`."
            )
    raise AugmentStop(f"the server refuses even a plain request to model {model!r}.")


def _drop(body: bytes) -> None:
    """Keep nothing: a probe answers no request of the plan."""
