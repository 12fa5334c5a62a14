"""Make a canonical data set folder from raw files: read, filter, split, renumber, record.

The folder holds interactions.parquet, users.parquet, items.parquet and dataset.json, which
records every choice below, what each filter removed, and one fingerprint over all of it.

Data sets:
  ml-100k ml-1m ml-10m ml-20m ml-25m ml-32m ml-latest ml-latest-small
                 MovieLens; fetched into .cache/ (or LLMREC_CACHE) unless --source names the
                 unpacked folder or the .zip
  simulated      made-up films and viewers with clear tastes; needs no network
  released       the data folder of the LLMRec authors (train.json, ...); needs --source
  recbole        RecBole atomic files (<name>.inter, ...); needs --source
  mmrec          MMRec data with features (<name>.inter, <modality>_feat.npy); needs --source
  table          any CSV, TSV or parquet file with named columns; needs --source

Filters run in this order: repeated (user, item) pairs are merged, --min-rating, --require-text,
--max-per-user, --k-core. Splits: `random` takes the ratios from each user's history,
`leave-last-out` each user's last two interactions, `time` one cut for all, `given` what the raw
data bring. A validation or test set that is not given is carved out of train, with the shares
rounded at random for each user, while `random` gives each user at least one where it can.
--cold-items SHARE first holds that share of the items wholly out of train, some for validation
and others for test, to see how a model ranks items that nobody has met; the rest is split as
chosen.

Examples:
  python -m llmrec_pl prepare ml-100k
  python -m llmrec_pl prepare ml-1m --source ~/ml-1m.zip --k-core 5 --split leave-last-out
  python -m llmrec_pl prepare ml-100k --cold-items 0.2 --out data/ml-100k-cold
  python -m llmrec_pl prepare released --source netflix/ --name netflix --out data/netflix
  python -m llmrec_pl prepare mmrec --source baby/ --name baby
  python -m llmrec_pl prepare table --source plays.csv --user-column listener --item-column song
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from llmrec_pl.data.sources.base import RawDataset

MOVIELENS = (
    "ml-100k",
    "ml-1m",
    "ml-10m",
    "ml-20m",
    "ml-25m",
    "ml-32m",
    "ml-latest",
    "ml-latest-small",
)
OTHERS = ("simulated", "released", "recbole", "mmrec", "table")
TABLE_OPTIONS = ("user_column", "item_column", "rating_column", "timestamp_column", "split_column")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prepare`."""
    parser.add_argument(
        "dataset", choices=[*MOVIELENS, *OTHERS], metavar="DATASET", help="see above"
    )
    parser.add_argument("--source", type=Path, metavar="PATH", help="folder, .zip or file to read")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to make (data/NAME)")
    parser.add_argument("--name", help="name of the data set (DATASET, or the folder's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set in DIR")
    _add_filters(parser.add_argument_group("filters"))
    _add_split(parser.add_argument_group("split"))
    _add_released(parser.add_argument_group("released data"))
    _add_tables(parser.add_argument_group("columns of `table`, and further tables"))


def _add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--min-rating",
        type=float,
        metavar="X",
        help="a rating of at least X is positive, others go (4 for MovieLens and simulated)",
    )
    group.add_argument("--all-ratings", action="store_true", help="every rating is positive")
    group.add_argument(
        "--require-text",
        nargs="?",
        const="title",
        metavar="COLUMN",
        help="only items with text in COLUMN of the item table (title)",
    )
    group.add_argument(
        "--max-per-user",
        type=int,
        metavar="N",
        help="at most N interactions a user: the latest, or random ones without timestamps",
    )
    group.add_argument(
        "--k-core",
        type=int,
        nargs="+",
        default=[1],
        metavar="K",
        help="each user and each item keeps at least K interactions; two numbers set users and "
        "items apart",
    )


