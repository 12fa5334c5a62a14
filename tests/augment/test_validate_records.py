"""Profiles and attributes; acceptance cases 43-46, 54 and 58."""

import json

import pytest

from augment.schemas import json_schema
from augment.validate import validate
from tests.augment.replies import (
    BODY,
    FIELDS,
    NEW,
    OLD,
    PROFILE,
    RECORD,
    judged,
    reply,
    spec_of,
)

# Profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_set", [NEW, OLD])
def test_a_good_profile(prompt_set):
    verdict = judged("profiles", json.dumps(PROFILE), prompt_set)
    assert verdict.accepted
    assert verdict.value == PROFILE
    assert list(verdict.value) == FIELDS["profiles"]


def test_texts_of_a_profile_are_made_even():
    said = {
        **PROFILE,
        "liked_genres": [" Horror ", "horror", "Sci\nFi\x00", "unknown", "<name>"],
        "country": "<country of the person",
        "language": " \u202eEnglish \t (US) ",
    }
    verdict = judged("profiles", json.dumps(said))
    assert verdict.value["liked_genres"] == ["Horror", "Sci Fi"]
    assert verdict.value["country"] is None
    assert verdict.value["language"] == "English (US)"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"age": "25"}, "schema"),
        ({"gender": "Female"}, "schema"),
        ({"liked_genres": "Horror"}, "schema"),
        ({"liked_genres": ["x"] * 6}, "schema"),
        ({"country": "\ud800"}, "schema"),
        ({"extra": 1}, "schema"),
    ],
)
def test_faulty_profiles(change, code):
    assert judged("profiles", json.dumps({**PROFILE, **change})).code == code


def test_null_is_for_the_newer_set_only():
    content = json.dumps({**PROFILE, "country": None})
    assert judged("profiles", content).value["country"] is None
    assert judged("profiles", content, OLD).code == "schema"


@pytest.mark.parametrize("word", ["unknown", "Unknown", " N/A ", "", "<language>"])
def test_the_older_set_wants_a_guess(word):
    content = json.dumps({**PROFILE, "language": word})
    assert judged("profiles", content, OLD).code == "unknown_value"


OLDER = {
    "fence": "```json\n" + json.dumps(PROFILE) + "\n```",
    "spelling": json.dumps(
        {
            "Age": "25",
            "Gender": "Female",
            "Liked Genres": "Horror, Sci-Fi",
            "disliked genres": [],
            "Liked directors": ["Ridley Scott"],
            "Country": ["UK"],
            "Language": "English",
        }
    ),
    "lines": (
        "Age: 25\nGender: female\nLiked genres: Horror, Sci-Fi\nDisliked genres: []\n"
        "Liked directors: Ridley Scott\nCountry: UK\nLanguage: English"
    ),
    "single quotes": (
        "{'age': '25', 'gender': 'female', 'liked_genres': ['Horror', 'Sci-Fi'], "
        "'disliked_genres': [], 'liked_directors': ['Ridley Scott'], 'country': 'UK', "
        "'language': 'English'}"
    ),
    "no quotes": (
        "{age: 25, gender: female, liked_genres: Horror, Sci-Fi, disliked_genres: [], "
        "liked_directors: [Ridley Scott], country: UK, language: English}"
    ),
}


@pytest.mark.parametrize("content", OLDER.values(), ids=OLDER)
def test_older_records_may_look_otherwise(content):
    assert judged("profiles", content, OLD).value == PROFILE
    assert judged("profiles", content).code in ("bad_json", "schema")


@pytest.mark.parametrize("name", ["fence", "spelling", "single quotes", "no quotes"])
def test_nothing_cut_is_ever_completed(name):
    content = OLDER[name]
    for end in range(1, len(content)):
        if content[:end].strip() == content.strip():
            continue
        for prompt_set in (NEW, OLD):
            verdict = judged("profiles", content[:end], prompt_set)
            assert not verdict.accepted, content[:end]


@pytest.mark.parametrize("end", range(1, len(json.dumps(PROFILE))))
def test_no_cut_json_is_ever_accepted(end):
    for prompt_set in (NEW, OLD):
        assert judged("profiles", json.dumps(PROFILE)[:end], prompt_set).code == "bad_json"


@pytest.mark.parametrize(
    "content",
    [
        "Here it is:\n" + OLDER["lines"],
        OLDER["lines"] + "\nHobby: chess",
        OLDER["lines"] + "\nAge: 30",
        OLDER["lines"].replace("Gender: female\n", ""),
        OLDER["lines"].replace("UK", '"UK'),
        OLDER["lines"].replace("[]", "[Drama"),
    ],
)
def test_what_is_no_record_is_refused(content):
    assert judged("profiles", content, OLD).code == "bad_json"


# Attributes ------------------------------------------------------------------------------------


def items(*records):
    return json.dumps({"items": list(records)})


def item(name, **change):
    return {"id": name, **RECORD, **change}


@pytest.mark.parametrize("prompt_set", [NEW, OLD])
@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_items_in_any_order_are_aligned_by_id(prompt_set, order):
    records = [item(name, director=f"of {name}") for name in order]
    verdict = judged("attributes", items(*records), prompt_set)
    assert verdict.accepted
    assert set(verdict.value) == set("abc")
    assert all(verdict.value[name] == {**RECORD, "director": f"of {name}"} for name in "abc")


@pytest.mark.parametrize(
    ("records", "lacking"),
    [
        ([item("a"), item("c")], ["b"]),
        ([item("a"), item("b"), item("a"), item("c")], ["a"]),
        ([item("a"), item("a"), item("a"), item("b"), item("c")], ["a"]),
        ([item("a"), item("b"), item("c", country=7)], ["c"]),
        ([item("a"), item("b", more=1), item("z")], ["b", "c"]),
        ([item("a"), "b", 3, None, {"id": ["c"]}, {}], ["b", "c"]),
    ],
)
@pytest.mark.parametrize("temperature", [0, 0.6])
def test_only_faulty_items_are_asked_for_again(records, lacking, temperature):
    verdict = judged("attributes", items(*records), temperature=temperature)
    assert verdict.code == "missing_id"
    assert set(verdict.value) == set("abc") - set(lacking)
    assert verdict.child.context["ids"] == lacking
    assert verdict.child.context["items"] == ["abc".index(name) for name in lacking]
    (message,) = verdict.child.body["messages"]
    for name in "abc":
        assert (f"line {name}" in message["content"]) == (name in lacking)
    assert verdict.child.body["temperature"] == temperature


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (items(), "missing_id"),
        (items(item("x")), "missing_id"),
        (items(item("a", country=7)), "schema"),
        (items(item("a"), item("a")), "doubled_id"),
        (json.dumps([item("a")]), "schema"),
        (json.dumps({"items": {}}), "schema"),
        (json.dumps({"items": [item("a")], "note": "x"}), "schema"),
        ("nothing", "bad_json"),
    ],
)
def test_a_group_without_any_good_item(content, code):
    verdict = judged("attributes", content)
    assert (verdict.code, verdict.value, verdict.child) == (code, None, None)


def test_one_item_needs_no_list_in_the_older_set():
    alone = {"ids": ["7"], "items": [3], "lines": ["line 7"]}
    for content in (
        json.dumps({"items": [{**item(7)}]}),
        json.dumps([item("7")]),
        json.dumps(item("7")),
        json.dumps(RECORD),
        "director: Ridley Scott\ncountry: UK\nlanguage: English",
    ):
        assert judged("attributes", content, OLD, alone).value == {"7": RECORD}, content
    assert judged("attributes", json.dumps(item("8")), OLD, alone).code == "missing_id"


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([RECORD], "accepted"),
        ([item("7")], "accepted"),
        ([item("8")], "missing_id"),
        ([RECORD, RECORD], "doubled_id"),
        ([], "missing_id"),
        (["Ridley Scott"], "missing_id"),
    ],
)
def test_one_item_needs_no_id(records, code):
    spec = spec_of("attributes", items_per_call=1)
    assert "id" not in json_schema(spec)["properties"]["items"]["items"]["properties"]
    assert "id" in json_schema(spec_of("attributes"))["properties"]["items"]["items"]["properties"]
    alone = {"ids": ["7"], "items": [3], "lines": ["line 7"]}
    verdict = validate(spec, reply(items(*records)), {**BODY, **spec.params}, alone)
    assert verdict.code == code
    assert verdict.value == ({"7": RECORD} if code == "accepted" else None)


def test_unknown_facts_are_null_or_refused():
    record = item("a", director="unknown", country=None)
    context = {"ids": ["a"], "items": [0], "lines": [""]}
    verdict = judged("attributes", items(record), context=context)
    assert verdict.value == {"a": {**RECORD, "director": None, "country": None}}
    record = item("a", director="unknown")
    assert judged("attributes", items(record), OLD, context).code == "unknown_value"
