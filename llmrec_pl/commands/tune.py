r"""Search for a model's hyper-parameters on the validation split.

Every model gets the same budget: a number of trials, and CPU seconds for each. The first trial
is the config as it stands; the others are drawn by Optuna's TPE sampler from the search space. A
trial that is below the median of earlier ones at the same evaluation is stopped. The test split
stays sealed.

A search that was stopped goes on with the same command; a larger --trials goes on too. Several
processes, also of several calls on machines that share the folder, work on one study.

A search space is a YAML file of dotted config keys:
  model.init_args.optimizer.init_args.lr: {low: 5.0e-4, high: 1.0e-2, log: true}
  model.init_args.n_layers: [1, 2, 3]

Arguments after `--` go to `fit`.

Examples:
  python -m llmrec_pl tune --config configs/ml-100k.yaml --config configs/models/lightgcn.yaml
  python -m llmrec_pl tune --config configs/ml-100k.yaml --config configs/models/lattice.yaml \
      --trials 50 --seconds 600 --workers 2
  python -m llmrec_pl tune --config C.yaml --space MINE.yaml -- --data.root data/mine
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="as for `fit`; repeatable"
    )
    parser.add_argument(
        "--space",
        metavar="FILE",
        help="search space (configs/spaces/ and the name of the last --config)",
    )
    parser.add_argument("--trials", type=int, default=8, help="trials in all (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="CPU seconds a trial (%(default)g)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument(
        "--metric", default="recall@20", help="validation metric to maximise (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=2026, help="of the sampler (%(default)s)")
    parser.add_argument(
        "--warmup",
        type=int,
        default=30,
        metavar="N",
        help="first evaluation after which a trial may be stopped as poor (%(default)s)",
    )
    parser.add_argument(
        "--study", metavar="DIR", help="where the study lies (.cache/tuning/DATA/MODEL)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where the chosen values go (configs/tuned/DATA/MODEL.yaml)",
    )
    parser.add_argument(
        "--into", metavar="FILE", help="also write the chosen values into this config, in place"
    )
    parser.add_argument("--log", metavar="FILE", help="log of all trials (STUDY/trials.json)")
    parser.add_argument("--restart", action="store_true", help="forget the trials of the study")
    parser.set_defaults(more=[])


def run(args: argparse.Namespace) -> None:
    """Search, and write what was found.

    Raises:
        ConfigError: Optuna is missing, a file or a budget is wrong, or the study in the folder is
            another search.
        DatasetError: the data set of the configs cannot be read.
    """
    if args.trials < 1 or args.workers < 1 or args.seconds <= 0:
        raise ConfigError(
            f"`--trials`, `--workers` and `--seconds` must be positive, got {args.trials}, "
            f"{args.workers} and {args.seconds:g}."
        )
    if find_spec("optuna") is None:
        raise ConfigError("`tune` needs Optuna; install it with `pip install 'llmrec_pl[tune]'`.")
    from rich.console import Console

    from llmrec_pl.configs import merged, read_yaml
    from llmrec_pl.tuning.report import plot_trials, trials_table, write_chosen, write_log
    from llmrec_pl.tuning.search import Search, search
    from llmrec_pl.tuning.space import keys_without_room, read_space, with_values

    model = Path(args.config[-1]).stem
    space = args.space or f"configs/spaces/{model}.yaml"
    lost = keys_without_room(merged(args.config), read_space(space))
    data = _data_set(args)
    folder = Path(args.study or f".cache/tuning/{data['name']}/{model}")
    if args.restart:
        shutil.rmtree(folder, ignore_errors=True)
    plan = Search(
        args.config,
        space,
        folder,
        args.trials,
        args.seconds,
        args.metric,
        args.more,
        args.workers,
        args.seed,
        args.warmup,
    )
    console = Console(width=None if Console().is_terminal else 132)
    console.print(f"study: {folder}", highlight=False, soft_wrap=True)
    if lost:
        console.print(
            f"note: the config as it stands is no trial: it does not state {lost}, or not within "
            f"{space}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    with _Progress(console, args.trials) as progress:
        try:
            study = search(plan, data["fingerprint"], progress.show)
        except KeyboardInterrupt:
            progress.bar.print("the same command goes on where this one was stopped")
            raise
    out = Path(args.out or f"configs/tuned/{data['name']}/{model}.yaml")
    files = {
        "chosen values": out,
        "log": Path(args.log) if args.log else folder / "trials.json",
        "picture": folder / "trials.png",
    }
    write_log(files["log"], study, plan, data)
    write_chosen(out, study, plan, data)
    plot_trials(files["picture"], study, args.metric, f"{model} on {data['name']}")
    console.print(trials_table(study, args.metric))
    if args.into:
        files["also in"] = Path(args.into)
        changed = with_values(files["also in"].read_text(encoding="utf-8"), read_yaml(out))
        files["also in"].write_text(changed, encoding="utf-8")
    for name, path in files.items():
        console.print(f"  {name + ':':<15}{path}", highlight=False, soft_wrap=True)
    configs = " ".join(f"--config {c}" for c in [*args.config, out])
    console.print(
        f"train with them\n  python -m llmrec_pl fit {configs}", soft_wrap=True, highlight=False
    )


def _data_set(args: argparse.Namespace) -> dict[str, Any]:
    """Return name and fingerprint of the data set that the configs name."""
    from llmrec_pl.configs import setting
    from llmrec_pl.data.dataset import read_meta

    root = setting(args.config, args.more, "data.root")
    if root is None:
        raise ConfigError("no config names `data.root`; give it after `--`: `-- --data.root DIR`.")
    meta = read_meta(Path(str(root)))
    return {"name": meta["name"], "fingerprint": meta["fingerprint"]}


class _Progress:
    """A bar of trials on a terminal, and one line a finished trial everywhere."""

    def __init__(self, console: Any, total: int) -> None:  # noqa: ANN401
        from rich.progress import Progress

        self.console = console
        self.bar = Progress(console=console, disable=not console.is_terminal, transient=True)
        self.task = self.bar.add_task("trials", total=total)

    def __enter__(self) -> _Progress:
        self.bar.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:  # noqa: ANN401
        self.bar.__exit__(*details)

    def show(self, trial: Any) -> None:  # noqa: ANN401
        from llmrec_pl.tuning.report import short_name, shown_value

        result = trial.user_attrs["result"]
        value = result["value"]
        found = f"failed: {result['error']}" if value is None else f"{value:.4f}"
        values = ", ".join(f"{short_name(k)} {shown_value(v)}" for k, v in trial.params.items())
        self.bar.advance(self.task)
        self.bar.print(
            f"trial {trial.number}: {found}  ({values}; {result['stopped']} after "
            f"{result['epochs']} evaluations, {result['cpu_seconds']:.0f} CPU s)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
