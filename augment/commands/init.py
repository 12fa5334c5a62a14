"""Write a config for a data set, with the words of the trade to be looked over.

Examples:
  python -m augment init data/ml-100k
  python -m augment init data/books --out configs/augment/books.yaml --words book,author,genre,read

The file asks heuristics, which cost nothing; for a model change its line `provider`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from augment.config import AugmentConfig

_TEMPLATE = """\
# {name} augmented. With a key: change the next line to `provider: openai` (and say --max-usd 2).
provider: heuristic        # no LLM; `openai`, `azure`, or `local` for a server of your own
dataset: {dataset}
store: augmentation/{name}.store    # the journal; what was paid for lies here
out: augmentation/{name}            # what the trainer reads
domain:                    # the words of the trade, in prompts and as names of fields
  item: {item}
  items: {item_s}
  creator: {creator}
  creators: {creator_s}
  category: {category}
  categories: {category_s}
  consumed: {consumed}
tasks:
  pairs:
    # made by: python -m llmrec_pl predict --config RUN/config.yaml
    #            --ckpt_path RUN/checkpoints/best.ckpt --predictions.out pools/{name}
    pool: pools/{name}/candidates.parquet    # or random, a placebo
    n_candidates: 10
    temperature: 0.6
    top_p: 0.1
  profiles: {{temperature: 0.6, top_p: 0.1}}
  attributes: {{temperature: 0.6, top_p: 0.1, fields: [creator, country, language]}}
  embed: {{}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", type=Path, metavar="DIR", help="canonical data set folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="config to write (configs/augment/NAME.yaml)"
    )
    parser.add_argument(
        "--words",
        default="item,creator,category,liked",
        metavar="ITEM,CREATOR,CATEGORY,CONSUMED",
        help="what an item, its maker and its kind are called, and what people do with it",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: the file is there already, or the words are not four.
        DatasetError: no data set there.
    """
    from llmrec_pl.data.dataset import read_meta

    name = str(read_meta(args.dataset)["name"])
    path: Path = args.out or Path("configs/augment") / f"{name}.yaml"
    if path.exists():
        raise ConfigError(f"{str(path)!r} is there already; choose another `--out`.")
    words = [word.strip() for word in args.words.split(",")]
    if len(words) != 4 or not all(words):
        raise ConfigError(f"`--words {args.words}` must be four, as in book,author,genre,read.")
    named = dict(zip(("item", "creator", "category", "consumed"), words, strict=True))
    named |= {f"{key}_s": _plural(named[key]) for key in ("item", "creator", "category")}
    text = _TEMPLATE.format(name=name, dataset=args.dataset, **named)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    config = _read_back(path)
    print(
        f"written to {path}; look over its words: {config.domain.items}, {config.domain.creators}"
    )
    print(f"next: make pools/{name}/candidates.parquet, as the file says; then")
    print(f"  python -m augment estimate --config {path} --provider openai")


def _plural(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"


def _read_back(path: Path) -> AugmentConfig:
    from augment.config import load_config

    return load_config([path])
