"""``orthora study run`` and ``orthora study report``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from orthora.runs import join_names, rate_text
from orthora.study.arms import arms_of, check_claims
from orthora.study.cost import cost_of
from orthora.study.folder import check_needs, check_owner, reusable, works
from orthora.study.plan import Cell, plan
from orthora.study.spec import StudySpec, load_study
from orthora.study.view import duration, states

HELP = """orthora study run FILE [--jobs N] [--ray ADDRESS] [--dry-run]   do a study's runs
orthora study report FILE                                       tables, figures, verdicts, page

A study is a TOML file: a base config, a grid, evaluations, claims; see docs/studies.md."""


@dataclass(frozen=True)
class RunOptions:
    """Do all runs of a study that are not done, and keep how each ended.

    The same command goes on after any interruption, with more or fewer processes, or elsewhere.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The study."""
    dry_run: bool = False
    """Print the plan and what it would cost, and begin nothing."""
    jobs: int = 0
    """Runs at a time on this machine; 0 takes as many as its cores or GPUs allow."""
    ray: str | None = None
    """Address of a Ray cluster to run on: HOST:PORT, ray://HOST:PORT or auto. Its nodes share this
    file system and have orthora."""
    retry_failed: bool = False
    """Try runs again that failed, but for those that training itself ended."""
    limit: int = 0
    """Runs to do now, at most; 0 does all."""


@dataclass(frozen=True)
class ReportOptions:
    """Compare what a study has found so far, judge its claims, and write its page."""

    file: Annotated[Path, tyro.conf.Positional]
    """The study."""
    out: Path | None = None
    """Folder to write to; left out, report in the study's folder."""
    table: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """The results.csv of an earlier report, to read instead of the runs: all but training curves
    and costs is made anew from it, in --out. Given again: tables, of other studies too, out of
    which cells are filled in that the first has not."""


def run_command(arguments: Sequence[str]) -> None:
    """Carry out ``orthora study``.

    Args:
        arguments: of the command line, without ``study``.

    Raises:
        ValueError: naming what is wrong, and the remedy.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    what, *rest = arguments
    if what == "run":
        _run(tyro.cli(RunOptions, args=rest, prog="orthora study run"))
    elif what == "report":
        _report(tyro.cli(ReportOptions, args=rest, prog="orthora study report"))
    else:
        raise ValueError(f"{what!r} is neither run nor report; see orthora study --help")


def _run(options: RunOptions) -> None:
    spec = load_study(options.file)
    for name, value in (("jobs", options.jobs), ("limit", options.limit)):
        if value < 0:
            raise ValueError(f"--{name} {value} must be at least 0")
    if options.dry_run:
        show_plan(spec)
        return
    if options.ray and options.jobs:
        raise ValueError("--jobs is for this machine; a Ray cluster knows how many it holds")
    from orthora.study.run import run_study

    outcome = run_study(
        spec,
        jobs=options.jobs,
        ray=options.ray,
        retry_failed=options.retry_failed,
        limit=options.limit,
    )
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}")
    for line in outcome.unlike:
        print(line)
    print(f"{spec.folder}: see orthora study report {options.file}")
    if faults := [name for name in outcome.failed if name not in outcome.by_training]:
        raise ValueError(
            f"{len(faults)} cells failed, e.g. {faults[0]}: {outcome.failed[faults[0]]}; "
            "--retry-failed tries them again"
        )


def show_plan(spec: StudySpec) -> list[Cell]:
    """Print what a study would do; its cells."""
    from rich.console import Console
    from rich.table import Table

    cells = plan(spec, starting=True)
    check_claims(spec, cells)
    check_owner(spec)
    arms = arms_of(spec, cells)
    found = works(spec, cells)
    by_arm: dict[str, list[Cell]] = {}
    for cell in cells:
        by_arm.setdefault(arms[cell.name].label, []).append(cell)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 140))
    table = Table("arm", "cells", "learning rates", "seeds", title=f"study {spec.name}",
                  title_justify="left")  # fmt: skip
    for label, own in by_arm.items():
        rates = ", ".join(rate_text(rate) for rate in sorted({cell.rate for cell in own}))
        seeds = ", ".join(map(str, sorted({cell.seed for cell in own})))
        table.add_row(label, str(len(own)), rates, seeds if len(seeds) < 30 else f"{seeds[:27]}...")
    console.print(table)
    _print_rest(spec, cells, found)
    return cells


def _print_rest(spec: StudySpec, cells: Sequence[Cell], found: Sequence[Any]) -> None:
    """What a table of arms does not say."""
    from orthora.methods import compose

    print(f"methods may differ in: {', '.join(spec.differences) or 'nothing'}")
    for method in dict.fromkeys(cell.method for cell in cells):
        if says := compose(method).overrides:
            print(f"{method} does not take {says}")
    for one in spec.exclude:
        print(f"left out: {one['reason']}")
    print(f"evaluations of every run: {', '.join(spec.evaluations) or 'its own'}")
    ended: Counter[str] = states([work for work in found if work.cell])
    done = ", ".join(f"{count} {state}" for state, count in ended.items()) or "none has ended"
    print(f"{len(cells)} cells in {spec.folder}: {done}")
    if taken := reusable(spec, found):
        print(f"{len(taken)} of them are taken from {join_names(spec.reuse)}")
    try:
        check_needs(spec, cells)
    except ValueError as error:
        print(f"to run it here, one thing at least is missing: {error}")
    cost = cost_of(spec, cells, found)
    print(
        f"training draws {cost.responses:,} responses (dynamic sampling: more), "
        f"{cost.tokens:,} tokens at most"
    )
    scored = cost.evaluation_tokens
    most = "as many tokens as the data ask for" if scored is None else f"{scored:,} tokens at most"
    print(f"evaluations draw {most}")
    flops = "unknown; give parameters" if cost.flops is None else f"{cost.flops:.2g}"
    print(f"floating-point operations of training at full length: {flops}")
    seconds = "" if cost.seconds is None else f"{duration(cost.seconds)} of one cell at a time, "
    print(f"time: {seconds}{cost.basis}")


def _report(options: ReportOptions) -> None:
    spec = load_study(options.file)
    check_claims(spec, plan(spec))
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from orthora.study.report import report_study
    from orthora.study.tables import best_rates

    made = report_study(spec, options.out, table=options.table)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    shown = best_rates(made.comparisons)
    table = Table(*shown.head, title=shown.title, title_justify="left")
    for row in shown.rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for line in made.results.unlike:
        print(line)
    for one in made.verdicts:
        print(f"{one.ruling}: {one.claim.says}")
    print(made.page)
