"""Draw the demo's result as an SVG: ``python docs/pictures/make_demo_picture.py RUN``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rich.console import Console

from llmrec_pl.commands.recommend import recommendation_tables
from llmrec_pl.evaluation.tables import metrics_table


def main(run: Path) -> None:
    """Write ``demo.svg`` beside this file from the record of a run."""
    with Path("/dev/null").open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=92, file=nowhere)
        record = json.loads((run / "metrics" / "test.json").read_text(encoding="utf-8"))
        console.print(metrics_table(record, f"test, {record['model']} on {record['data']['name']}"))
        console.print(recommendation_tables(str(run / "checkpoints/best.ckpt"), [], 1, k=6)[0])
        svg = console.export_svg(title="make demo")
    # Web fonts would be fetched by whoever looks at the picture.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
