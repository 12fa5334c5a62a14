"""A report as tables: for the terminal and as Markdown, from the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    Rows = Sequence[Mapping[str, Any]]
    Numbers = Mapping[str, str]

_OF_NAMES = ("#", "field", "with truth", "answered", "right of all", "right of answered")


@dataclass(frozen=True)
class Section:
    """One table of the report, with a sentence on how to read it, and what it means in words."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[str] = ()


def sections(found: Mapping[str, Any], *, brief: bool = False) -> list[Section]:
    """Return the tables that have something to show.

    Args:
        found: what `measure` returned.
        brief: few confusions, and of this config's settings only.
    """
    mixed = [r for r in found["attributes"] if r["of_this_config"] or not brief]
    who = {row["spec"]: str(number) for number, row in enumerate(found["acceptance"], 1)}
    made = [
        _settings(found["acceptance"], who),
        _acceptance(found["acceptance"], who),
        _verdicts(found["acceptance"], who),
        _pairs(found["pairs"], who),
        _places(found["pairs"], who),
        _names("attributes", found["attributes"], who),
        _confusions("attributes", mixed, who, most=3 if brief else 5),
        _ages(found["profiles"], who),
        _names("profiles", found["profiles"], who),
        _recall(found["memorisation"], who),
    ]
    return [section for section in made if section.rows]


def percent(share: Mapping[str, Any] | None) -> str:
    """Return a share above its interval in percent."""
    if not share or share["share"] is None:
        return "-"
    value, low, high = (_tenths(100 * share[name]) for name in ("share", "low", "high"))
    return f"{value} %\n{low}-{high}"


