import pytest

from augment.texts import attribute_text, profile_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        ("  Jim \n Jarmusch ", "Jim Jarmusch"),
        ([], ""),
        (["Horror", None, " Sci-Fi"], "Horror, Sci-Fi"),
        (25, "25"),
    ],
)
def test_attribute_text(value, text):
    assert attribute_text(value) == text


def test_profile_text_names_what_is_known():
    record = {"age": 25, "gender": None, "liked_genres": ["Horror", "Sci-Fi"], "country": " UK "}
    assert profile_text(record) == "age: 25; liked genres: Horror, Sci-Fi; country: UK"


def test_a_profile_without_content_has_no_text():
    assert profile_text({"age": None, "liked_genres": [], "country": ""}) == ""
