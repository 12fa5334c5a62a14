from __future__ import annotations

import datetime
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_pl.data.sources import detect
from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.data.sources.table import join_columns, read_table
from llmrec_pl.errors import DatasetError

COLUMNS = {"user_column": "who", "item_column": "song"}


def test_csv_tsv_parquet_and_json_lines_are_read_alike(tmp_path):
    frame = pl.DataFrame(
        {"who": ["a", "b"], "song": ["x, y", "z"], "stars": [4.5, 1.0], "at": [10, 20]}
    )
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_ndjson(tmp_path / "t.jsonl")
    for name in ("t.csv", "t.tsv", "t.parquet", "t.jsonl"):
        raw = read_table(tmp_path / name, **COLUMNS, rating_column="stars", timestamp_column="at")
        assert raw.interactions.rows() == [("a", "x, y", 4.5, 10), ("b", "z", 1.0, 20)]
        assert raw.name == "t"
    assert detect(tmp_path / "t.csv") == "table"


def test_usual_names_are_found_and_splits_have_aliases(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("user_id,item_id,rating,split\n1,2,3,train\n1,3,4,Validation\n1,4,5,test\n")
    raw = read_table(path)
    assert raw.interactions["split"].to_list() == ["train", "val", "test"]
    assert raw.given_splits == ("train", "val", "test")
    assert raw.provenance["columns"]["rating"] == "rating"


@pytest.mark.parametrize(
    "values", [["2020-01-02 00:00:10"], ["2020-01-02T00:00:10"], ["1577923210"], ["1577923210.9"]]
)
def test_times_as_seconds_or_dates(tmp_path, values):
    path = tmp_path / "t.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"1,2,{v}\n" for v in values))
    assert read_table(path).interactions["timestamp"].to_list() == [1577923210]


def test_dates_and_parquet_times(tmp_path):
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\n1,2,1970-01-02\n")
    assert read_table(tmp_path / "t.csv").interactions["timestamp"].to_list() == [86_400]
    frame = pl.DataFrame({"user_id": [1], "item_id": [2]})
    for value in (datetime.datetime(1970, 1, 2), datetime.date(1970, 1, 2)):
        frame.with_columns(timestamp=pl.lit(value)).write_parquet(tmp_path / "t.parquet")
        found = read_table(tmp_path / "t.parquet").interactions
        assert found.rows() == [("1", "2", 86_400)]


@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), min_size=1)] * 2), min_size=1))
def test_any_ids_survive_a_csv(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    frame = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    frame.write_csv(path, quote_style="always")
    assert read_table(path).interactions.rows() == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u,item_id\n1,2\n", "no column 'user_id'.*--user-column"),
        ("user_id,item_id,rating\n1,2,3\n1,2,\n", "line 3 has None in column `rating`"),
        ("user_id,item_id,timestamp\n1,2,soon\n", "line 2 has 'soon' in column `timestamp`"),
        ("user_id,item_id,split\n1,2,holdout\n", "line 2 has 'holdout' in column 'split'"),
        ("user_id,item_id,split\n1,2,test\n", "no `train` row"),
        ("user_id,item_id\n1,2\n,3\n", "line 3 has no value in column `user_id`"),
        ("user_id,item_id\n1,2,3\n", "line 2 has 3 fields instead of 2"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_table(path)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DatasetError, match="is no file"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(DatasetError, match=r"ending '\.xlsx'"):
        read_table(tmp_path / "t.xlsx")
    (tmp_path / "t.parquet").write_text("x")
    with pytest.raises(DatasetError, match=r"cannot read .*t\.parquet"):
        read_table(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_bytes("user_id,item_id\n1,é\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="line 2 is not UTF-8 text: byte 0xe9"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text('{"user_id": 1}\n{"user_id"\n')
    with pytest.raises(DatasetError, match="line 2 is not valid JSON"):
        read_table(tmp_path / "t.jsonl")


def test_lone_surrogates_are_replaced_and_counted(tmp_path):
    text = '{"id": "1", "Plot": "a \\ud83d b", "Cast": ["x", "\\udc00"]}\n'
    (tmp_path / "t.jsonl").write_text(text)
    (tmp_path / "t.csv").write_bytes(b'id,plot,cast\n1,a \xed\xa0\xbd b,"x, \xed\xb0\x80"\n')
    for name in ("t.jsonl", "t.csv"):
        raw = RawDataset("t", pl.DataFrame({"user_id": ["9"], "item_id": ["1"]}))
        note = join_columns(raw, "items", tmp_path / name)
        assert "2 lone surrogates became U+FFFD" in note
        assert raw.items.rows() == [("1", "a \ufffd b", "x, \ufffd")]


def raw_films():
    return RawDataset(
        "films",
        pl.DataFrame({"user_id": ["9", "9"], "item_id": ["1", "2"]}),
        items=pl.DataFrame({"item_id": ["1", "2"], "title": ["Heat", "Seven"]}),
    )


def test_further_columns_are_joined_by_the_first(tmp_path):
    rows = [
        {"movie": 2, "Title": "Se7en", "Director": "D. Fincher"},
        {"movie": 3, "Director": "N/A"},
    ]
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    raw = raw_films()
    note = join_columns(raw, "items", path)
    assert raw.items.rows() == [("1", "Heat", None), ("2", "Seven", "D. Fincher")]
    assert "director for 1 of 2 items; title kept from the data set" in note
    assert "more.jsonl" in raw.provenance["files"]


def test_users_without_a_table_get_one(tmp_path):
    (tmp_path / "u.csv").write_text("id,age\n9,33\n10,44\n")
    raw = raw_films()
    join_columns(raw, "users", tmp_path / "u.csv")
    assert raw.users.rows() == [("9", "33")]


def test_a_join_that_cannot_be_right_is_refused(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text("title,id\nHeat,1\n")
    with pytest.raises(DatasetError, match="the first column must hold the ids"):
        join_columns(raw_films(), "items", path)
    path.write_text("id,plot\n1,a\n1,b\n")
    with pytest.raises(DatasetError, match="id '1' twice"):
        join_columns(raw_films(), "items", path)
    path.write_text("id,Plot,plot\n1,a,b\n")
    with pytest.raises(DatasetError, match="two columns of one name"):
        join_columns(raw_films(), "items", path)
