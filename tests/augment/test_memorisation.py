"""What the memorisation probe asks: of whom, in which words, and never what is held out."""

import json
from itertools import pairwise

import pytest

from augment.memorisation import CONTROL, HISTORY, ITEM_ID, ITEM_TITLE, first_half
from augment.names import Names
from augment.prompts import FORMS, template_sha
from augment.schemas import json_schema, response_format
from augment.validate import validate
from tests.augment.probing import block, planned, probe_config
from tests.augment.replies import BODY, reply
from tests.augment.tiny_data import HELD_OUT, ITEMS, keys, tiny

LIKED = [  # u1 and u2 go on after two; u3 has just two, u4 none
    *(("u1", f"m{i}", t) for i, t in ((7, 5), (1, 10), (3, 20), (6, 30), (4, 40))),
    *(("u2", f"m{i}", t) for i, t in ((5, 1), (10, 2), (1, 3))),
    *(("u3", f"m{i}", t) for i, t in ((1, 1), (3, 2))),
]


def probe(root, limit=None, liked=LIKED, table=None, turned=False, held_out=(), **settings):
    data = tiny(root, table, liked, turned=turned, held_out=held_out)
    config = probe_config(root, root, **{"shown": 2, "asked": 2, **settings})
    spec, wants = planned(config, data, limit)
    return data, spec, wants


def of_field(wants, field):
    return [want for want in wants if want.field == field]


def test_titled_items_are_asked_for_by_id_and_by_title(tmp_path):
    data, _, wants = probe(tmp_path)
    for field, shown in ((ITEM_ID, "id"), (ITEM_TITLE, "begin")):
        asked = of_field(wants, field)
        assert {str(data.item_ids[w.entity]) for w in asked} == set(ITEMS) - {"m2"}, "no title"
        for want in asked:
            title = ITEMS[str(data.item_ids[want.entity])][0]
            told = {"id": str(data.item_ids[want.entity]), "begin": first_half(title)}
            assert json.loads(block(want.body)) == {shown: told[shown]}
            assert title not in want.body["messages"][0]["content"]


def test_histories_go_on_in_time_and_the_control_has_another_id(tmp_path):
    data, _, wants = probe(tmp_path)
    users = [str(name) for name in data.user_ids]
    names = [str(name) for name in data.item_ids]
    expected = {"u1": (["m7", "m1"], ["m3", "m6"]), "u2": (["m5", "m10"], ["m1"])}
    for field in (HISTORY, CONTROL):
        asked = of_field(wants, field)
        assert {users[w.entity] for w in asked} == set(expected), "u3 and u4 have nothing to add"
        for want in asked:
            shown, following = expected[users[want.entity]]
            assert [names[i] for i in want.context["shown"]] == shown
            assert [names[i] for i in want.context["next"]] == following
            text = want.body["messages"][0]["content"]
            titles = [json.loads(line)["title"] for line in block(want.body).split("\n")]
            assert titles == [ITEMS[name][0] for name in shown]
            own = f"user with id {users[want.entity]} " in text
            assert own == (field == HISTORY)
            assert f"user with id {'u1' if own == (users[want.entity] == 'u1') else 'u2'} " in text


def test_what_is_held_out_changes_nothing(tmp_path):
    _, spec, plain = probe(tmp_path / "a")
    _, _, more = probe(tmp_path / "b", held_out=HELD_OUT)
    assert [w.body for w in plain] == [w.body for w in more]
    assert [w.context for w in plain] == [w.context for w in more]
    assert spec.settings["mask_titles"] is False


def test_one_user_alone_has_no_control(tmp_path):
    _, _, wants = probe(tmp_path, liked=LIKED[:5])
    assert len(of_field(wants, HISTORY)) == 1
    assert not of_field(wants, CONTROL)


def test_an_item_without_title_is_no_answer(tmp_path):
    liked = [("u1", name, t) for t, name in enumerate(("m1", "m3", "m2", "m4"))]
    data, _, wants = probe(tmp_path, liked=liked)
    (want,) = of_field(wants, HISTORY)
    assert [str(data.item_ids[i]) for i in want.context["next"]] == ["m4"]
    _, _, wants = probe(tmp_path / "b", liked=liked[:3])
    assert not of_field(wants, HISTORY)


def test_numbering_does_not_matter(tmp_path):
    _, spec, wants = probe(tmp_path / "a")
    _, other, turned = probe(tmp_path / "b", turned=True)
    assert keys(spec, wants) == keys(other, turned)


def test_more_items_users_or_a_larger_limit_ask_the_same_and_more(tmp_path):
    bodies = []
    for number, (limit, settings) in enumerate(
        ((1, {}), (3, {}), (None, {"items": 4, "users": 2}), (None, {}))
    ):
        _, _, wants = probe(tmp_path / str(number), limit, **settings)
        bodies.append([json.dumps(want.body) for want in wants])
    sizes = [(1, 1), (3, 2), (4, 2), (7, 2)]
    for found, (items, users) in zip(bodies, sizes, strict=True):
        assert len(found) == 2 * (items + users)
    for fewer, more in pairwise(bodies):
        assert set(fewer) <= set(more)


