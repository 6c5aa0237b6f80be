"""What each command of the command line does, and its options.

Modules are imported by the commands that need them: help and refusals come at once.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from orthora.flags import config_of_flags, parse
from orthora.quiet import quiet_libraries
from orthora.signals import follow


@dataclass(frozen=True)
class _MethodsOptions:
    markdown: bool = False
    """Print README's table."""


@dataclass(frozen=True)
class _InitOptions:
    """Write a started PEFT adapter for MODEL, reading its safetensors one tensor at a time.

    The model is not built and not loaded; memory is about one layer per worker. Beside the adapter,
    orthora.json proves for every layer that the subspace is right. Run the same command again to
    go on after an interruption.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Folder, .safetensors file, hub name, or tiny."""
    out: Path
    """Folder to create."""
    method: str = "rlpo"
    """A method of `orthora methods`."""
    rank: int = 16
    """r."""
    alpha: float = 32.0
    """The scale is alpha / rank."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """all-linear (fused experts included), module names, or one regular expression."""
    seed: int = 0
    """Of the random methods."""
    unfit: Literal["refuse", "lower", "skip"] = "refuse"
    """Modules whose smaller side is below the rank: an error, the largest rank that fits, or left
    out."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute."""
    workers: int | None = None
    """Layers side by side, one thread each; None takes one per core, as far as memory goes."""


@dataclass(frozen=True)
class _ExportOptions:
    run: Path
    """A finished run folder."""
    out: Path
    """Folder to create."""
    form: Literal["plain", "merged", "residual"] = "plain"
    """A PEFT adapter on the untouched base; the whole model; or base/ with W - s B0 A0 and adapter/
    of rank r, for anchored methods."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of merged weights; None keeps the base's."""


@dataclass(frozen=True)
class _DemoOptions:
    out: Path = Path("runs/demo")
    """Folder of the runs and the page."""
    steps: int = 50
    """Training steps per run."""
    eval_problems: int = 256
    """Held-out problems, 4 samples each."""
    seed: int = 42
    """Shared by all runs."""
    jobs: int = 0
    """Runs at a time; 0 takes up to two."""


@dataclass(frozen=True)
class _ReportOptions:
    runs: Path
    """Folder whose direct subfolders are runs, with evaluations beside or in them."""
    title: str = "orthora runs"
    """Of the page."""


def _methods(arguments: list[str]) -> None:
    """List the initialisations, structures and optimizers."""
    options = parse(_MethodsOptions, arguments, "methods")
    from rich.console import Console
    from rich.table import Table

    from orthora.methods.compose import markdown, table

    for kind in ("initialisation", "structure", "optimizer"):
        if options.markdown:
            print(markdown(kind) + "\n")
            continue
        head, *rows = table(kind)
        shown = Table(*head, title=f"{kind}s", title_justify="left")
        for row in rows:
            shown.add_row(*(cell.replace("`", "") for cell in row))
        Console().print(shown)
    if not options.markdown:
        print("Join one of each kind by +, in any order, e.g. rlpo+dora or rlmo+rslora+lora-plus.")


def _init(arguments: list[str]) -> None:
    """Start an adapter straight from a checkpoint."""
    options = parse(_InitOptions, arguments, "init")
    quiet_libraries(data=False)
    from orthora.starting import start_adapter

    start_adapter(options)


def _train(arguments: list[str]) -> None:
    """Train an adapter."""
    follow()
    resume = "--resume" in arguments
    from orthora.config import TrainConfig

    config = config_of_flags(TrainConfig, [a for a in arguments if a != "--resume"], "train")
    quiet_libraries()
    from orthora.train import train
    from orthora.train.world import is_first

    result = train(config, resume=resume)
    if not is_first():
        return
    held_out = result.evaluation
    score = "" if held_out is None else f", held-out pass@1 {held_out.pass_at_1:.3f}"
    print(f"{result.out}: {result.steps} steps in {result.seconds:.0f} s{score}")


