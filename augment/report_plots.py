"""Pictures of a report."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    Found = Mapping[str, Any]

_BLUE, _GREY, _ORANGE, _DARK, _PALE = "#1f5fa8", "#8a8f98", "#c2410c", "#333333", "#c9cdd3"
_OTHERS = ("#c2410c", "#d98c3f", "#b8a13a", "#7a9a52", "#4f8f8b", "#7b6aa8", "#a35a7d", "#8a8f98")
_MOST = 12
"""Settings in one picture; further ones stand in the tables."""
_INCHES = 0.34


class _Row(NamedTuple):
    """What is answered in one field under one setting, and of how many the truth is known."""

    name: str
    setting: str
    scored: Found
    n: int
    copied: bool = False
    """Whether the answers were read from where the truth stands."""


def plot_all(found: Found, folder: Path) -> list[Path]:
    """Draw the parts that have something to show; returns the files, in the order of the report.

    Args:
        found: what `measure` returned.
        folder: where the PNG files go; it exists.
    """
    drawn: dict[str, Callable[[Found, Path], bool]] = {
        "verdicts.png": plot_verdicts,
        "pairs.png": plot_pairs,
        "attributes.png": plot_attributes,
        "profiles.png": plot_profiles,
    }
    made = []
    for name, draw in drawn.items():
        path = folder / name
        path.unlink(missing_ok=True)  # an older picture must not pass for this report's
        if draw(found, path):
            made.append(path)
    return made


def plot_verdicts(found: Found, path: Path) -> bool:
    """Draw the shares of verdicts on replies, one bar a task and setting.

    Heuristics always pass; they are left out where something else was asked.
    """
    rows = [r for r in found["acceptance"] if r["verdicts"]]
    rows = ([r for r in rows if not r["heuristic"]] or rows)[-_MOST:]
    if not rows:
        return False
    totals: dict[str, int] = {}
    for row in rows:
        for code, n in row["verdicts"].items():
            totals[code] = totals.get(code, 0) + n
    codes = sorted(totals, key=lambda c: (c != "accepted", -totals[c], c))
    axes, save = _canvas(len(rows), 1)
    left = [0.0] * len(rows)
    for number, code in enumerate(codes):
        shares = [100 * r["verdicts"].get(code, 0) / sum(r["verdicts"].values()) for r in rows]
        color = _BLUE if code == "accepted" else _OTHERS[(number - 1) % len(_OTHERS)]
        axes.barh(range(len(rows)), shares, left=left, color=color, label=code, height=0.6)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    labels = [f"{r['task']}, {r['setting']}\n{sum(r['verdicts'].values()):,} replies" for r in rows]
    _rows(axes, labels)
    _percent(axes, "share of replies")
    axes.set_xlim(0, 100)
    _finish(axes, "What the check said of each reply", columns=4)
    save(path)
    return True


def plot_pairs(found: Found, path: Path) -> bool:
    """Draw how often picks are held-out liked items, with intervals, against chance."""
    rows = [r for r in found["pairs"] if r["users_that_tell"]][-_MOST:]
    if not rows:
        return False
    axes, save = _canvas(2 * len(rows), 1)
    for place, row in enumerate(rows):
        for name, color, shift in (("most_liked", _BLUE, -0.19), ("least_liked", _GREY, 0.19)):
            label = name.replace("_", " ") if place == 0 else None
            _bar(axes, place + shift, row[name], color, label)
        chance = 100 * row["chance"]
        label = "one random pick" if place == 0 else None
        axes.plot([chance] * 2, [place - 0.42, place + 0.42], color=_DARK, lw=1.4, label=label)
        if row["first_of_pool"]:
            value = 100 * row["first_of_pool"]["share"]
            label = "first of the pool" if place == 0 else None
            axes.plot(value, place, "D", color=_ORANGE, ms=5, label=label)
    _rows(axes, [f"{r['users_that_tell']:,} users\n{r['setting']}" for r in rows])
    _percent(axes, "picks that are held-out liked items (validation)")
    _finish(axes, "Pairs against chance, with 95 % intervals")
    save(path)
    return True


def plot_attributes(found: Found, path: Path) -> bool:
    """Draw the share of right attributes, with intervals, against the majority answer."""
    rows = [
        _Row(name, r["setting"], f, f["truth_known"], r["heuristic"])
        for r in found["attributes"][-_MOST:]
        for name, f in r["fields"].items()
        if f["truth_known"]
    ]
    if not rows:
        return False
    axes, save = _canvas(len(rows), 1)
    _against_majority(axes, rows)
    _percent(axes, "right, of items whose truth is known")
    axes.set_xlim(0, 100)
    _finish(axes, "Attributes against the truth, with 95 % intervals")
    save(path)
    return True


def plot_profiles(found: Found, path: Path) -> bool:
    """Draw answered against true age, and the shares of right ages and genders."""
    rows = [r for r in found["profiles"] if _tells(r)][-_MOST:]
    if not rows:
        return False
    dots = next((r for r in reversed(rows) if r["of_this_config"] and _points(r)), None)
    dots = dots or next((r for r in reversed(rows) if _points(r)), None)
    shares: list[_Row] = []
    for row in rows:
        if _points(row):
            age = row["age"]
            for years in (5, 10):
                both = {
                    "of_all": age[f"within_{years}"],
                    "majority": age[f"within_{years}_constant"],
                }
                name = f"age within {years} years"
                shares.append(_Row(name, row["setting"], both, age["truth_known"]))
        shares += [
            _Row(name, row["setting"], f, f["truth_known"])
            for name, f in row["fields"].items()
            if f["answered"]["k"]
        ]
    panels, save = _panels(len(shares), 2 if dots else 1)
    _against_majority(panels[-1], shares)
    _percent(panels[-1], "right, of users whose truth is known")
    panels[-1].set_xlim(0, 100)
    _finish(panels[-1], "Profiles against the truth, with 95 % intervals")
    if dots:
        _scatter(panels[0], dots)
    save(path)
    return True


def _tells(row: Found) -> bool:
    return _points(row) or any(f["answered"]["k"] for f in row["fields"].values())


def _points(row: Found) -> bool:
    return bool(row.get("age") and row["age"]["points"])


def _scatter(axes: Axes, row: Found) -> None:
    truth, answer, counts = zip(*row["age"]["points"], strict=True)
    axes.plot([0, 100], [0, 100], color=_DARK, lw=1, ls="--")
    axes.scatter(truth, answer, s=[12 * n for n in counts], color=_BLUE, alpha=0.45, lw=0)
    high = 5 + max(*truth, *answer)
    axes.set(xlabel="true age, years", ylabel="answered age, years", xlim=(0, high), ylim=(0, high))
    axes.set_title(
        f"Age, {sum(counts):,} users\n{_wrapped(row['setting'], 44)}", loc="left", fontsize=10
    )
    axes.set_aspect("equal", adjustable="box")
    axes.spines[["top", "right"]].set_visible(False)


# Parts that pictures share ---------------------------------------------------------------------


def _against_majority(axes: Axes, given: Sequence[_Row]) -> None:
    names = list(dict.fromkeys(row.name for row in given))
    rows = sorted(given, key=lambda row: names.index(row.name))  # settings side by side
    named = set[str]()
    for place, row in enumerate(rows):
        scored = row.scored
        answers = "read from the data set, no knowledge" if row.copied else "answers"
        shown = None if answers in named else answers
        _bar(axes, place, scored["of_all"], _PALE if row.copied else _BLUE, shown, height=0.55)
        named.add(answers)
        usual = 100 * scored["majority"]["share"]
        label = "best constant answer" if place == 0 else None
        axes.plot([usual] * 2, [place - 0.4, place + 0.4], color=_ORANGE, lw=2, label=label)
    _rows(axes, [f"{row.name}, n = {row.n:,}\n{row.setting}" for row in rows])


def _bar(
    axes: Axes, place: float, share: Found, color: str, label: str | None, height: float = 0.36
) -> None:
    value, low, high = (100 * share[name] for name in ("share", "low", "high"))
    axes.barh(place, value, height=height, color=color, label=label)
    whiskers = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(value, place, xerr=whiskers, color=_DARK, lw=1, capsize=2.5, fmt="none")


def _canvas(rows: int, columns: int) -> tuple[Axes, Callable[[Path], None]]:
    panels, save = _panels(rows, columns)
    return panels[0], save


def _panels(rows: int, columns: int) -> tuple[list[Axes], Callable[[Path], None]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(2.6 if columns == 1 else 4.2, 1.6 + _INCHES * 1.5 * rows)
    figure = Figure(figsize=(8.0 if columns == 1 else 12.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, squeeze=False)[0]

    def save(path: Path) -> None:
        figure.savefig(path, dpi=150, metadata={"Software": None})

    return list(panels), save


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    texts = ["\n".join(_wrapped(part, 44) for part in label.split("\n")) for label in labels]
    axes.set_yticks(range(len(labels)), texts, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first on top


def _wrapped(text: str, width: int) -> str:
    """Return text in lines; "$" would start a formula."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)).replace("$", r"\$")


def _percent(axes: Axes, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
    axes.set_xlabel(label)
    axes.grid(visible=True, axis="x", color="0.9")
    axes.set_axisbelow(True)


def _finish(axes: Axes, title: str, columns: int = 4) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure: Any = axes.figure
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )
