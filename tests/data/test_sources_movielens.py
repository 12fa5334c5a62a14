from __future__ import annotations

import zipfile

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_pl.data.sources import detect, read
from llmrec_pl.data.sources.movielens import read_movielens, split_year
from llmrec_pl.errors import DatasetError

FLAGS = "|".join(["0"] * 19)


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(data)
    return folder


def ml_100k():
    toy = "|".join("1" if n in (3, 5) else "0" for n in range(19))
    return {
        "u.data": "1\t1\t5\t881250949\n1\t2\t3\t881250950\n2\t1\t4\t881250951\n",
        "u.item": f"1|Toy Story (1995)|01-Jan-1995||url|{toy}\n2|Misérables, Les (1998)|||url|"
        f"{FLAGS}\n".encode("latin-1").decode("latin-1"),
        "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
    }


def ml_100k_bytes():
    return {name: text.encode("latin-1") for name, text in ml_100k().items()}


def ml_1m():
    return {
        "ratings.dat": "1::1193::5::978300760\n1::1::3::978300761\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n"
        "1193::One Flew (Über) (1975)::Drama\n7::Mission:: Two (1996)::Drama\n",
        "users.dat": "1::F::1::10::48067\n",
    }


def ml_20m():
    return {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4.0,1112484676\n",
        "movies.csv": 'movieId,title,genres\n2,"American President, The (1995)",Comedy|Drama\n'
        "29,Untitled Thing,(no genres listed)\n",
    }


def test_100k(tmp_path):
    raw = read_movielens(write(tmp_path, ml_100k_bytes()))
    assert raw.name == "ml-100k"
    assert raw.interactions.row(0) == ("1", "1", 5.0, 881250949)
    assert raw.items.rows() == [
        ("1", "Toy Story", 1995, "Animation, Comedy"),
        ("2", "Misérables, Les", 1998, None),
    ]
    assert raw.users.row(0, named=True) == {
        "user_id": "1",
        "age": "24",
        "gender": "M",
        "occupation": "technician",
        "zip": "85711",
    }


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_1m_in_both_encodings(tmp_path, encoding):
    files = {name: text.encode(encoding) for name, text in ml_1m().items()}
    raw = read_movielens(write(tmp_path, files))
    assert raw.name == "ml-1m"
    assert raw.interactions["rating"].to_list() == [5.0, 3.0]
    assert raw.items["title"].to_list() == ["Toy Story", "One Flew (Über)", "Mission:: Two"]
    assert raw.users.row(0) == ("1", "F", "under 18", "K-12 student", "48067")


def test_1m_without_ratings_takes_the_pairs_and_says_so(tmp_path):
    write(tmp_path, {k: v.encode("latin-1") for k, v in ml_1m().items() if k != "ratings.dat"})
    pairs = pl.DataFrame({"userID": ["1", "1"], "movieID": ["1", "7"]})
    pairs.write_parquet(tmp_path / "ratings_user_movie_only.parquet")
    raw = read_movielens(tmp_path)
    assert raw.interactions.columns == ["user_id", "item_id"]
    assert "without rating" in raw.provenance["notes"][0]


def test_10m_has_half_stars_and_no_users(tmp_path):
    files = {
        "ratings.dat": "1::122::4.5::838985046\n",
        "movies.dat": "122::Boomerang (1992)::Comedy\n",
    }
    raw = read_movielens(write(tmp_path, files))
    assert raw.name == "ml-10m"
    assert raw.interactions["rating"].to_list() == [4.5]
    assert raw.users is None


def test_csv_variants(tmp_path):
    raw = read_movielens(write(tmp_path, ml_20m()))
    assert raw.items.rows() == [
        ("2", "American President, The", 1995, "Comedy, Drama"),
        ("29", "Untitled Thing", None, None),
    ]
    assert raw.interactions["rating"].to_list() == [3.5, 4.0]


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    files = {n: b"\xef\xbb\xbf" + t.replace("\n", "\r\n").encode() for n, t in ml_20m().items()}
    raw = read_movielens(write(tmp_path, files))
    assert raw.interactions["user_id"].to_list() == ["1", "1"]
    assert raw.interactions["timestamp"].to_list() == [1112486027, 1112484676]


