"""MovieLens 100K, 1M, 10M, 20M, 25M, 32M and latest, as unpacked folder or .zip.

The variant is told from the files that are there, not from the folder's name. Ratings are not
filtered here.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import polars as pl

from llmrec_pl.data.sources.archive import RawFiles, open_raw
from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.data.sources.delimited import check_ids, decode, parse_delimited, to_numbers
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

PAIRS_ONLY = "ratings_user_movie_only.parquet"
MARKERS = {"u.data", "ratings.dat", "ratings.csv", PAIRS_ONLY}
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance",
    "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS_1M = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student",
    "customer service", "doctor/health care", "executive/managerial", "farmer", "homemaker",
    "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
AGES_1M = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55",
    "56": "56+",
}  # fmt: skip
# "(1995)" at the end, also with blanks or a "(V)" for video after it, or "(2009- )" of a series
_YEAR = r"^(.*?)\s*\((\d{4})(?:[-\u2013]\s*(?:\d{4})?\s*)?\)\s*(?:\(V\))?\s*$"


def split_year(titles: pl.Series) -> pl.DataFrame:
    """Split "Toy Story (1995)" into title and year.

    Args:
        titles: titles as MovieLens writes them.

    Returns:
        Columns ``title`` (without the year, stripped) and ``year`` (Int32, null where the title
        ends in none).
    """
    parts = titles.to_frame("raw").select(
        "raw",
        pl.col("raw").str.extract(_YEAR, 1).alias("head"),
        pl.col("raw").str.extract(_YEAR, 2).cast(pl.Int32).alias("year"),
    )
    whole = pl.col("head").is_null() | (pl.col("head") == "")  # a title that is only "(1995)"
    return parts.select(
        pl.when(whole).then(pl.col("raw").str.strip_chars()).otherwise("head").alias("title"),
        "year",
    )


def read_movielens(path: Path) -> RawDataset:
    """Read a MovieLens data set.

    Args:
        path: the unpacked folder, its parent, or the .zip.

    Raises:
        DatasetError: no ratings file is there, or a row is bad.
    """
    files = open_raw(path, MARKERS)
    if "u.data" in files:
        raw = _read_100k(files)
    elif "ratings.csv" in files:
        raw = _read_csv(files)
    else:
        raw = _read_dat(files)
    raw.provenance = {"reader": "movielens", "source": str(path), **raw.provenance}
    return raw


def _read_100k(files: RawFiles) -> RawDataset:
    data = files.read("u.data")
    columns = ["user_id", "item_id", "rating", "timestamp"]
    table = parse_delimited(data, files.where("u.data"), "\t", columns)
    interactions = _finish(table, files.where("u.data"), first_line=1)
    raw = RawDataset("ml-100k", interactions, provenance=_provenance("u.data", data))
    if "u.item" in files:
        raw.items = _items_100k(files)
    if "u.user" in files:
        raw.users = users_100k(files.read("u.user"), files.where("u.user"))
    return raw


def users_100k(data: bytes, where: str) -> pl.DataFrame:
    """Read the users of ML-100K: age, gender, occupation and zip code by id.

    Args:
        data: content of ``u.user``.
        where: how to call the file in a message.

    Raises:
        DatasetError: a row is bad.
    """
    text, _ = decode(data, where, "latin-1")
    names = ["user_id", "age", "gender", "occupation", "zip"]
    return parse_delimited(text.encode(), where, "|", names)


def _items_100k(files: RawFiles) -> pl.DataFrame:
    genres = list(GENRES_100K)
    if "u.genre" in files:
        lines = decode(files.read("u.genre"), "u.genre", "latin-1")[0].splitlines()
        genres = [line.rpartition("|")[0] for line in lines if line.strip()]
    text, _ = decode(files.read("u.item"), "u.item", "latin-1")
    where = files.where("u.item")
    names = ["item_id", "raw", "release", "video", "url", *genres]
    table = parse_delimited(text.encode(), where, "|", names)
    check_ids(table, ["item_id", "raw"], where, first_line=1)
    flagged = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in genres if g != "unknown"]
    return pl.concat(
        [
            table.select("item_id"),
            split_year(table["raw"]),
            table.select(pl.concat_str(flagged, separator=", ", ignore_nulls=True).alias("genres")),
        ],
        how="horizontal",
    ).with_columns(_empty_to_null("genres"))


def _read_dat(files: RawFiles) -> RawDataset:
    """Read 1M and 10M: fields separated by "::", no header."""
    if "ratings.dat" in files:
        data = files.read("ratings.dat")
        where = files.where("ratings.dat")
        columns = ["user_id", "item_id", "rating", "timestamp"]
        table = parse_delimited(data.replace(b"::", b"\t"), where, "\t", columns)
        interactions = _finish(table, where, first_line=1)
        provenance = _provenance("ratings.dat", data)
    else:
        data = files.read(PAIRS_ONLY)
        table = pl.read_parquet(data)
        interactions = table.select(
            pl.nth(0).cast(pl.String).alias("user_id"), pl.nth(1).cast(pl.String).alias("item_id")
        )
        provenance = _provenance(PAIRS_ONLY, data)
        provenance["notes"] = [
            f"`{PAIRS_ONLY}` holds (user, movie) pairs without rating and timestamp; every pair "
            "counts as positive."
        ]
    name = "ml-1m" if "users.dat" in files else "ml-10m"
    raw = RawDataset(name, interactions, provenance=provenance)
    if "movies.dat" in files:
        raw.items = _items_dat(files, "latin-1" if name == "ml-1m" else "utf-8")
    if "users.dat" in files:
        where = files.where("users.dat")
        names = ["user_id", "gender", "age", "occupation", "zip"]
        users = parse_delimited(files.read("users.dat").replace(b"::", b"\t"), where, "\t", names)
        codes = {str(code): label for code, label in enumerate(OCCUPATIONS_1M)}
        raw.users = users.with_columns(
            pl.col("occupation").replace(codes), pl.col("age").replace(AGES_1M)
        )
    return raw


def _items_dat(files: RawFiles, encoding: str) -> pl.DataFrame:
    where = files.where("movies.dat")
    data = files.read("movies.dat")
    try:
        data.decode("utf-8")
        encoding = "utf-8"  # copies of 1M converted to UTF-8 are common
    except UnicodeDecodeError:
        pass
    text, _ = decode(data, where, encoding)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("::")
        if len(fields) < 3 or not fields[0]:
            raise DatasetError(
                f"{where!r} line {number} is not `id::title::genres`: {line[:80]!r}. Correct or "
                "remove the line."
            )
        rows.append((fields[0], "::".join(fields[1:-1]), fields[-1]))
    table = pl.DataFrame(rows, schema=["item_id", "raw", "genres"], orient="row")
    return _items(table)


def _read_csv(files: RawFiles) -> RawDataset:
    """Read 20M, 25M, 32M and latest: CSV with a header."""
    data = files.read("ratings.csv")
    where = files.where("ratings.csv")
    table = parse_delimited(data, where, ",")
    _require(table, ["userId", "movieId", "rating", "timestamp"], where)
    renamed = table.rename({"userId": "user_id", "movieId": "item_id"})
    interactions = _finish(renamed, where, first_line=2)
    raw = RawDataset(_name_of_csv(interactions), interactions)
    raw.provenance = _provenance("ratings.csv", data)
    if "movies.csv" in files:
        movies = parse_delimited(
            files.read("movies.csv"), files.where("movies.csv"), ",", quoted=True
        )
        _require(movies, ["movieId", "title", "genres"], files.where("movies.csv"))
        raw.items = _items(movies.rename({"movieId": "item_id", "title": "raw"}))
    return raw


def _name_of_csv(interactions: pl.DataFrame) -> str:
    # the CSV variants share file names; their published numbers of ratings tell them apart
    sizes = {
        20_000_263: "ml-20m",
        25_000_095: "ml-25m",
        32_000_204: "ml-32m",
        100_836: "ml-latest-small",
    }
    return sizes.get(interactions.height, "ml-latest")


def _items(table: pl.DataFrame) -> pl.DataFrame:
    """Make the item table of columns ``item_id``, ``raw`` (title with year) and ``genres``."""
    genres = table.select(
        pl.when(pl.col("genres") == "(no genres listed)")
        .then(None)
        .otherwise(pl.col("genres").str.replace_all("|", ", ", literal=True))
        .alias("genres")
    ).with_columns(_empty_to_null("genres"))
    return pl.concat([table.select("item_id"), split_year(table["raw"]), genres], how="horizontal")


def _finish(table: pl.DataFrame, where: str, first_line: int) -> pl.DataFrame:
    check_ids(table, ["user_id", "item_id"], where, first_line)
    return table.select(
        "user_id",
        "item_id",
        to_numbers(table, "rating", pl.Float64, where, first_line).alias("rating"),
        to_numbers(table, "timestamp", pl.Int64, where, first_line).alias("timestamp"),
    )


def _require(table: pl.DataFrame, columns: list[str], where: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise DatasetError(
            f"{where!r} has no column {missing}; its header is {table.columns}. Is it a MovieLens "
            "file? For another CSV use `prepare table`."
        )


def _empty_to_null(column: str) -> pl.Expr:
    return pl.when(pl.col(column) != "").then(pl.col(column)).alias(column)


def _provenance(name: str, data: bytes) -> dict[str, Any]:
    return {"files": {name: hashlib.sha256(data).hexdigest()}}
