"""Convert the released LLMRec augmentation, or show what an augmentation holds.

An augmentation is a folder with extra user-item edges, user profiles and item attributes as
vectors, and a manifest that says where they came from. `fit` reads it beside the data set.

Examples:
  python -m llmrec_pl augmentation convert RELEASED --data data/netflix --out augmentation/released
  python -m llmrec_pl augmentation convert RELEASED --data data/netflix --out augmentation/released
         --invalid drop
  python -m llmrec_pl augmentation show augmentation/released
  python -m llmrec_pl augmentation show augmentation/released --data data/netflix

`convert` reads augmented_sample_dict, augmented_user_init_embedding and
augmented_atttribute_embedding_dict (spelled so) from the folder, as far as they are there. The
pickles are opened without running code in them. Ids are those of the data set's original files.
Pairs that cannot be right, such as items outside the catalogue, stop it unless `--invalid drop`.
`show` with `--data` also holds edges and vectors against the data set.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

PAPER_MODELS = (
    "as the paper states: gpt-3.5-turbo-0613 (pairs, attributes), gpt-3.5-turbo-16k (profiles), "
    "text-embedding-ada-002 (vectors)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="convert | show")
    form: dict[str, Any] = {
        "description": __doc__,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    convert = actions.add_parser("convert", help="convert the released pickles", **form)
    convert.add_argument("source", type=Path, metavar="RELEASED_FOLDER", help="holds the pickles")
    convert.add_argument("--data", type=Path, required=True, help="data set folder it is for")
    convert.add_argument("--out", type=Path, required=True, help="augmentation folder to write")
    convert.add_argument(
        "--invalid",
        choices=("error", "drop"),
        default="error",
        help="stop at entries that cannot be right, or leave them out and count them (error)",
    )
    convert.add_argument("--model", default=PAPER_MODELS, help="model label for the manifest")
    convert.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    show = actions.add_parser("show", help="counts, provenance and coverage", **form)
    show.add_argument("path", type=Path, help="augmentation folder")
    show.add_argument("--data", type=Path, help="data set to hold it against")
    show.add_argument(
        "--invalid",
        choices=("error", "drop"),
        default="error",
        help="with --data: stop at edges that cannot be right, or count them (error)",
    )


def run(args: argparse.Namespace) -> None:
    """Convert or show.

    Raises:
        AugmentationError: the augmentation is damaged or does not fit the data set.
        DatasetError: the data set or a pickle is missing or damaged.
    """
    if args.action == "convert":
        _convert(args)
    else:
        _show(args)


def _convert(args: argparse.Namespace) -> None:
    from llmrec_pl.data.augmentation import write_augmentation
    from llmrec_pl.data.dataset import InteractionDataset
    from llmrec_pl.data.released_augmentation import read_released_augmentation

    dataset = InteractionDataset.load(args.data)
    released = read_released_augmentation(args.source, dataset, args.invalid)
    manifest = {
        "store": None,
        "provider": "released",
        "model": args.model,
        "prompt_set": "llmrec-2024",
        "sources": released.sources,
        "counts": {f"dropped {reason}": n for reason, n in released.dropped.items()},
        "outside": released.outside,
    }
    written = write_augmentation(
        args.out,
        dataset,
        edges=released.edges,
        features=released.features,
        manifest=manifest,
        overwrite=args.overwrite,
    )
    console = Console()
    _print(console, args.out, written.manifest)
    console.print(f"written to {args.out}", highlight=False, soft_wrap=True)


def _show(args: argparse.Namespace) -> None:
    from llmrec_pl.data.augmentation import load_augmentation, read_manifest

    console = Console()
    manifest: Mapping[str, Any] = read_manifest(args.path)
    dropped: dict[str, int] = {}
    if args.data is not None:
        from llmrec_pl.data.dataset import InteractionDataset

        dataset = InteractionDataset.load(args.data)
        dropped = load_augmentation(args.path, dataset, args.invalid, verify=False).dropped
    _print(console, args.path, manifest)
    if args.data is not None:
        counts = ", ".join(f"{n} edges {reason}" for reason, n in dropped.items())
        verdict = f"would be left out: {counts}" if counts else "fits the data set"
        console.print(f"{args.data}: {verdict}", highlight=False, soft_wrap=True)


def _print(console: Console, path: Path, manifest: Mapping[str, Any]) -> None:
    about = Table("", "value", title=f"augmentation {path}")
    store = manifest.get("store")
    rows = {
        "data set": f"{manifest['dataset']} ({str(manifest['dataset_fp'])[:12]}…)",
        "provider": manifest["provider"],
        "model": manifest["model"],
        "prompt set": manifest["prompt_set"],
        "store": store if store else "none",
        "content id": f"{str(manifest['content_id'])[:12]}…",
        **{
            key.replace("_", " "): f"{n:,}" if isinstance(n, int) else n
            for key, n in manifest["counts"].items()
        },
    }
    for key, value in rows.items():
        about.add_row(key, str(value))
    console.print(about)
    fields = Table("field", "rows", "known", "coverage", "distinct", "dim", "dtype")
    for name, entry in sorted(manifest["fields"].items()):
        share = entry["known"] / entry["rows"] if entry["rows"] else 0.0
        cells = [f"{entry['rows']:,}", f"{entry['known']:,}", f"{share:.1%}"]
        cells += [f"{entry['distinct']:,}", str(entry["dim"]), str(entry["dtype"])]
        fields.add_row(name, *cells)
    console.print(fields if manifest["fields"] else "no vector fields")
