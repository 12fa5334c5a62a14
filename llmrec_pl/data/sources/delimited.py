"""Delimited text into frames of strings, and strings into numbers, naming a bad row.

Every reader of a text format goes through here, so that a bad row is the same error everywhere:
file, line, value and remedy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl

from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> tuple[str, int]:
    """Replace lone surrogates, which no UTF-8 file can hold, by U+FFFD.

    Returns:
        The text, and how many characters were replaced.
    """
    return _SURROGATE.subn("\ufffd", text)


def decode(data: bytes, where: str, encoding: str = "utf-8") -> tuple[str, int]:
    """Decode a text file; lone surrogates are replaced and counted.

    Args:
        data: the bytes of the file.
        where: the file, for the message.
        encoding: "utf-8" (with or without byte order mark) or "latin-1".

    Returns:
        The text, and how many characters were replaced.

    Raises:
        DatasetError: the bytes are not of this encoding.
    """
    if encoding != "utf-8":
        return data.decode(encoding), 0
    try:
        return data.decode("utf-8-sig"), 0
    except UnicodeDecodeError:
        pass
    try:
        return clean_text(data.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{where!r} line {line} is not UTF-8 text: byte {data[error.start]:#04x}. Convert "
            "the file to UTF-8 (for example with `iconv -f latin1 -t utf8`)."
        ) from error


def parse_delimited(
    data: bytes,
    where: str,
    separator: str,
    columns: Sequence[str] | None = None,
    *,
    quoted: bool = False,
) -> pl.DataFrame:
    r"""Parse delimited UTF-8 text into a frame of strings.

    Args:
        data: the bytes of the file.
        where: the file, for messages.
        separator: one byte.
        columns: names of the columns of a file without header; None if line 1 is a header.
        quoted: fields may stand in double quotes and then hold separators and line breaks.

    Returns:
        A frame of strings; an empty field is null. Row r stands in line r + 1 of the file (+ 1
        after a header) unless quoted fields hold line breaks.

    Raises:
        DatasetError: the file is empty, or a line has another number of fields.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DatasetError(f"{where!r} is empty; fetch or export it again.")
    try:
        frame = pl.read_csv(
            data,
            separator=separator,
            has_header=columns is None,
            new_columns=list(columns) if columns is not None else None,
            quote_char='"' if quoted else None,
            infer_schema=False,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        _raise_ragged(data, where, separator, columns)
        raise DatasetError(
            f"cannot read {where!r} as text separated by {separator!r}: "
            f"{str(error).splitlines()[0]}. Is it another format?"
        ) from error
    # polars fills lines with too few fields; outside quotes every separator counts.
    if b'"' not in data or not quoted:
        n_lines = frame.height + (columns is None)
        if data.count(separator.encode()) != n_lines * (frame.width - 1):
            _raise_ragged(data, where, separator, columns)
    return frame


def _raise_ragged(data: bytes, where: str, separator: str, columns: Sequence[str] | None) -> None:
    """Raise for the first line with too many or too few fields, if one can be found."""
    lines = data.split(b"\n")
    expected = len(columns) if columns is not None else lines[0].count(separator.encode()) + 1
    for number, line in enumerate(lines, start=1):
        found = line.count(separator.encode()) + 1
        if line.strip() and found != expected:
            shown = line[:80].decode(errors="replace").rstrip("\r")
            raise DatasetError(
                f"{where!r} line {number} has {found} fields instead of {expected}: {shown!r}. "
                "Correct or remove the line."
            )


def check_ids(frame: pl.DataFrame, columns: Sequence[str], where: str, first_line: int) -> None:
    """Check that id columns have no empty value.

    Raises:
        DatasetError: one is empty; the message names the line.
    """
    for column in columns:
        bad = frame.select((pl.col(column).is_null() | (pl.col(column) == "")).arg_true())
        if bad.height:
            raise DatasetError(
                f"{where!r} line {bad.item(0, 0) + first_line} has no value in column "
                f"`{column}`. Correct or remove the line."
            )


def rating_and_time(frame: pl.DataFrame, where: str, first_line: int) -> list[pl.Series]:
    """Return the columns ``rating`` and ``timestamp`` as numbers, those of them that exist.

    Raises:
        DatasetError: see `to_numbers`.
    """
    types: dict[str, type[pl.Float64 | pl.Int64]] = {"rating": pl.Float64, "timestamp": pl.Int64}
    return [
        to_numbers(frame, column, dtype, where, first_line).alias(column)
        for column, dtype in types.items()
        if column in frame.columns
    ]


def to_numbers(
    frame: pl.DataFrame,
    column: str,
    dtype: type[pl.Float64 | pl.Int64],
    where: str,
    first_line: int,
) -> pl.Series:
    """Turn a column of strings (or numbers) into finite numbers.

    Args:
        frame: the table.
        column: the column to convert.
        dtype: ``pl.Float64`` for ratings, ``pl.Int64`` for timestamps (fractions are cut off).
        where: the file, for the message.
        first_line: line of the first row, 1 without a header and 2 with one.

    Raises:
        DatasetError: a value is missing, not a number, NaN or infinite.
    """
    source = frame[column]
    numbers = source.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() | ~numbers.is_finite()).fill_null(value=True).arg_true()
    if len(bad):
        row = int(bad[0])
        raise DatasetError(
            f"{where!r} line {row + first_line} has {source[row]!r} in column `{column}`, "
            f"expected a number ({len(bad)} such rows). Correct or remove the line."
        )
    if dtype is pl.Float64:
        return numbers
    # seconds since 1970 lie far below 2**53, so the way through float64 is exact
    exact = source.cast(pl.Int64, strict=False)
    return exact if exact.null_count() == 0 else numbers.cast(pl.Int64)
