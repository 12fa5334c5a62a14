"""What an export says of its origin: coverage, cost, and hashes from the data to the vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from augment.budget import read_ledger
from augment.specs import EXPORTED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from augment.config import AugmentConfig
    from augment.export_content import Content
    from augment.specs import Kind, TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

HEURISTIC_LABEL = "heuristic (no LLM)"
_PICO = 10**12


def provenance(
    db: sqlite3.Connection,
    specs: dict[Kind, tuple[int, TaskSpec]],
    content: Content,
    config: AugmentConfig,
    dataset: InteractionDataset,
) -> dict[str, Any]:
    """Return the manifest of an export, less what its writer adds."""
    chat = [spec for kind, (_, spec) in specs.items() if kind != "embed"]
    asked = chat or [specs["embed"][1]]
    uuid = db.execute("SELECT v FROM meta WHERE k = 'store_uuid'").fetchone()[0]
    manifest: dict[str, Any] = {
        "provider": _joined(label_of(spec) for spec in asked),
        "model": _joined(spec.model for spec in asked),
        "prompt_set": _joined(spec.prompt_set or "none" for spec in asked),
        "store": uuid,
        "counts": {
            "tasks": content.counts,
            **({"edges_left_out": content.refused} if content.refused else {}),
        },
        "coverage": _coverage(db, specs, content, config),
        "cost": cost(db, specs),
        "specs": {kind: {**s.model_dump(), "sha": s.sha.hex()} for kind, (_, s) in specs.items()},
        "provenance": _chain(specs, content, dataset),
    }
    if content.renamed:
        manifest["renamed_fields"] = content.renamed
    return manifest


def label_of(spec: TaskSpec) -> str:
    """Return who answered, saying so where it was no LLM."""
    return HEURISTIC_LABEL if spec.prompt_set.startswith("heuristic") else spec.provider


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _coverage(
    db: sqlite3.Connection,
    specs: dict[Kind, tuple[int, TaskSpec]],
    content: Content,
    config: AugmentConfig,
) -> dict[str, dict[str, Any]]:
    """Return for each task of the config how much of what was asked for is there.

    What was skipped (no history, no title, no text) was not asked for.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in EXPORTED:
        if kind not in specs and getattr(config.tasks, kind) is None:
            continue
        tally = content.counts.get(kind, {})
        skipped = sum(n for name, n in tally.items() if name.startswith("skipped:"))
        asked, done = sum(tally.values()) - skipped, tally.get("done", 0)
        planned = kind in specs
        if planned and kind != "embed":
            row = db.execute("SELECT planned FROM spec WHERE id = ?", (specs[kind][0],)).fetchone()
            planned = bool(row[0])
        share = done / asked if asked else float(kind in specs)
        found[kind] = {
            "asked": asked,
            "done": done,
            "skipped": skipped,
            "share": round(share, 6),
            "planned_in_full": planned,
        }
    return found


def cost(db: sqlite3.Connection, specs: dict[Kind, tuple[int, TaskSpec]]) -> dict[str, Any]:
    """Return what each task cost, tokens and USD as decimal text, and the store's ledger."""
    ledger = read_ledger(db)
    tasks = {}
    for kind, (spec_id, _) in specs.items():
        n, tokens_in, tokens_out, spent = db.execute(
            "SELECT count(*), ifnull(sum(tok_in), 0), ifnull(sum(tok_out), 0), "
            "ifnull(sum(cost_pusd), 0) FROM attempt WHERE id IN (SELECT c.attempt FROM call_item c "
            "JOIN request r ON r.id = c.request WHERE r.spec = ?)",
            (spec_id,),
        ).fetchone()
        tasks[kind] = {
            "calls": n,
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "spent_usd": usd(spent),
        }
    return {
        "tasks": tasks,
        "store_spent_usd": usd(ledger.spent_pusd),
        "store_reserved_usd": usd(ledger.reserved_pusd),
    }


def usd(pico: int) -> str:
    """Return pico-USD as exact decimal text in USD."""
    whole, rest = divmod(pico, _PICO)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")


def _chain(
    specs: dict[Kind, tuple[int, TaskSpec]], content: Content, dataset: InteractionDataset
) -> dict[str, Any]:
    """Return the hashes from the split to the vectors, in the order of their making."""
    pool = specs["pairs"][1].settings if "pairs" in specs else {}
    chat = {kind: spec for kind, (_, spec) in specs.items() if kind != "embed"}
    embed = specs["embed"][1] if "embed" in specs else None
    return {
        "dataset_fp": dataset.fingerprint,
        "pool_sha": pool.get("pool"),
        "pool_model_fingerprint": pool.get("pool_model"),
        "prompts": {k: {"set": s.prompt_set, "sha": s.prompt_sha} for k, s in chat.items()},
        "chat_models": {k: f"{s.provider} / {s.model}" for k, s in chat.items()},
        "answers_sha": {k: v for k, v in content.hashes.items() if k != "embed"},
        "embed_model": None if embed is None else f"{embed.provider} / {embed.model}",
        "embeddings_sha": content.hashes.get("embed"),
    }
