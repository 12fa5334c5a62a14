"""Write what was answered as the folder that the trainer reads.

A pure function of store, config and data set: the same store gives the same bytes. Takes the
answers to what the config asks; what was asked under other settings (another temperature, say)
lies in the same store and is exported with the config that asked, or with --spec.

Placebos: shuffled-profiles deals the profiles to other users, random-embeddings puts noise of
the same length in place of each vector; both are written beside the export. Masked titles and
random pools are asked for: see configs/augment/placebos.

Examples:
  python -m augment export --config configs/augment/ml-100k.yaml
  python -m augment export --config FILE --require-complete 0.98
  python -m augment export --config FILE --placebo shuffled-profiles
  python -m augment export --config FILE --spec 3fa2 --out augmentation/hotter
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from augment.commands.options import add_config_arguments, config_of
from augment.placebo import PLACEBOS
from augment.specs import EXPORTED

if TYPE_CHECKING:
    import argparse

    from llmrec_pl.data.augmentation import Augmentation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument(
        "--require-complete",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="fail where a task has less of its answers, such as 0.98",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace an augmentation that is not of this store",
    )
    parser.add_argument("--placebo", choices=PLACEBOS, help="a control, damaged on purpose")
    parser.add_argument("--seed", type=int, default=0, help="of the placebo")
    parser.add_argument(
        "--spec",
        action="append",
        default=[],
        metavar="SHA",
        help="take this spec for its task, by first letters; `status` shows them; repeatable",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config = config_of(args)
    from augment.export import export
    from llmrec_pl.data.dataset import InteractionDataset

    made = export(
        config.store,
        config,
        InteractionDataset.load(config.dataset),
        out=config.out if args.out else None,
        require_complete=args.require_complete,
        overwrite=args.overwrite,
        placebo=args.placebo,
        seed=args.seed,
        specs=args.spec,
    )
    _show(made, Console())


def _show(made: Augmentation, console: Console) -> None:
    coverage = made.manifest["coverage"]
    for kind, found in ((k, coverage[k]) for k in EXPORTED if k in coverage):
        line = f"{kind}: {found['done']:,} of {found['asked']:,} answers ({found['share']:.1%})"
        if found["skipped"]:
            line += f", {found['skipped']:,} not asked for"
        if not found["planned_in_full"]:
            line += "; never planned in full, so run `python -m augment run` again"
        console.print(line, highlight=False, soft_wrap=True)
    for reason, n in made.manifest["counts"].get("edges_left_out", {}).items():
        console.print(f"edges left out: {n:,} {reason}", highlight=False)
    line = f"{written(made)}, content id {made.content_id[:12]}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def written(made: Augmentation) -> str:
    """Return what was written where, as one line."""
    fields = ", ".join(f.name for f in made.features) or "no field"
    return f"{made.edges.shape[1]:,} edges and vectors of {fields} written to {made.path}"
