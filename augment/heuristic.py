"""Answers without any LLM: the honest rival that an LLM has to beat, and the offline default.

Pairs: the candidates most and least like the history, by the text of the items. Attributes: the
data set's own metadata. Profiles: counted from the metadata of the history. Memorisation: nothing
is recalled, histories go on with what is most popular. Only the item table
and the train split are looked at, never the user table; what the metadata do not say stays null.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from augment.local_replies import answered, refused
from augment.prompts import clean_text, shown_id
from augment.schemas import field_name
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from augment.config import Domain
    from augment.wire import Call, Reply
    from llmrec_pl.data.dataset import InteractionDataset

VERSION = 1
"""Part of the provider's label: answers of other rules are other answers."""

MODELS = ("counts", "minilm")
"""What compares the items' texts: TF-IDF with an SVD, or MiniLM."""

_TEXT_DIM = 64
_LEAST_LETTERS = 0.6
_MOST_NAMES = 5
_LONGEST_NAME = 60
_SOME_HISTORY = 4
_CLEARLY_LESS = -1.0
_NOTHING = frozenset({"", "n/a", "unknown", "none", "null", "nan", "-", "?"})


class HeuristicAnswerer:
    """Answers the machine-readable bodies of prompt set "heuristic-1".

    Args:
        dataset: its item table and train split are used.
        domain: names the columns to look for and the fields to fill.
    """

    def __init__(self, dataset: InteractionDataset, domain: Domain) -> None:
        frame = dataset.items_frame()
        ids = [str(name) for name in dataset.item_ids.tolist()]
        self._row = {form(name): i for form in (clean_text, shown_id) for i, name in enumerate(ids)}
        popularity = np.bincount(dataset.train.indices, minlength=dataset.n_items)
        self._facts = _Facts(frame, domain, popularity)
        self._texts = _Texts(frame)
        titles = frame["title"].to_list() if "title" in frame.columns else [None] * frame.height
        self._titles = [clean_text(str(title or "")) for title in titles]
        self._most_popular_first = sorted(range(len(ids)), key=lambda i: (-popularity[i], ids[i]))
        self._fitting = asyncio.Lock()

    @property
    def has_text(self) -> bool:
        """Whether items can be compared at all."""
        return bool(self._texts.columns)

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Answer one request; see `Answerer`."""
        begin = time.monotonic()
        try:
            answer = await self._answer(call.body)
        except Exception as error:  # an answerer raises nothing
            return refused(error, begin)
        message = {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)}
        content = {
            "object": "chat.completion",
            "model": call.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
        return answered(content, journal, begin)

    async def close(self) -> None:
        """Nothing to give back."""

    async def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = json.loads(body["messages"][0]["content"])
        task = asked["task"]
        if task == "pairs":
            async with self._fitting:
                vectors = self._texts.fitted.get(body["model"])
                if vectors is None:
                    vectors = await asyncio.to_thread(self._texts.fit, body["model"])
            history, candidates = self._rows(asked["history"]), self._rows(asked["candidates"])
            return choose_pair(vectors, history, candidates, asked["candidates"])
        if task == "profiles":
            return self._facts.profile(self._rows(asked["history"]))
        if task == "attributes":
            rows = zip(asked["items"], self._rows(asked["items"]), strict=True)
            records = [{"id": i, **self._facts.record(row, asked["fields"])} for i, row in rows]
            return {"items": records}
        if task == "memorisation":
            if asked["probe"] != "history":
                return {"title": None, "year": None}
            return {"titles": self._popular(self._rows(asked["history"]), asked["n"])}
        raise ValueError(f"no heuristic answers task {task!r}")

    def _popular(self, seen: list[int], n: int) -> list[str]:
        """Return the titles of the most popular items of train that are not seen."""
        new = (i for i in self._most_popular_first if self._titles[i] and i not in seen)
        return [self._titles[i] for i in islice(new, n)]

    def _rows(self, names: Iterable[str]) -> list[int]:
        try:
            return [self._row[name] for name in names]
        except KeyError as error:
            raise DatasetError(
                f"item {error.args[0]!r} was asked about, but the data set lacks it; it was "
                "planned for another one. Take another `store`."
            ) from error


# Pairs -------------------------------------------------------------------------------------


def choose_pair(
    vectors: NDArray[np.float64],
    history: Sequence[int],
    candidates: Sequence[int],
    names: Sequence[str],
) -> dict[str, int]:
    """Return the positions of the candidates most and least like the history.

    A candidate without text is neither. Equal ones are told apart by their ids, so the order
    shown never matters.

    Args:
        vectors: unit rows ``[n_items, dim]``; zero for an item without text.
        history: dense ids of what the user took in.
        candidates: dense ids as shown.
        names: original ids of the candidates.

    Raises:
        DatasetError: no item of the history, or fewer than two candidates, have a text.
    """
    taste = vectors[list(history)].sum(axis=0)
    known = [i for i, row in enumerate(candidates) if vectors[row].any()]
    if not taste.any() or len(known) < 2:
        raise DatasetError(
            "neither liked nor disliked can be said: the texts of the items compare too few of "
            f"{len(history)} in the history with {len(known)} of {len(candidates)} candidates."
        )
    scores = vectors[list(candidates)] @ (taste / np.linalg.norm(taste))
    order = sorted(known, key=lambda i: (-round(float(scores[i]), 6), names[i]))
    return {"most_liked": order[0] + 1, "least_liked": order[-1] + 1}


class _Texts:
    """What the items' texts say, as vectors; made when first asked for."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.columns = text_columns(frame)
        self._frame = frame
        self.fitted: dict[str, NDArray[np.float64]] = {}

    def fit(self, model: str) -> NDArray[np.float64]:
        """Return unit rows ``[n_items, dim]`` around the mean item, zero where there is no text.

        What all items share says nothing of a taste: without taking out the mean, MiniLM finds
        all titles alike.
        """
        from llmrec_pl.data.encoders import text_encoder
        from llmrec_pl.data.feature_inputs import text_inputs

        if model not in MODELS:
            raise ValueError(f"model {model!r} is none of {', '.join(MODELS)}")
        inputs = text_inputs(self._frame, "item", self.columns)
        if model == "minilm":
            from augment.local_embeddings import minilm_encoder

            rows = minilm_encoder().encode(inputs.values)
        else:
            encoder = text_encoder("tfidf", dim=_TEXT_DIM)
            encoder.prepare(inputs.values)
            rows = encoder.encode(inputs.values)
        known = inputs.index >= 0
        vectors = np.zeros((len(known), rows.shape[1]))
        vectors[known] = rows[inputs.index[known]]
        vectors[known] -= vectors[known].mean(axis=0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.fitted[model] = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0.0)
        return self.fitted[model]


