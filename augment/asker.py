"""What the requests of all tasks about users and items have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from augment.catalogue import Catalogue
from augment.prompts import FORMS, HEURISTIC, Renderer
from augment.specs import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from augment.specs import TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

_TABLE_DIGITS = 16


class Asker:
    """Makes bodies and lines of a task.

    Args:
        spec: the task.
        dataset: the data set.
    """

    def __init__(self, spec: TaskSpec, dataset: InteractionDataset) -> None:
        self.spec, self.dataset = spec, dataset
        self.items = Catalogue(spec, dataset)
        self.heuristic = spec.prompt_set == HEURISTIC
        forms = () if self.heuristic else FORMS[spec.kind]
        self.renderers = {form: Renderer(spec, form) for form in forms}

    def body(
        self, asked: dict[str, Any], draw: int = 0, form: str = "", **blocks: str
    ) -> dict[str, Any]:
        """Return a body: a prompt of these blocks, or for heuristics what is asked as it is."""
        if not self.heuristic:
            return self.renderers[form].body(draw, **blocks)
        # Heuristics answer from the item table, so a changed one makes another question.
        table = self.spec.settings["item_table"][:_TABLE_DIGITS]
        content = canonical_json({"task": self.spec.kind, "table": table, **asked})
        return {"model": self.spec.model, "messages": [{"role": "user", "content": content}]}

    def lines(self, items: Iterable[int]) -> list[str]:
        """Return items as prompts show them; nothing for heuristics."""
        return [] if self.heuristic else [self.items.lines[i] for i in items]

    def ids(self, items: Iterable[int]) -> list[str]:
        """Return what stands for items' original ids."""
        return [self.items.ids[i] for i in items]