def _add_released(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--n-items",
        type=int,
        metavar="N",
        help="size of the catalogue where no file tells it (17366 for Netflix)",
    )
    group.add_argument(
        "--titles-aligned",
        action="store_true",
        help="the ids in item_attribute.csv are those of the interactions (not so for Netflix)",
    )
    group.add_argument(
        "--allow-empty-users", action="store_true", help="keep users that have no interaction"
    )


def _add_split(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--split",
        choices=["random", "leave-last-out", "time", "given"],
        help="how to split (given, if the raw data bring a split, else random)",
    )
    group.add_argument(
        "--ratios",
        type=float,
        nargs=3,
        default=[0.8, 0.1, 0.1],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of train, validation and test (0.8 0.1 0.1)",
    )
    group.add_argument(
        "--cold-items",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the items to hold wholly out of train, for validation and test (0)",
    )
    group.add_argument("--seed", type=int, default=2026, help="seed of the split (2026)")


def _add_tables(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--user-column", metavar="NAME", help="column of user ids (user_id)")
    group.add_argument("--item-column", metavar="NAME", help="column of item ids (item_id)")
    group.add_argument("--rating-column", metavar="NAME", help="column of ratings")
    group.add_argument("--timestamp-column", metavar="NAME", help="column of times")
    group.add_argument("--split-column", metavar="NAME", help="column with train, val or test")
    for side in ("items", "users"):
        group.add_argument(
            f"--{side}",
            type=Path,
            metavar="FILE",
            help=f"CSV, TSV, parquet or JSON lines with further columns of the {side}; its first "
            f"column holds the id",
        )


def run(args: argparse.Namespace) -> None:
    """Prepare a data set and print what came out."""
    from rich.console import Console

    from llmrec_pl.data.prepare import check_out, prepare_dataset
    from llmrec_pl.data.protocol import Protocol

    console = Console()
    name = args.name or (args.dataset if args.dataset in (*MOVIELENS, "simulated") else None)
    if name is None:
        source = _source(args)
        name = (source if source.is_dir() else source.with_suffix("")).resolve().name
    out = args.out or Path("data") / name
    check_out(out, overwrite=args.overwrite)
    if len(args.k_core) > 2:
        raise DatasetError(f"`--k-core` takes one or two numbers, got {args.k_core}.")

    def note(text: str) -> None:
        console.print(f"· {text}", style="yellow", markup=False, highlight=False)

    raw = _read(args, note)
    for text in raw.provenance.get("notes", []):
        note(text)
    threshold = 4.0 if args.dataset in (*MOVIELENS, "simulated") else None
    if "rating" not in raw.interactions.columns or args.all_ratings:
        threshold = None
    protocol = Protocol(
        min_rating=args.min_rating if args.min_rating is not None else threshold,
        require_text=args.require_text,
        max_per_user=args.max_per_user,
        k_core_users=args.k_core[0],
        k_core_items=args.k_core[-1],
        split=args.split or ("given" if raw.given_splits else "random"),
        ratios=(args.ratios[0], args.ratios[1], args.ratios[2]),
        seed=args.seed,
        cold_items=args.cold_items,
    )
    meta = prepare_dataset(
        raw,
        out,
        protocol,
        name=name,
        overwrite=args.overwrite,
        allow_empty_users=args.allow_empty_users,
    )
    print_summary(meta, out, console)


def _source(args: argparse.Namespace) -> Path:
    if args.source is None:
        raise DatasetError(
            f"`prepare {args.dataset}` needs the raw data; name the folder, .zip or file with "
            "`--source PATH`."
        )
    path: Path = args.source
    return path


def _read(args: argparse.Namespace, note: Callable[[str], None]) -> RawDataset:
    """Read the raw data, fetching them first where no `--source` is given."""
    from llmrec_pl.data.sources import detect, read

    kind, path = args.dataset, args.source
    options: dict[str, Any] = {}
    if kind == "released":
        options = {"titles_aligned": args.titles_aligned, "n_items": args.n_items}
    elif args.titles_aligned or args.n_items is not None:
        raise DatasetError("`--titles-aligned` and `--n-items` only go with `prepare released`.")
    if kind == "table":
        options = {k: v for k in TABLE_OPTIONS if (v := getattr(args, k)) is not None}
    elif given := [k for k in TABLE_OPTIONS if getattr(args, k) is not None]:
        flags = ", ".join(f"--{k.replace('_', '-')}" for k in given)
        raise DatasetError(f"{flags} only goes with `prepare table`, not with {kind!r}.")
    if kind in MOVIELENS:
        if path is None:
            from llmrec_pl.data.download import fetch_movielens

            kind, path = fetch_movielens(kind, note)
        else:
            kind = detect(path)
            if kind not in ("movielens", "recbole"):
                raise DatasetError(
                    f"{str(path)!r} is no MovieLens data set, it looks like `{kind}`; use "
                    f"`python -m llmrec_pl prepare {kind} --source {path}`."
                )
        raw = read(kind, path)
        if raw.name.startswith("ml-") and raw.name != args.dataset:
            note(f"the files in {str(path)!r} look like {raw.name}, not {args.dataset}")
    else:
        raw = read(kind, None if kind == "simulated" else _source(args), **options)
    for side in ("items", "users"):
        if getattr(args, side) is not None:
            from llmrec_pl.data.sources.table import join_columns

            note(join_columns(raw, side, getattr(args, side)))
    return raw


def print_summary(meta: dict[str, Any], out: Path, console: Console) -> None:
    """Print sizes, what was removed, and the next command."""
    from rich.table import Table

    counts, sizes = meta["counts"], meta["counts"]["splits"]
    n_edges = sum(sizes.values())
    cells = meta["n_users"] * meta["n_items"]
    table = Table(title=f"data set {meta['name']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(
        "users", f"{meta['n_users']:,}", _share(counts["users_without_train"], "without train")
    )
    table.add_row(
        "items", f"{meta['n_items']:,}", _share(counts["items_without_train"], "without train")
    )
    table.add_row(
        "interactions", f"{n_edges:,}", f"sparsity {1 - n_edges / cells:.4%}", end_section=True
    )
    for split, size in sizes.items():
        table.add_row(f"  {split}", f"{size:,}", f"{size / n_edges:.1%}")
    table.add_section()
    table.add_row("raw rows", f"{counts['raw']:,}", "")
    for what, removed in counts["removed"].items():
        table.add_row(
            f"  {what}", f"-{removed:,}" if removed else "0", "removed" if removed else ""
        )
    for side in ("users", "items"):
        if left := counts.get(f"{side}_of_table_left_out"):
            table.add_row(f"  {side} without interactions", f"-{left:,}", f"{side} left out")
        if unknown := counts.get(f"{side}_not_in_table"):
            table.add_row(
                f"  {side} unknown to the {side[:-1]} table", f"{unknown:,}", "kept, without text"
            )
    table.add_section()
    protocol = meta["protocol"]
    carved = f"{' and '.join(protocol['carved'])} carved, " if protocol["carved"] else ""
    cold = f"{protocol['cold_items']:.0%} of items cold, " if "cold_items" in protocol else ""
    table.add_row("split", protocol["split"], f"{carved}{cold}seed {protocol['seed']}")
    for name, feature in meta["features"].items():
        table.add_row(
            f"feature {name}", f"{feature['rows']:,} x {feature['dim']}", feature["dtype"]
        )
    table.add_row("fingerprint", meta["fingerprint"][:16], "in full in dataset.json")
    console.print(table)
    console.print(f"written to {out}", markup=False, highlight=False)
    console.print(f"next: python -m llmrec_pl describe {out}", markup=False, highlight=False)


def _share(n: int, what: str) -> str:
    return f"{n:,} {what}" if n else ""
