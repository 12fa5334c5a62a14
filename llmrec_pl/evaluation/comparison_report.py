"""What a person gets of a comparison: a table on the screen, text, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import json
import math
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmrec_pl.evaluation.comparison import STARS, format_p

if TYPE_CHECKING:
    from pathlib import Path

    from llmrec_pl.evaluation.comparison import Comparison, Line

LatexMarks = Literal["stars", "p"]
_HEADINGS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "precision": "Precision",
    "hit": "Hit",
    "mrr": "MRR",
    "map": "MAP",
}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "…": r"\dots{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def metric_heading(metric: str) -> str:
    """Write ``ndcg@20`` as NDCG@20."""
    name, _, k = metric.partition("@")
    return f"{_HEADINGS.get(name, name)}@{k}"


def caption(comparison: Comparison) -> str:
    """Say what was compared, by which tests."""
    about = comparison.about
    return (
        f"{about['split']} split of {about['data']['name']}, {about['users']:,} users, profile "
        f"{about['profile']}; baseline {about['baseline']} ({about['baseline_choice']}); paired "
        f"randomisation test and 95 % BCa bootstrap interval over users, {about['draws']:,} draws "
        f"each, seed {about['seed']}; Holm over {about['comparisons']} comparison(s); detects: "
        "the smallest difference found with 80 % power"
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Lay out one table a metric; the last one has the caption."""
    tables = [_table(comparison, metric) for metric in comparison.about["metrics"]]
    tables[-1].caption = escape(caption(comparison))
    return tables


def _table(comparison: Comparison, metric: str) -> Table:
    table = Table(
        title=metric_heading(metric),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,  # nine columns fit into a terminal of 80
    )
    table.add_column("model", overflow="fold")
    columns = ("seeds", "users", "mean", "difference", "p", "p Holm", "d_z", "detects")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    lines = comparison.of(metric)
    best = max(line.mean for line in lines)
    for line in lines:
        label = escape(line.label) + (f"\n[dim]{escape(line.note)}[/dim]" if line.note else "")
        mean = f"[bold]{line.mean:.4f}[/bold]" if line.mean == best else f"{line.mean:.4f}"
        table.add_row(
            label, str(len(line.seeds)), f"{line.n_users:,}", mean + _deviation(line), *_cells(line)
        )
    return table


def _deviation(line: Line) -> str:
    return "" if line.deviation is None else f"\n[dim]± {line.deviation:.4f}[/dim]"


def _cells(line: Line) -> list[str]:
    versus = line.versus
    if versus is None:
        return []
    low, high = versus.interval
    p_holm = format_p(versus.p_holm)
    return [
        f"{versus.difference:+.4f}\n[dim]{low:+.4f} to {high:+.4f}[/dim]",
        format_p(versus.p),
        f"[bold]{p_holm}[/bold]" if versus.stars else p_holm,
        "" if math.isnan(versus.effect) else f"{versus.effect:+.2f}",
        f"{versus.detectable:.4f}",
    ]


def write_text(comparison: Comparison, path: Path) -> None:
    """Write the tables and warnings as they stand on a screen of 110 columns."""
    with path.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=110, no_color=True)
        for table in comparison_tables(comparison):
            console.print(table)
        for warning in comparison.warnings:
            console.print(f"note: {warning}", markup=False, highlight=False)


def flat_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one plain mapping a line; a value that does not exist is None."""
    rows = []
    for line in comparison.lines:
        versus = line.versus
        row = {
            "model": line.label,
            "metric": line.metric,
            "seeds": len(line.seeds),
            "users": line.n_users,
            "mean": line.mean,
            "deviation": line.deviation,
            "difference": None,
            "low": None,
            "high": None,
            "p": None,
            "p_holm": None,
            "effect_d_z": None,
            "detectable": None,
            "mcnemar_p": None,
            "note": line.note,
        }
        if versus is not None:
            row |= {
                key: getattr(versus, key) for key in ("difference", "p", "p_holm", "detectable")
            }
            row |= {"low": versus.interval.low, "high": versus.interval.high}
            row["effect_d_z"] = None if math.isnan(versus.effect) else versus.effect
            row["mcnemar_p"] = versus.mcnemar
        rows.append(row)
    return rows


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line a model and metric, numbers in full."""
    rows = flat_rows(comparison)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(comparison: Comparison, path: Path) -> None:
    """Write the lines, the mean of each run, and what they were made of."""
    runs = [{"seed_of_run": line.seeds, "mean_of_run": line.run_means} for line in comparison.lines]
    lines = [row | run for row, run in zip(flat_rows(comparison), runs, strict=True)]
    content = {**comparison.about, "warnings": comparison.warnings, "lines": lines}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def latex_escape(text: str) -> str:
    """Write text so that LaTeX prints it as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def write_latex(comparison: Comparison, path: Path, marks: LatexMarks = "stars") -> None:
    """Write a ``booktabs`` table: a row a model, mean and deviation a metric, the best in bold.

    Args:
        comparison: what to write.
        path: file to write.
        marks: stars by the adjusted p beside the means, or a column of adjusted p a metric.
    """
    metrics = comparison.about["metrics"]
    wide = marks == "p"
    headings = [cell for m in metrics for cell in [metric_heading(m), *(["$p$"] if wide else [])]]
    by_key = {(line.label, line.metric): line for line in comparison.lines}
    best = {m: max(line.mean for line in comparison.of(m)) for m in metrics}
    rows = []
    for first in comparison.of(metrics[0]):
        lines = [by_key[first.label, metric] for metric in metrics]
        cells = [c for x in lines for c in _latex_cells(x, x.mean == best[x.metric], wide=wide)]
        rows.append(" & ".join([latex_escape(first.label), str(len(first.seeds)), *cells]))
    text = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_latex_caption(comparison, wide=wide)}}}",
        f"  \\begin{{tabular}}{{lr{'l' * len(headings)}}}",
        "    \\toprule",
        f"    {' & '.join(['Model', 'Seeds', *headings])} \\\\",
        "    \\midrule",
        *(f"    {row} \\\\" for row in rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


def _latex_cells(line: Line, is_best: bool, *, wide: bool) -> list[str]:
    mean = f"\\textbf{{{line.mean:.4f}}}" if is_best else f"{line.mean:.4f}"
    if line.deviation is not None:
        mean += f" {{\\scriptsize $\\pm$ {line.deviation:.4f}}}"
    versus = line.versus
    if wide:
        return [mean, "--" if versus is None else _latex_p(versus.p_holm)]
    return [mean + (f"$^{{{versus.stars}}}$" if versus and versus.stars else "")]


def _latex_p(p: float) -> str:
    return f"${format_p(p)}$"


def _latex_caption(comparison: Comparison, *, wide: bool) -> str:
    about = comparison.about
    levels = ", ".join(f"$^{{{stars}}}$ $p < {level:g}$" for level, stars in reversed(STARS))
    meaning = "$p$" if wide else f"Stars ({levels})"
    return (
        f"Mean and standard deviation over seeds, {latex_escape(about['split'])} split of "
        f"{latex_escape(about['data']['name'])}, {about['users']:,} users. {meaning}: paired "
        f"randomisation test over users against {latex_escape(about['baseline'])}, "
        f"{about['draws']:,} draws, Holm-adjusted over {about['comparisons']} comparison(s)."
    )
