"""Specs, replies and records for tests of the checks."""

from __future__ import annotations

import json

from augment.specs import TaskSpec, canonical_json
from augment.validate import validate, validator_name
from tests.augment.tiny_data import FILMS

NEW, OLD = "strict-1", "llmrec-2024"
FIELDS = {
    "pairs": [],
    "attributes": ["director", "country", "language"],
    "profiles": [
        "age",
        "gender",
        "liked_genres",
        "disliked_genres",
        "liked_directors",
        "country",
        "language",
    ],
}
PAIRS = {
    "shown": list(range(100, 110)),
    "ids": [str(i) for i in range(1000, 1010)],
    "history": ["7", "8"],
}
ITEMS = {"ids": ["a", "b", "c"], "items": [0, 1, 2], "lines": ["line a", "line b", "line c"]}
RECORD = {"director": "Ridley Scott", "country": "UK", "language": "English"}
PROFILE = {
    "age": 25,
    "gender": "female",
    "liked_genres": ["Horror", "Sci-Fi"],
    "disliked_genres": [],
    "liked_directors": ["Ridley Scott"],
    "country": "UK",
    "language": "English",
}
BODY = {"model": "m", "messages": [{"role": "user", "content": "ask"}]}


def spec_of(kind, prompt_set=NEW, **other):
    values = {
        "kind": kind,
        "provider": "p",
        "endpoint": "chat.completions",
        "model": "m",
        "params": {"temperature": 0.6, "max_tokens": 64},
        "prompt_set": prompt_set,
        "validator": validator_name(kind, prompt_set),
        "dataset_fp": "fp",
        "items_per_call": 3,
        "settings": {
            "domain": FILMS,
            "fields": FIELDS[kind],
            "n_candidates": 10,
            "max_tokens_ceiling": 200,
        },
    }
    return TaskSpec(**{**values, **other})


def reply(content, finish="stop", **message):
    whole = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": whole, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {}}).encode()


def judged(kind, content, prompt_set=NEW, context=None, **params):
    spec = spec_of(kind, prompt_set)
    contexts = {"pairs": PAIRS, "attributes": ITEMS, "profiles": {}}
    raw = content if isinstance(content, bytes) else reply(content)
    body = {**BODY, **spec.params, **params}
    verdict = validate(spec, raw, body, contexts[kind] if context is None else context)
    # whatever a verdict holds can be stored
    canonical_json([verdict.value, verdict.detail]).encode()
    if verdict.child is not None:
        canonical_json([verdict.child.body, verdict.child.context]).encode()
    assert verdict.value is None or verdict.code in ("accepted", "missing_id")
    return verdict


def pair(most, least):
    return json.dumps({"most_liked": most, "least_liked": least})


def vectors_spec(**params):
    update = {"kind": "embed", "endpoint": "embeddings", "settings": {}, "params": params}
    return spec_of("pairs").model_copy(update=update)