def text_columns(frame: pl.DataFrame) -> list[str]:
    """Return the columns of an item table that hold words, and the year.

    Ids, addresses, numbers and dates are told by their characters, not by their names, since
    every data set has others.
    """
    return [
        name
        for name in frame.columns
        if name not in ("item", "item_id") and (name == "year" or _is_text(frame[name]))
    ]


def _is_text(column: pl.Series) -> bool:
    if column.dtype == pl.List(pl.String):
        column = column.explode()
    if column.dtype != pl.String:
        return False
    text = "".join(column.drop_nulls().to_list())
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return "://" not in text and letters > _LEAST_LETTERS * len(text)


# Attributes and profiles -------------------------------------------------------------------


class _Facts:
    """What the metadata say of items, and of those who took them in."""

    def __init__(
        self, frame: pl.DataFrame, domain: Domain, popularity: NDArray[np.integer[Any]]
    ) -> None:
        self._columns = {field_name(n): frame[n] for n in frame.columns if n != "item"}
        self._values: dict[tuple[str, ...], list[list[str]]] = {}
        self._size, self._popularity = frame.height, popularity
        words = {name: field_name(word) for name, word in domain.model_dump().items()}
        self._category = (words["categories"], words["category"], "genres")
        self._creator = (words["creator"], words["creators"])
        self._liked = f"liked_{words['categories']}"
        self._liked_creators = f"liked_{words['creators']}"
        self._share = self._shares()

    def record(self, row: int, fields: Iterable[str]) -> dict[str, str | None]:
        """Return the first value of each field of an item, null where the table has none."""
        return {field: next(iter(self._of(field)[row]), None) for field in fields}

    def profile(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return what the history says of its user; age and gender it does not."""
        liked, disliked = self._leaning(rows)
        creators = self._frequent(rows, *self._creator)
        least = self._enough(rows)
        return {
            "age": None,
            "gender": None,
            self._liked: liked,
            f"dis{self._liked}": disliked,
            self._liked_creators: [name for name, n in creators if n >= least][:_MOST_NAMES],
            "country": next((name for name, _ in self._frequent(rows, "country")), None),
            "language": next((name for name, _ in self._frequent(rows, "language")), None),
        }

    def _leaning(self, rows: Sequence[int]) -> tuple[list[str], list[str]]:
        """Return the categories that the history has more, and less, of than all users' have.

        Measured in standard deviations of a binomial count. A category is only missed if one
        would expect at least one item of it.
        """
        found = self._counts(rows, *self._category)
        excess, expected = {}, {}
        for name, share in self._share.items():
            expected[name] = len(rows) * share
            excess[name] = (found[name] - expected[name]) / np.sqrt(expected[name] * (1 - share))
        most_first = sorted(excess, key=lambda name: (-excess[name], name))
        least_first = sorted(excess, key=lambda name: (excess[name], name))
        least = self._enough(rows)
        more = [name for name in most_first if excess[name] > 0 and found[name] >= least]
        less = [n for n in least_first if excess[n] <= _CLEARLY_LESS and expected[n] >= 1]
        return more[:_MOST_NAMES], less[:_MOST_NAMES]

    def _shares(self) -> dict[str, float]:
        """Return the share of train interactions whose item is of each category."""
        total: Counter[str] = Counter()
        for row, names in enumerate(self._of(*self._category)):
            for name in names:
                total[name] += int(self._popularity[row])
        everything = int(self._popularity.sum())
        return {name: n / everything for name, n in total.items() if 0 < n < everything}

    def _frequent(self, rows: Sequence[int], *names: str) -> list[tuple[str, int]]:
        return sorted(self._counts(rows, *names).items(), key=lambda pair: (-pair[1], pair[0]))

    def _counts(self, rows: Sequence[int], *names: str) -> Counter[str]:
        values = self._of(*names)
        return Counter(name for row in rows for name in values[row])

    @staticmethod
    def _enough(rows: Sequence[int]) -> int:
        """One item is chance, unless there are hardly more."""
        return 2 if len(rows) >= _SOME_HISTORY else 1

    def _of(self, *names: str) -> list[list[str]]:
        """Return the values of every item in the first of these columns that there is."""
        if names not in self._values:
            column = next((self._columns[n] for n in names if n in self._columns), None)
            cells = [None] * self._size if column is None else column.to_list()
            self._values[names] = [_names(cell) for cell in cells]
        return self._values[names]


def _names(cell: object) -> list[str]:
    """Return the distinct values of a table cell: a list, or text parted by "|" or commas."""
    if isinstance(cell, list):
        parts = [str(part) for part in cell if part is not None]
    else:
        parts = ("" if cell is None else str(cell)).replace("|", ",").split(",")
    kept = (clean_text(part)[:_LONGEST_NAME].strip() for part in parts)
    return list(dict.fromkeys(name for name in kept if name.casefold() not in _NOTHING))