@pytest.mark.parametrize("files", [ml_100k_bytes, ml_1m, ml_20m])
def test_folder_nested_folder_and_zip_are_read_alike(tmp_path, files):
    content = {n: t if isinstance(t, bytes) else t.encode("latin-1") for n, t in files().items()}
    plain = read_movielens(write(tmp_path / "plain", content))
    write(tmp_path / "outer" / "inner", content)
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml-x/", "")
        for name, data in content.items():
            archive.writestr(f"ml-x/{name}", data)
    for path in (tmp_path / "outer", tmp_path / "ml.zip"):
        assert detect(path) == "movielens"
        other = read("movielens", path)
        assert other.interactions.equals(plain.interactions)
        assert other.items.equals(plain.items)


BAD_ROWS = [
    ("1\t2\t3\t4\n1\t2\tfive\t4\n", r"line 2 has 'five' in column `rating`"),
    ("1\t2\t3\t4\n1\t2\tnan\t4\n", r"line 2 has 'nan' in column `rating`"),
    ("1\t2\t3\t4\n1\t2\tinf\t4\n", r"line 2 has 'inf' in column `rating`"),
    ("1\t2\t3\t4\n1\t2\t3\tnow\n", r"line 2 has 'now' in column `timestamp`"),
    ("1\t2\t3\t4\n\t2\t3\t4\n", r"line 2 has no value in column `user_id`"),
    ("1\t2\t3\t4\n1\t2\t3\n", r"line 2 "),
    ("1\t2\t3\t4\n1\t2\t3\t4\t5\n", r"line 2 has 5 fields instead of 4"),
    ("", r"is empty"),
]


@pytest.mark.parametrize(("text", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_line_and_value(tmp_path, text, message):
    write(tmp_path, {"u.data": text})
    with pytest.raises(DatasetError, match=r"u\.data.*" + message):
        read_movielens(tmp_path)


def test_other_bad_files(tmp_path):
    write(tmp_path / "a", {"ratings.dat": "1::2::3::4\n", "movies.dat": "1::Heat (1995)\n"})
    with pytest.raises(DatasetError, match="line 1 is not `id::title::genres`"):
        read_movielens(tmp_path / "a")
    write(tmp_path / "b", {"ratings.csv": "user,movie\n1,2\n"})
    with pytest.raises(DatasetError, match=r"no column \['userId'"):
        read_movielens(tmp_path / "b")
    write(tmp_path / "c", {"readme.txt": "hello"})
    with pytest.raises(DatasetError, match=r"holds none of .*readme\.txt"):
        read_movielens(tmp_path / "c")
    with pytest.raises(DatasetError, match="fit no known format"):
        detect(tmp_path / "c")
    with pytest.raises(DatasetError, match="does not exist"):
        read_movielens(tmp_path / "d")
    write(tmp_path, {"broken.zip": "no zip"})
    with pytest.raises(DatasetError, match=r"neither a folder nor a readable \.zip"):
        read_movielens(tmp_path / "broken.zip")


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Heidi Fleiss: Hollywood Madam (1995) ", "Heidi Fleiss: Hollywood Madam", 1995),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en)", 1995),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", 1975),
        ("Doctor Who (2005\u2013 )", "Doctor Who", 2005),
        ("unknown", "unknown", None),
        ("Babylon 5", "Babylon 5", None),
        ("(1995)", "(1995)", 1995),
    ],
)
def test_years_leave_titles(raw, title, year):
    assert split_year(pl.Series([raw])).row(0) == (title, year)


@given(
    st.text(alphabet="abc (19)é", min_size=1).filter(lambda t: t.strip()), st.integers(1000, 9999)
)
def test_any_title_with_a_year_comes_apart(title, year):
    found, number = split_year(pl.Series([f"{title} ({year})"])).row(0)
    assert number == year
    assert found == title.rstrip() or found == title.strip()


@pytest.mark.real
def test_real_100k(real_data):
    raw = read_movielens(real_data / "ml-100k")
    assert raw.interactions.height == 100_000
    assert (raw.users.height, raw.items.height) == (943, 1682)
    assert raw.items["year"].null_count() == 1
    assert raw.items.filter(pl.col("item_id") == "12")["title"].item() == "Usual Suspects, The"


@pytest.mark.real
def test_real_1m(real_data):
    raw = read_movielens(real_data / "ml-1m")
    assert raw.interactions.height == 1_000_209
    assert (raw.users.height, raw.items.height) == (6040, 3883)
    assert raw.items["year"].null_count() == 0
