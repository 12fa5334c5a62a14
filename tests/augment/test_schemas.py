import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from augment.schemas import (
    PairChoice,
    attribute_fields,
    field_name,
    form_in_words,
    json_schema,
    profile_fields,
    profile_model,
    record_model,
    response_format,
)
from llmrec_pl.errors import ConfigError
from tests.augment.tiny_data import FILMS, ask, config_of, tiny

KINDS = ("pairs", "profiles", "attributes")
GOOD = {
    "age": "25-34",
    "gender": None,
    "liked_genres": ["Horror"],
    "disliked_genres": [],
    "liked_directors": [],
    "country": None,
    "language": "English",
}
FIELDS = tuple(GOOD)


def all_objects(schema):
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from all_objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from all_objects(value)


def leaves(schema):
    if schema.get("type") == "object":
        for value in schema["properties"].values():
            yield from leaves(value)
    elif schema.get("type") == "array":
        yield schema
        yield from leaves(schema["items"])
    elif "anyOf" in schema:
        for value in schema["anyOf"]:
            yield from leaves(value)
    else:
        yield schema


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_strict_and_bounded(tmp_path, kind):
    spec, _ = ask(kind, tiny(tmp_path))
    schema = json_schema(spec)
    for part in all_objects(schema):
        assert part["additionalProperties"] is False
        assert part["required"] == list(part["properties"])
    for leaf in leaves(schema):
        types = leaf["type"] if isinstance(leaf["type"], list) else [leaf["type"]]
        if "array" in types:
            assert "maxItems" in leaf
        if "string" in types:
            assert {"maxLength", "enum", "pattern"} & set(leaf)
        if "integer" in types:
            assert "enum" in leaf or {"minimum", "maximum"} <= set(leaf)
    assert response_format(spec)["json_schema"]["strict"] is True
    json.dumps(schema, allow_nan=False)


def test_schema_of_pairs_is_the_same_for_all_users(tmp_path):
    _, wants = ask("pairs", tiny(tmp_path))
    forms = {json.dumps(want.body["response_format"]) for want in wants if want.body}
    assert len(forms) == 1
    assert '"enum": [1, 2, 3]' in forms.pop()


@pytest.mark.parametrize("kind", ["profiles", "attributes"])
def test_form_in_words_names_the_fields_of_the_schema(tmp_path, kind):
    spec, _ = ask(kind, tiny(tmp_path))
    shown = json.loads(form_in_words(spec))
    schema = json_schema(spec)
    if kind == "attributes":
        shown, schema = shown["items"][0], schema["properties"]["items"]["items"]
    assert list(shown) == schema["required"]


# Names -----------------------------------------------------------------------------------------


def test_fields_come_from_the_words_of_the_domain():
    words = {**FILMS, "categories": "Musical Genres", "creators": "artists"}
    assert profile_fields(words)[2:5] == [
        "liked_musical_genres",
        "disliked_musical_genres",
        "liked_artists",
    ]
    assert attribute_fields(["creator", "country", "Box office"], FILMS) == [
        "director",
        "country",
        "box_office",
    ]
    assert field_name("  Two  Words ") == "two_words"


@pytest.mark.parametrize("fields", [["creator", "director"], ["id"], ["  "]])
def test_fields_with_one_name_are_refused(fields):
    with pytest.raises(ConfigError, match=r"tasks\.attributes\.fields"):
        attribute_fields(fields, FILMS)


def test_domain_with_one_word_twice_is_refused():
    with pytest.raises(ConfigError, match="domain"):
        profile_fields({**FILMS, "categories": "tags", "creators": "tags"})


def test_fields_may_be_called_like_anything(tmp_path):
    names = ["copy", "model_config", "box-office", "schema", "_private", "año"]
    model = record_model(tuple(names), null=True)
    record = {"id": "1", **dict.fromkeys(names, "x")}
    assert model.model_validate(record).model_dump(by_alias=True) == record
    config = config_of(tasks={"attributes": {"fields": names}})
    assert config.tasks.attributes.fields == names


# Checks ----------------------------------------------------------------------------------------


def test_a_good_profile_passes_unchanged():
    model = profile_model(FIELDS, null=True)
    assert model.model_validate(GOOD).model_dump(by_alias=True) == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"age": 0},
        {"age": 111},
        {"age": True},
        {"age": 25.0},
        {"age": "25"},
        {"age": "34-25"},
        {"age": "0-10"},
        {"age": "90-120"},
        {"age": "25-34\n"},
        {"gender": "Male"},
        {"gender": "unknown"},
        {"liked_genres": None},
        {"liked_genres": "Horror"},
        {"liked_genres": ["a"] * 6},
        {"liked_genres": [1]},
        {"country": "x" * 61},
        {"country": 7},
        {"more": 1},
    ],
)
def test_faulty_profiles_are_refused(change):
    with pytest.raises(ValidationError):
        profile_model(FIELDS, null=True).model_validate({**GOOD, **change})


@pytest.mark.parametrize("missing", FIELDS)
def test_every_field_is_required(missing):
    record = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(ValidationError):
        profile_model(FIELDS, null=True).model_validate(record)


@given(low=st.integers(-5, 130), high=st.integers(-5, 130))
@settings(max_examples=60)
def test_bands_of_age(low, high):
    model = profile_model(FIELDS, null=True)
    fits = 1 <= low <= high <= 110
    try:
        model.model_validate({**GOOD, "age": f"{low}-{high}"})
    except ValidationError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, [1]])
def test_numbers_of_a_pair_are_integers(bad):
    with pytest.raises(ValidationError):
        PairChoice.model_validate({"most_liked": bad, "least_liked": 2})
