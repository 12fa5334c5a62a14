from __future__ import annotations

import pytest

from llmrec_pl.data.sources import detect
from llmrec_pl.data.sources.recbole import read_recbole
from llmrec_pl.errors import DatasetError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\tlabel:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tv:float_seq\n"


def write(folder, **files):
    for ending, text in files.items():
        (folder / f"toy.{ending}").write_text(text, encoding="utf-8")
    return folder


def test_fields_and_names(tmp_path):
    write(
        tmp_path,
        inter=INTER + "196\t242\t3\t881250949.0\t1\n186\t302\t2.5\t1e9\t0\n",
        item=ITEM + "242\tKolya\t1996\tComedy Drama\t0.1 0.2\n302\tL.A. Noir\t\t\t0.1 0.2\n",
        user="user_id:token\tage:token\tzip_code:token\n196\t49\t55105\n",
    )
    assert detect(tmp_path) == "recbole"
    raw = read_recbole(tmp_path)
    assert raw.name == "toy"
    assert raw.interactions.rows() == [("196", "242", 3.0, 881250949), ("186", "302", 2.5, 10**9)]
    assert raw.items.rows(named=True) == [
        {"item_id": "242", "title": "Kolya", "year": 1996, "genres": "Comedy, Drama"},
        {"item_id": "302", "title": "L.A. Noir", "year": None, "genres": None},
    ]
    assert raw.users.columns == ["user_id", "age", "zip"]
    assert raw.provenance["notes"] == ["fields left out: toy.inter: label, toy.item: v"]


def test_only_interactions(tmp_path):
    raw = read_recbole(write(tmp_path, inter="user_id:token\titem_id:token\na\tb\n"))
    assert raw.interactions.rows() == [("a", "b")]
    assert raw.items is None


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("uid:token\titem_id:token\n1\t2\n", r"no field \['user_id'\]"),
        ("user_id\titem_id:token\n1\t2\n", "'user_id' in its header, expected `field:type`"),
        (INTER + "1\t2\tx\t3\t1\n", r"toy\.inter' line 2 has 'x' in column `rating`"),
        (INTER + "1\t\t3\t3\t1\n", "line 2 has no value in column `item_id`"),
        (INTER + "1\t2\n", "line 2 "),
    ],
)
def test_bad_files_are_named(tmp_path, inter, message):
    with pytest.raises(DatasetError, match=message):
        read_recbole(write(tmp_path, inter=inter))


def test_exactly_one_data_set(tmp_path):
    with pytest.raises(DatasetError, match=r"exactly one `.inter` file, it has none"):
        read_recbole(tmp_path)
    write(tmp_path, inter=INTER)
    (tmp_path / "other.inter").write_text(INTER)
    with pytest.raises(DatasetError, match=r"it has \['other.inter', 'toy.inter'\]"):
        read_recbole(tmp_path)