def _probe(arguments: list[str]) -> None:
    """Compare methods by one training step."""
    from orthora.config import ProbeConfig
    from orthora.store import check_new_file, write_json

    config = config_of_flags(ProbeConfig, arguments, "probe")
    if config.json_out:
        check_new_file(config.json_out)
    quiet_libraries()
    from orthora.train.probing import as_json, probe, table

    found: list[Any] = []

    def told(one: Any) -> None:
        print(f"{one.method}: {len(one.trials)} trials", file=sys.stderr, flush=True)
        found.append(one)
        if config.json_out:  # what is known so far
            write_json(f"{config.json_out}.partial", as_json(found))

    probe(
        config.run(),
        config.methods,
        target_kl=config.target_kl,
        rollouts=config.rollouts,
        trials=config.trials,
        told=told,
    )
    from rich.console import Console

    Console().print(table(found))
    if config.json_out:
        Path(f"{config.json_out}.partial").replace(config.json_out)


def _theory(arguments: list[str]) -> None:
    """Check the theorems on a model's layers."""
    from orthora.config import TheoryConfig

    named = bool(arguments) and not arguments[0].startswith("-")
    given = ["--model", *arguments] if named else arguments
    config = config_of_flags(TheoryConfig, given, "theory")
    quiet_libraries()
    from orthora.train.theory import run_theory

    run_theory(config)


def _eval(arguments: list[str]) -> None:
    """Evaluate a model, an adapter, or a run's checkpoints."""
    from orthora.config import EvalConfig

    config = config_of_flags(EvalConfig, arguments, "eval")
    quiet_libraries()
    from orthora.evaluate.command import run_eval

    run_eval(config)


def _rescore(arguments: list[str]) -> None:
    """Verify kept samples again."""
    from orthora.evaluate.command import run_rescore

    run_rescore(arguments)


def _compare(arguments: list[str]) -> None:
    """Compare evaluations of the same problems."""
    from orthora.evaluate.command import run_compare

    run_compare(arguments)


def _measure(arguments: list[str]) -> None:
    """Measure what training did to the weights."""
    quiet_libraries(data=False)
    from orthora.measure.command import run_measure

    run_measure(arguments)


def _figure(arguments: list[str]) -> None:
    """Draw a figure or a table from runs."""
    from orthora.figures.command import run_figure

    run_figure(arguments)


def _study(arguments: list[str]) -> None:
    """Run a study, or report on it."""
    quiet_libraries()
    from orthora.study.command import run_command

    run_command(arguments)


def _export(arguments: list[str]) -> None:
    """Write a run's adapter as plain PEFT, merged, or as a residual base with rank r."""
    options = parse(_ExportOptions, arguments, "export")
    quiet_libraries()
    from orthora.adapters import export_plain
    from orthora.exports import export_merged, export_residual

    if options.dtype and options.form != "merged":
        raise ValueError("--dtype goes with --form merged: adapters are written in float32")
    if options.form == "merged":
        print(export_merged(options.run, options.out, dtype=options.dtype))
    else:
        write = export_plain if options.form == "plain" else export_residual
        print(write(options.run, options.out))


def _demo(arguments: list[str]) -> None:
    """Compare five initialisations on the embedded model."""
    options = parse(_DemoOptions, arguments, "demo")
    quiet_libraries()
    from orthora.demo import demo

    demo(
        options.out,
        steps=options.steps,
        eval_problems=options.eval_problems,
        seed=options.seed,
        jobs=options.jobs,
    )


def _report(arguments: list[str]) -> None:
    """Table and page of a folder of runs."""
    options = parse(_ReportOptions, arguments, "report")
    from orthora.evaluations import load_evaluations
    from orthora.report import load_runs, print_table, write_report

    print_table(load_runs(options.runs), load_evaluations(options.runs))
    page = write_report(options.runs, options.runs / "report.html", title=options.title)
    print(page)


def _contamination(arguments: list[str]) -> None:
    """Look for an evaluation set's problems in a training set."""
    from orthora.tasks.command import contamination

    contamination(arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "methods": _methods,
    "init": _init,
    "train": _train,
    "probe": _probe,
    "theory": _theory,
    "eval": _eval,
    "rescore": _rescore,
    "compare": _compare,
    "contamination": _contamination,
    "measure": _measure,
    "figure": _figure,
    "export": _export,
    "study": _study,
    "demo": _demo,
    "report": _report,
}
"""By name, as `orthora.cli` lists them."""
