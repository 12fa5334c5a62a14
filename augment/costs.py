"""What was paid for, and what it gave: sums over the journal, grouped as one likes.

Money follows the call: useful if its reply is a result, duplicate if it was accepted and another
reply had been before, rejected if validation refused it, unknown and in flight if only its bound
is known. Acceptance follows the answer: a call with 256 texts has 256.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from augment.store.states import AttemptState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

DIMENSIONS = {
    "task": "ifnull(s.kind, a.lane)",
    "provider": "json_extract(s.json, '$.provider')",
    "model": "ifnull(json_extract(s.json, '$.model'), a.model_returned)",
    "prompts": "json_extract(s.json, '$.prompt_set')",
    "temperature": "json_extract(s.json, '$.params.temperature')",
    "top_p": "json_extract(s.json, '$.params.top_p')",
    "day": "date(a.t_start / 1000, 'unixepoch')",
    "lane": "a.lane",
    "outcome": "ifnull(a.outcome, 'in_flight')",
}
"""What sums can be grouped by."""

_GAVE = (
    "EXISTS (SELECT 1 FROM result t WHERE t.request = {c}.request AND t.attempt = a.id "
    "AND t.value IS NOT NULL)"
)
_ACCEPTED = (
    "'accepted' = (SELECT v.code FROM verdict v WHERE v.attempt = a.id AND v.request = "
    "{c}.request ORDER BY length(v.validator) DESC, v.validator DESC LIMIT 1)"
)
_FROM = (
    "FROM attempt a LEFT JOIN call_item c ON c.attempt = a.id AND c.pos = 0 "
    "LEFT JOIN request r ON r.id = c.request LEFT JOIN spec s ON s.id = r.spec"
)


@dataclass
class CostRow:
    """Sums over the calls of one group.

    Attributes:
        group: value of each dimension.
        calls: sends, whatever became of them.
        replies: answers that were judged.
        accepted: of those, the accepted ones.
        results: answers in use.
        tokens_in: as counted by the server.
        tokens_out: the same for answers.
        pusd: pico-USD by use; reserved amounts where nobody knows the cost.
    """

    group: dict[str, Any]
    calls: int = 0
    replies: int = 0
    accepted: int = 0
    results: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    pusd: dict[str, int] = field(default_factory=dict)

    @property
    def spent_pusd(self) -> int:
        """What was charged, pico-USD."""
        return sum(self.pusd.get(use, 0) for use in ("useful", "duplicate", "rejected"))

    @property
    def per_result_pusd(self) -> int | None:
        """Everything spent over the answers in use, rounded, pico-USD."""
        return round(self.spent_pusd / self.results) if self.results else None

    @property
    def acceptance(self) -> float | None:
        """Share of judged answers that were accepted."""
        return self.accepted / self.replies if self.replies else None

    def as_plain(self) -> dict[str, Any]:
        """Return plain values for JSON; money in pico-USD."""
        return {
            **self.group,
            "calls": self.calls,
            "replies": self.replies,
            "accepted": self.accepted,
            "acceptance": self.acceptance,
            "results": self.results,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "spent_pusd": self.spent_pusd,
            "pusd": self.pusd,
            "per_result_pusd": self.per_result_pusd,
        }


def read_costs(db: sqlite3.Connection, by: Sequence[str] = ("task",)) -> list[CostRow]:
    """Sum calls, tokens, money and acceptance by the given dimensions.

    Args:
        db: the store, in one transaction if another process writes to it.
        by: names in `DIMENSIONS`; none for one sum over all.
    """
    rows: dict[tuple[Any, ...], CostRow] = {}
    columns = ", ".join([*(DIMENSIONS[name] for name in by), _use()])
    for found in db.execute(
        f"SELECT {columns}, count(*), ifnull(sum(a.tok_in), 0), ifnull(sum(a.tok_out), 0), "
        "sum(CASE WHEN a.state IN (0, 3) THEN a.reserved_pusd ELSE ifnull(a.cost_pusd, 0) END) "
        f"{_FROM} GROUP BY {_places(len(by) + 1)}"
    ):
        key, (use, calls, tok_in, tok_out, pusd) = found[: len(by)], found[len(by) :]
        row = rows.setdefault(key, CostRow(dict(zip(by, key, strict=True))))
        row.calls += calls
        row.tokens_in += tok_in
        row.tokens_out += tok_out
        row.pusd[use] = row.pusd.get(use, 0) + pusd
    columns = "".join(f"{DIMENSIONS[name]}, " for name in by)
    grouping = f"GROUP BY {_places(len(by))}" if by else ""
    for found in db.execute(
        f"SELECT {columns} count(*), ifnull(sum({_ACCEPTED.format(c='i')}), 0), "
        f"ifnull(sum({_GAVE.format(c='i')}), 0) {_FROM} JOIN call_item i ON i.attempt = a.id "
        f"WHERE a.state IN (1, 4) {grouping}"
    ):
        if found[: len(by)] in rows:
            row = rows[found[: len(by)]]
            row.replies, row.accepted, row.results = found[len(by) :]
    return [rows[key] for key in sorted(rows, key=str)]


def _places(n: int) -> str:
    return ", ".join(map(str, range(1, n + 1)))


def _use() -> str:
    """Return SQL for what became of a call's money."""
    gave, accepted = _GAVE.format(c="i"), _ACCEPTED.format(c="i")
    return (
        f"CASE WHEN a.state = {AttemptState.INTENT} THEN 'in_flight' "
        f"WHEN a.state = {AttemptState.UNKNOWN} THEN 'unknown' "
        f"WHEN a.state IN ({AttemptState.UNBILLED}, {AttemptState.RELEASED}) THEN 'unbilled' "
        "WHEN a.lane = 'probe' THEN 'useful' "
        f"WHEN EXISTS (SELECT 1 FROM call_item i WHERE i.attempt = a.id AND {gave}) THEN 'useful' "
        f"WHEN EXISTS (SELECT 1 FROM call_item i WHERE i.attempt = a.id AND {accepted}) "
        "THEN 'duplicate' ELSE 'rejected' END"
    )


@dataclass(frozen=True, slots=True)
class AblationCost:
    """Cost half of Table 7 of Wei et al., WSDM 2024: what each augmentation costs, pico-USD.

    Attributes:
        label: "U" for profiles, "I" for attributes, "U-I" for edges, "all".
        task: what it is here.
        pusd: spent, vectors left out as in the paper.
        paper_usd: the paper's figure for Netflix.
    """

    label: str
    task: str
    pusd: int
    paper_usd: str


def ablation_costs(db: sqlite3.Connection) -> list[AblationCost]:
    """Return what users' profiles, items' attributes and user-item edges cost.

    Deviations: replies that were rejected count too, since they were paid for.
    """
    spent = {row.group["task"]: row.spent_pusd for row in read_costs(db, ["task"])}
    parts = [("U", "profiles", "10.92"), ("I", "attributes", "1.96"), ("U-I", "pairs", "8.26")]
    rows = [AblationCost(label, task, spent.get(task, 0), usd) for label, task, usd in parts]
    return [*rows, AblationCost("all", "these three", sum(row.pusd for row in rows), "21.14")]