def _tenths(value: float) -> str:
    """Return one decimal; none for 100, which would not fit under it in a narrow terminal."""
    return f"{value:.1f}".replace("100.0", "100")


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _years(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _settings(rows: Rows, who: Numbers) -> Section:
    return Section(
        "Settings",
        "Everything that was asked about this data set; * marks what this config asks.",
        ["#", "task", "setting", "spec"],
        [
            (
                f"{who[r['spec']]}{' *' if r['of_this_config'] else ''}",
                r["task"],
                r["setting"],
                r["spec"][:8],
            )
            for r in rows
        ],
    )


def _acceptance(rows: Rows, who: Numbers) -> Section:
    return Section(
        "Acceptance",
        "Answered: of what was asked for, repairs included. At first: prompts whose first reply "
        "was accepted. Asked again: same body / follow-up (accepted).",
        ["task", "#", "answered", "replies accepted", "at first", "again", "USD", "skipped"],
        [
            (
                r["task"],
                who[r["spec"]],
                f"{r['answered']['k']:,} of\n{r['answered']['n']:,}",
                percent(r["accepted_replies"]),
                percent(r["accepted_at_first"]),
                f"{r['same_again']:,} / {r['follow_ups']:,} ({r['follow_ups_accepted']:,})",
                r["spent_usd"],
                ", ".join(
                    f"{n:,} {name.removeprefix('skipped:')}"
                    for name, n in r["outcomes"].items()
                    if name.startswith("skipped:")
                )
                or "0",
            )
            for r in rows
        ],
    )


def _verdicts(rows: Rows, who: Numbers) -> Section:
    return Section(
        "Verdicts on replies",
        "Each reply that was read, follow-ups included; left out where all were accepted.",
        ["task", "#", "verdict", "replies", "share"],
        [
            (
                r["task"],
                who[r["spec"]],
                code,
                f"{n:,}",
                f"{100 * n / sum(r['verdicts'].values()):.1f} %",
            )
            for r in rows
            if set(r["verdicts"]) != {"accepted"}
            for code, n in r["verdicts"].items()
        ],
    )


def _pairs(rows: Rows, who: Numbers) -> Section:
    return Section(
        "Pairs: does a pick name a held-out liked item?",
        "Over users whose candidates hold a validation item. Chance: one random pick in the same "
        "pools. p: of as many hits (most liked) or as few (least liked) by chance, one-sided, "
        "exact up to 20,000 users. First of pool: the base model's own first candidate. Other "
        "users, other chance: "
        "settings asked about different users cannot be compared by hits alone.",
        ["#", "users", "chance", "most liked", "p", "least liked", "p", "first of pool"],
        [
            (
                who[r["spec"]],
                f"{r['users_that_tell']:,} of\n{r['users']:,}",
                "-" if r["chance"] is None else f"{100 * r['chance']:.1f} %",
                percent(r["most_liked"]),
                _p(r["p_most_liked_by_chance"]),
                percent(r["least_liked"]),
                _p(r["p_least_liked_by_chance"]),
                percent(r["first_of_pool"]),
            )
            for r in rows
            if r["users"]
        ],
    )


def _places(rows: Rows, who: Numbers) -> Section:
    return Section(
        "Pairs: where the picks stood in the list",
        "The place picked most often, and how often: a model that reads the list picks all places, "
        "one that does not repeats itself.",
        ["#", "candidates", "most liked", "least liked"],
        [
            (who[r["spec"]], str(r["candidates"]), *map(_favourite, r["places"].values()))
            for r in rows
            if r["users"]
        ],
    )


def _favourite(places: Mapping[Any, int]) -> str:
    place = max(places, key=lambda p: (places[p], -int(p)))
    n = sum(places.values())
    return f"number {place}: {places[place]:,} of {n:,} ({100 * places[place] / n:.0f} %)"


def _names(task: str, rows: Rows, who: Numbers) -> Section:
    note = (
        "Right: shares a name with the truth. Of all: no answer counts as wrong. Majority: always "
        "saying the most frequent true name. p: exact McNemar against it, two-sided."
    )
    if task == "attributes" and any(r["heuristic"] for r in rows):
        note += " Heuristics read the data set's own columns: their figures are no knowledge."
    return Section(
        f"{task.capitalize()} against the truth",
        note,
        [*_OF_NAMES, "majority", "p"],
        [
            (
                who[r["spec"]],
                name,
                f"{f['truth_known']:,}",
                f"{f['answered']['k']:,}",
                percent(f["of_all"]),
                percent(f["of_answered"]),
                f"{percent(f['majority'])}\n{f['majority_answer'] or ''}",
                _p(f["p_against_majority"]),
            )
            for r in rows
            for name, f in r["fields"].items()
            if f["answered"]["k"]
        ],
    )


def _confusions(task: str, rows: Rows, who: Numbers, most: int) -> Section:
    return Section(
        f"{task.capitalize()}: most frequent confusions",
        "",
        ["#", "field", "truth", "answer", "n", "such as"],
        [
            (
                who[r["spec"]],
                name,
                c["truth"],
                c["answer"],
                f"{c['n']:,}",
                "; ".join(c["titles"][: most - 2]),
            )
            for r in rows
            for name, f in r["fields"].items()
            for c in f["confusions"][:most]
        ],
    )


def _ages(rows: Rows, who: Numbers) -> Section:
    return Section(
        "Profiles: age",
        "Bands count as their middle; no answer counts as wrong. Rival: the one age that would "
        "score most, chosen with the truth in hand; for the error the median age.",
        ["#", "answered", "measure", "answers", "rival"],
        [
            (who[r["spec"]], f"{a['answered']['k']:,} of {a['truth_known']:,}", *cells)
            for r in rows
            if (a := r.get("age")) and a["answered"]["k"]
            for cells in _age_cells(a)
        ],
    )


def _age_cells(age: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    cells = [
        (
            f"within {years} years",
            percent(age[f"within_{years}"]),
            f"{percent(age[f'within_{years}_constant'])} by {age[f'within_{years}_constant_age']}",
        )
        for years in (5, 10)
    ]
    errors = _years(age["mean_error_years"]), _years(age["median_age_error_years"])
    return [
        *cells,
        ("mean error, years", *errors),
        ("band holds the truth", percent(age["bands"]), "-"),
    ]


def _recall(rows: Rows, who: Numbers) -> Section:
    probed = [r for r in rows if r["verdict"] != "unknown"]
    return Section(
        "Memorisation: does the model know the data set by heart?",
        "Items by id, or by the first half of the title; users of whom one of the next items was "
        "named. Popular: the most liked item that fits, or as many of them as were asked for. "
        "Chance: the same answers dealt to other ids, or random items. Control: the same histories "
        "under other users' ids. p, one-sided: of as many by chance; of own ids over the control. "
        "Titles are finished by who knows the items, so only the other two tell of the data set.",
        ["#", "asked for", "n", "answered", "right", "popular", "chance", "control", "p"],
        [(who[r["spec"]], *cells) for r in probed for cells in _recall_cells(r)],
        [f"{r['setting']}: {r['sentence']}" for r in probed],
    )


def _recall_cells(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    def cells(
        name: str, part: Mapping[str, Any], right: str, control: str, p: str
    ) -> tuple[str, ...]:
        n, chance = part[right]["n"], f"{100 * part['chance']:.1f} %"
        shares = percent(part[right]), percent(part["popular"])
        return (name, f"{n:,}", f"{part['answered']['k']:,}", *shares, chance, control, p)

    made = []
    by_id, by_title, users = row["by_id"], row["by_title"], row["interactions"]
    if by_id["right"]["n"]:
        made.append(cells("item by id", by_id, "right", "-", _p(by_id["p_by_chance"])))
    if by_title["right"]["n"]:
        made.append(cells("item by title", by_title, "right", "-", "-"))
    if users["users_hit"]["n"]:
        p = _p(users["p_own_over_control"])
        made.append(cells("next items", users, "users_hit", percent(users["control"]), p))
    return made


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the tables."""
    for section in sections(found, brief=True):
        table = Table(
            title=escape(section.title),
            caption=escape(section.note) or None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,  # eight columns fit into a terminal of 80
        )
        for name in section.columns:
            table.add_column(escape(name), overflow="fold")
        for row in section.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        for line in section.lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in _silent(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(found["note"], markup=False, highlight=False, soft_wrap=True)


def as_markdown(found: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return the report as Markdown; pictures lie beside it."""
    lines = [f"# What the answers about {found['dataset']} are worth", "", found["note"], ""]
    for section in sections(found):
        lines += [f"## {section.title}", ""]
        if section.note:
            lines += [section.note, ""]
        lines += [_line(section.columns), _line(["---"] * len(section.columns))]
        lines += [*(_line(row) for row in section.rows), ""]
        lines += [text for line in section.lines for text in (_plain(line), "")]
    if silent := _silent(found):
        lines += ["## Not scored", "", *(f"- {_plain(line)}" for line in silent), ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n".join(lines).rstrip() + "\n"


def _silent(found: Mapping[str, Any]) -> list[str]:
    """Return what could not be scored, and why."""
    lines = [
        f"pairs, {r['setting']}: no candidate of any user is in validation."
        for r in found["pairs"]
        if r["users"] and not r["users_that_tell"]
    ]
    for task in ("attributes", "profiles"):
        for row in found[task]:
            scored = {**row["fields"], **({"age": row["age"]} if row.get("age") else {})}
            mute = sorted(name for name, f in scored.items() if not f["answered"]["k"])
            if mute:
                lines.append(f"{task}, {row['setting']}: no answer has {', '.join(mute)}.")
        lacking = sorted({name for r in found[task] for name in r["without_truth"]})
        if lacking:
            lines.append(
                f"{task}: no truth for {', '.join(lacking)}; give a file with such columns by "
                f"`--truth {'items' if task == 'attributes' else 'users'}=FILE`."
            )
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Return text that cannot become markup or another cell."""
    flat = " ".join(text.split())
    for mark in ("\\", "|", "<", "[", "]", "*", "_", "`"):
        flat = flat.replace(mark, f"\\{mark}")
    return flat
