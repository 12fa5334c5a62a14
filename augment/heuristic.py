"""Answers without any LLM: the honest rival that an LLM has to beat, and the offline default.

Pairs: the candidates most and least similar to the train history, by TF-IDF and SVD of the items'
text. Attributes: the data set's own metadata. Profiles: counted from the metadata of the history.
What the metadata do not say stays null.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.prompts import clean_text
from augment.schemas import field_name
from augment.wire import Call, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from augment.config import Domain
    from llmrec_pl.data.dataset import InteractionDataset

_MOST = 5
_TEXT_DIM = 64
_NOT_TEXT = ("item", "item_id", "url", "poster", "image")


class HeuristicAnswerer:
    """Answers the machine-readable bodies of prompt set "heuristic-1".

    Args:
        dataset: its item table and train split are all that is looked at.
        domain: names of the fields.
    """

    def __init__(self, dataset: InteractionDataset, domain: Domain) -> None:
        self._domain = domain.model_dump()
        frame = dataset.items_frame()
        self._row = {clean_text(str(n)): i for i, n in enumerate(dataset.item_ids.tolist())}
        self._columns = {
            name: [clean_text("" if v is None else str(v)) for v in frame[name].to_list()]
            for name in frame.columns
            if name not in _NOT_TEXT
        }
        self._vectors: np.ndarray[Any, Any] | None = None
        self._base = {name: self._counts(name, range(dataset.n_items)) for name in self._columns}

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Answer one request."""
        try:
            asked = json.loads(call.body["messages"][0]["content"])
            answer = getattr(self, f"_{asked['task']}")(asked)
        except Exception as error:  # an answerer raises nothing
            return Reply(status=None, error=error)
        message = {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)}
        body = json.dumps(
            {
                "model": call.body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0},
            },
            ensure_ascii=False,
        ).encode()
        journal(body)
        return Reply(status=200, body=body)

    async def close(self) -> None:
        """Nothing to give back."""

    # Pairs ---------------------------------------------------------------------------------

    def _pairs(self, asked: dict[str, Any]) -> dict[str, int]:
        vectors = self._text_vectors()
        taste = vectors[[self._row[name] for name in asked["history"]]].mean(axis=0)
        names = asked["candidates"]
        scores = vectors[[self._row[name] for name in names]] @ taste
        order = sorted(range(len(names)), key=lambda i: (-round(float(scores[i]), 6), names[i]))
        return {"most_liked": order[0] + 1, "least_liked": order[-1] + 1}

    def _text_vectors(self) -> np.ndarray[Any, Any]:
        if self._vectors is None:
            from llmrec_pl.data.encoders.text import TfidfText

            names = [
                n for n in ("title", "year", "genres", "director", "plot") if n in self._columns
            ]
            n_items = len(self._row)
            texts = [" ".join(self._columns[n][i] for n in names) or "-" for i in range(n_items)]
            encoder = TfidfText(dim=min(_TEXT_DIM, max(2, n_items - 1)))
            encoder.prepare(texts)
            vectors = np.asarray(encoder.encode(texts), dtype=np.float64)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._vectors = vectors / np.maximum(norms, 1e-12)
        return self._vectors

    # Attributes ----------------------------------------------------------------------------

    def _attributes(self, asked: dict[str, Any]) -> dict[str, Any]:
        records = []
        for name in asked["items"]:
            record: dict[str, Any] = {"id": name}
            for field in asked["fields"]:
                record[field] = self._fact(field, self._row[name])
            records.append(record)
        return {"items": records}

    def _fact(self, field: str, row: int) -> str | None:
        values = self._split(self._columns.get(field, [""] * (row + 1))[row])
        return values[0][:60] if values else None

    # Profiles ------------------------------------------------------------------------------

    def _profiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        rows = [self._row[name] for name in asked["history"]]
        category = "genres" if "genres" in self._columns else field_name(self._domain["categories"])
        creator = field_name(self._domain["creator"])
        categories, creators = (field_name(self._domain[w]) for w in ("categories", "creators"))
        liked, disliked = self._lean(category, rows)
        return {
            "age": None,
            "gender": None,
            f"liked_{categories}": liked,
            f"disliked_{categories}": disliked,
            f"liked_{creators}": self._usual(creator, rows, _MOST, at_least=2),
            "country": next(iter(self._usual("country", rows, 1)), None),
            "language": next(iter(self._usual("language", rows, 1)), None),
        }

    def _lean(self, column: str, rows: list[int]) -> tuple[list[str], list[str]]:
        """Return what the history has more of, and less of, than the whole catalogue."""
        if column not in self._columns:
            return [], []
        mine, base = self._counts(column, rows), self._base[column]
        n, n_all = max(1, mine.total()), max(1, base.total())
        lift = {name: mine[name] / n - count / n_all for name, count in base.items()}
        order = sorted(lift, key=lambda name: (-lift[name], name))
        liked = [name for name in order if lift[name] > 0 and mine[name] > 1][:_MOST]
        disliked = [name for name in reversed(order) if lift[name] < 0 and not mine[name]][:_MOST]
        return liked, disliked

    def _usual(self, column: str, rows: list[int], most: int, at_least: int = 1) -> list[str]:
        if column not in self._columns:
            return []
        counts = self._counts(column, rows)
        order = sorted(counts, key=lambda name: (-counts[name], name))
        return [name for name in order if counts[name] >= at_least][:most]

    def _counts(self, column: str, rows: Any) -> Counter[str]:
        values = self._columns[column]
        return Counter(name for row in rows for name in self._split(values[row]))

    @staticmethod
    def _split(text: str) -> list[str]:
        parts = (part.strip()[:60] for part in text.replace("|", ",").split(","))
        return [part for part in parts if part and part != "N/A"]
