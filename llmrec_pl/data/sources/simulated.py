"""A made-up film data set with clear tastes: for tests, and where nothing can be downloaded.

Viewers belong to taste groups and like films of their groups, so personalised models beat
popularity by far; texts (genres, director, country, plot) tell a film's group, so text features
help too. Numbers from it say nothing about real recommendation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llmrec_pl.data.sources.base import RawDataset
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# one row a taste group: genres, countries, surnames of directors, nouns for titles and plots
TASTES = (
    (("Sci-Fi", "Adventure"), ("Altoria", "Borea"), ("Vance", "Okoro", "Lindt"),
     ("Orbit", "Comet", "Machine", "Signal", "Colony", "Horizon")),
    (("Romance", "Comedy"), ("Corvina", "Delmar"), ("Bellamy", "Sorel", "Pinto"),
     ("Wedding", "Letter", "Summer", "Kiss", "Garden", "Waltz")),
    (("Crime", "Thriller"), ("Borea", "Esterland"), ("Kray", "Novak", "Mercer"),
     ("Alibi", "Heist", "Witness", "Verdict", "Shadow", "Ransom")),
    (("Horror", "Mystery"), ("Farrow Isles", "Corvina"), ("Grimm", "Thorne", "Ashdown"),
     ("Cellar", "Curse", "Hollow", "Raven", "Mirror", "Crypt")),
    (("Drama", "War"), ("Esterland", "Galdova"), ("Hartmann", "Ivanov", "Doyle"),
     ("Bridge", "Winter", "Soldier", "Border", "Silence", "Harvest")),
    (("Animation", "Children's"), ("Altoria", "Delmar"), ("Tanaka", "Pom", "Fairweather"),
     ("Dragon", "Puppet", "Forest", "Balloon", "Penguin", "Toy")),
)  # fmt: skip
_ADJECTIVES = (
    "Silent", "Crimson", "Last", "Hidden", "Golden", "Broken", "Distant", "Burning", "Secret",
    "Frozen", "Wandering", "Forgotten", "Electric", "Restless", "Painted", "Hollow", "Little",
    "Midnight", "Second", "Wild",
)  # fmt: skip
_OCCUPATIONS = ("student", "teacher", "engineer", "artist", "nurse", "clerk", "retired")
_START, _DAY = 946_684_800, 86_400  # 2000-01-01 UTC


def simulate(
    *, n_users: int = 400, n_items: int = 500, seed: int = 0, plots: bool = True
) -> RawDataset:
    """Make a data set; equal arguments give equal data.

    Args:
        n_users: viewers, at least 1.
        n_items: films, at least 30.
        seed: of everything.
        plots: also give each film a plot of one sentence.

    Returns:
        Ratings 1 to 5 with timestamps, users with age, gender and occupation, items with title,
        year, genres, director, country and plot.

    Raises:
        DatasetError: a size is too small.
    """
    if n_users < 1 or n_items < 30:
        raise DatasetError(
            f"simulated data need at least 1 user and 30 items, got {n_users} and {n_items}."
        )
    rng = np.random.default_rng(seed)
    item_taste = _pick(rng, n_items, len(TASTES))
    user_taste = np.stack([_pick(rng, n_users, len(TASTES)), _pick(rng, n_users, len(TASTES))])
    raw = RawDataset("simulated", _interactions(rng, user_taste, item_taste))
    raw.items = _items(rng, item_taste, plots=plots)
    raw.users = _users(rng, user_taste[0])
    raw.provenance = {
        "reader": "simulated",
        "arguments": {"n_users": n_users, "n_items": n_items, "seed": seed, "plots": plots},
        "notes": ["simulated data: made-up films and viewers, no evidence about real ones"],
    }
    return raw


def _pick(rng: np.random.Generator, n: int, below: int) -> NDArray[np.int64]:
    # only `random` and `standard_normal`: other methods' streams may change between versions
    return (rng.random(n) * below).astype(np.int64)


def _interactions(
    rng: np.random.Generator, user_taste: NDArray[np.int64], item_taste: NDArray[np.int64]
) -> pl.DataFrame:
    """Draw who rated what, how and when.

    A viewer's film is drawn by popularity and affinity: high for the first taste, lower for the
    second, low otherwise, plus a finer latent match within groups.
    """
    n_users, n_items = user_taste.shape[1], len(item_taste)
    affinity = 2.4 * (item_taste[None, :] == user_taste[0][:, None]).astype(np.float64)
    affinity += 1.2 * (item_taste[None, :] == user_taste[1][:, None])
    users, items = rng.standard_normal((n_users, 3)), rng.standard_normal((n_items, 3))
    affinity += 0.5 * users @ items.T
    popularity = 0.7 * rng.standard_normal(n_items)
    # Gumbel keys: the k largest are a draw without replacement
    gumbel = -np.log(-np.log(rng.random((n_users, n_items))))
    keys = popularity[None, :] + 1.1 * affinity + gumbel
    sizes = np.clip(np.exp(3.1 + 0.5 * rng.standard_normal(n_users)), 8, n_items // 3)
    quality = 0.4 * rng.standard_normal(n_items)
    noise = 0.7 * rng.standard_normal((n_users, n_items))
    ratings = np.clip(np.rint(2.9 + 0.55 * affinity + quality[None, :] + noise), 1, 5)
    rows = []
    for viewer in range(n_users):
        chosen = np.argsort(-keys[viewer], kind="stable")[: int(sizes[viewer])]
        chosen = chosen[np.argsort(rng.random(len(chosen)), kind="stable")]
        start = _START + int(rng.random() * 1500) * _DAY
        times = start + np.cumsum(rng.random(len(chosen)) * 5 * _DAY).astype(np.int64)
        rows.append((np.full(len(chosen), viewer), chosen, ratings[viewer, chosen], times))
    user, item, rating, time = (np.concatenate(part) for part in zip(*rows, strict=True))
    return pl.DataFrame(
        {"user_id": user + 1, "item_id": item + 1, "rating": rating, "timestamp": time}
    ).with_columns(pl.col("user_id", "item_id").cast(pl.String))


def _items(rng: np.random.Generator, taste: NDArray[np.int64], *, plots: bool) -> pl.DataFrame:
    n = len(taste)
    draws = rng.random((n, 8))

    def choose(options: tuple[str, ...], draw: float) -> str:
        return options[int(draw * len(options))]

    rows, used = [], set()
    for item, (group, draw) in enumerate(zip(taste, draws, strict=True)):
        genres, countries, directors, nouns = TASTES[group]
        noun = choose(nouns, draw[0])
        title = f"The {choose(_ADJECTIVES, draw[1])} {noun}"
        part, base = 1, title
        while title in used:
            part += 1
            title = f"{base} {part}"
        used.add(title)
        listed = genres if draw[2] < 0.6 else (genres[int(draw[2] * 10) % 2],)
        director = f"{'ABCDEFGHJKLM'[int(draw[3] * 3)]}. {choose(directors, draw[4])}"
        country = choose(countries, draw[5])
        year = 1960 + int(draw[6] * 40)
        row = [str(item + 1), title, year, ", ".join(listed), director, country]
        if plots:
            other = choose(tuple(n for n in nouns if n != noun), draw[7])
            row.append(
                f"{listed[0]} film from {country}, in which the {noun.lower()} and the "
                f"{other.lower()} change everything."
            )
        rows.append(row)
    names = [
        "item_id",
        "title",
        "year",
        "genres",
        "director",
        "country",
        *(["plot"] if plots else []),
    ]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.col("year").cast(pl.Int32)
    )


def _users(rng: np.random.Generator, taste: NDArray[np.int64]) -> pl.DataFrame:
    """Make viewers whose age leans on their first taste, so that profiles carry some signal."""
    ages = np.clip(np.rint(22 + 6 * taste + 8 * rng.standard_normal(len(taste))), 14, 80)
    genders = np.where(rng.random(len(taste)) < 0.5, "F", "M")
    jobs = _pick(rng, len(taste), len(_OCCUPATIONS))
    return pl.DataFrame(
        {
            "user_id": [str(u + 1) for u in range(len(taste))],
            "age": [str(int(age)) for age in ages],
            "gender": genders.tolist(),
            "occupation": [_OCCUPATIONS[j] for j in jobs],
        }
    )