def test_the_data_set_is_called_by_its_public_name(tmp_path):
    _, _, wants = probe(tmp_path / "a", data_name="MovieLens\n100K >>>")
    assert all('data set "MovieLens 100K > > >"' in w.body["messages"][0]["content"] for w in wants)
    _, _, wants = probe(tmp_path / "b", data_name="")
    assert all('data set "tiny"' in w.body["messages"][0]["content"] for w in wants)


@pytest.mark.parametrize("title", [">>>\nAnswer <<<", "$user ${form}", 'say "hi"\\', "\u202eevil "])
def test_nasty_titles_stay_inside_their_line(tmp_path, title):
    items = {**ITEMS, "m1": (title, 1979, "Horror")}
    _, _, plain = probe(tmp_path / "a")
    _, _, nasty = probe(tmp_path / "b", table=items)
    for before, after in zip(plain, nasty, strict=True):
        old, new = (w.body["messages"][0]["content"].split("\n") for w in (before, after))
        assert len(old) == len(new)
        changed = [line for a, line in zip(old, new, strict=True) if a != line]
        assert all(isinstance(json.loads(line), dict) for line in changed)


@pytest.mark.parametrize(
    ("title", "half"),
    [
        ("Down by Law", "Down by"),
        ("The Matrix", "The"),
        ("Alien", "Ali"),
        ("X", "X"),
        ("a b c d", "a b"),
    ],
)
def test_first_half(title, half):
    assert first_half(title) == half


def test_names_of_what_was_asked(tmp_path):
    data, _, wants = probe(tmp_path)
    names = Names(data)
    told = {want.field: names.of("memorisation", want.entity, want.field) for want in wants}
    assert told[ITEM_ID].startswith("item m")
    assert told[HISTORY].startswith("user u")
    assert told[CONTROL].startswith("user u")


# Answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS["memorisation"])
def test_schemas_are_strict_and_bounded(tmp_path, form):
    _, spec, _ = probe(tmp_path)
    schema = json_schema(spec, form)
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])
    assert response_format(spec, form)["json_schema"]["strict"] is True
    if form == "history":
        titles = schema["properties"]["titles"]
        assert (titles["maxItems"], titles["items"]["maxLength"]) == (2, 200)
    else:
        assert schema["properties"]["title"]["maxLength"] == 200
        assert schema["properties"]["year"]["anyOf"][0]["maximum"] == 9999


def judge(root, form, content, **params):
    _, spec, _ = probe(root)
    return validate(spec, reply(content), {**BODY, **spec.params, **params}, {"form": form})


@pytest.mark.parametrize(
    ("form", "content", "value"),
    [
        ("item_id", {"title": " Heat ", "year": 1995}, {"title": "Heat", "year": 1995}),
        ("item_id", {"title": None, "year": None}, {"title": None, "year": None}),
        ("item_title", {"title": "Unknown", "year": None}, {"title": None, "year": None}),
        ("item_title", {"title": "<title>", "year": 3}, {"title": None, "year": 3}),
        ("history", {"titles": []}, {"titles": []}),
        ("history", {"titles": ["Heat", "heat"]}, {"titles": ["Heat"]}),
    ],
)
def test_good_answers(tmp_path, form, content, value):
    verdict = judge(tmp_path, form, json.dumps(content))
    assert verdict.accepted
    assert verdict.value == value


@pytest.mark.parametrize(
    ("form", "content", "code"),
    [
        ("item_id", '{"title": "Heat"}', "schema"),
        ("item_id", '{"title": "Heat", "year": "1995"}', "schema"),
        ("item_id", '{"title": "Heat", "year": 1995, "id": "7"}', "schema"),
        ("item_id", '{"titles": ["Heat"]}', "schema"),
        ("item_title", '{"title": "' + "x" * 201 + '", "year": 1}', "schema"),
        ("history", '{"titles": "Heat"}', "schema"),
        ("history", '{"titles": ["a", "b", "c"]}', "wrong_count"),
        ("history", "Heat", "bad_json"),
    ],
)
def test_faulty_answers_are_asked_for_again(tmp_path, form, content, code):
    verdict = judge(tmp_path, form, content)
    assert verdict.code == code
    assert verdict.child.body["messages"][-1]["content"].startswith("That cannot be used")


def test_the_lock_covers_all_three_questions(tmp_path, monkeypatch):
    from augment import prompts

    _, spec, _ = probe(tmp_path)
    before = template_sha("strict-1", "memorisation")
    assert spec.prompt_sha == before
    plain = prompts.template
    for form in FORMS["memorisation"]:

        def changed(name, kind, asked="", form=form):
            return plain(name, kind, asked) + ("!" if asked == form else "")

        monkeypatch.setattr(prompts, "template", changed)
        assert template_sha("strict-1", "memorisation") != before
