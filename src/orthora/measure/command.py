"""``orthora measure`` as people see it: progress, and what the last step of each run looks like."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from orthora.bar import Bar
from orthora.measure.run import Measured, measure
from orthora.measure.weights import Options
from orthora.table import BASE, read_table

_SHOWN = (  # quantity, heading
    ("update_relative", "|dW|/|W|"),
    ("stable_rank", "rank"),
    ("head_energy", "head"),
    ("chance_energy", "chance"),
    ("changed", "changed"),
)


@dataclass(frozen=True)
class _Options:
    """Measure what training did to the weights: one tidy table from runs, adapters and models.

    PATHS are run folders, folders of runs, PEFT adapters, checkpoints, or fully fine-tuned models,
    of one base. The base's weights are read one by one, once for all of them; the model is never
    loaded. Run the same command again to go on after an interruption.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs, adapters, checkpoints or models."""
    model: str | None = None
    """The base: folder, hub name or tiny; by default what the runs or adapters say."""
    out: Path | None = None
    """.parquet or .csv; by default geometry.parquet in the run, or in the folder of the runs."""
    head: int = 16
    """Dimension of the leading and last subspaces, and rank of M_princ's reconstruction."""
    mask_share: float = 0.3
    """Share of the entries in M_princ and in M_low."""
    exact: bool = False
    """All singular values after the update also of weights whose short side is above 512, where
    the spectral shift is else bounded; several times the time."""
    last: bool = False
    """The last moment of each run alone."""
    any_base: bool = False
    """Accept a base of another name than a run records."""
    workers: int | None = None
    """Weights side by side, one thread each; None takes one per core, as far as memory goes."""


def run_measure(arguments: list[str]) -> None:
    """Measure, with a progress bar on stderr, and print a summary.

    Raises:
        ValueError: as `orthora.measure.measure`.
    """
    options = tyro.cli(_Options, args=arguments, prog="orthora measure")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers must be at least 1, got {options.workers}")
    with Bar() as bar:
        found = measure(
            options.paths,
            model=options.model,
            out=options.out,
            options=Options(options.head, options.mask_share, options.exact),
            last=options.last,
            any_base=options.any_base,
            workers=options.workers,
            report=bar,
        )
    for note in found.notes:
        print(note, file=sys.stderr)
    table = read_table(found.out)
    Console().print(summary(table))
    print(told(found, len(table)))


def told(found: Measured, rows: int) -> str:
    """One line: the table, and how much is in it."""
    resumed = f", {found.resumed} of them earlier" if found.resumed else ""
    return f"{found.out}: {found.weights} weights{resumed}, {len(found.subjects)} runs, {rows} rows"


def summary(table: pd.DataFrame) -> Table:
    """The last step of every run in a few numbers, over its weights."""
    shown = Table(
        "run",
        "step",
        "|dW|",
        *(heading for _, heading in _SHOWN),
        "NSS",
        "angle",
        title="Last step of each run",
        title_justify="left",
        caption="|dW| of all weights together, angle the largest of any weight in degrees, all "
        "else medians over weights: stable rank of dW, its share in W's head and what chance would "
        "put there, entries changed in bfloat16, normalised spectral shift or its bounds",
        caption_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    known = table["run"].tolist()
    for run in dict.fromkeys(known):
        if run == BASE:
            continue
        rows = table.loc[table["run"] == run]
        step = int(rows["step"].max())
        last = rows.loc[rows["step"] == step]
        norm = float((_values(last, "update_norm") ** 2).sum() ** 0.5)
        angle = _values(last, "angle_right")
        shown.add_row(
            run,
            str(step) if step >= 0 else "",
            f"{norm:.2g}",
            *(_median(last, quantity) for quantity, _ in _SHOWN),
            _shift(last),
            f"{float(angle.max()):.2g}",
        )
    return shown


def _shift(rows: pd.DataFrame) -> str:
    """The spectral shift where every weight's is known, else its bounds."""
    if len(_values(rows, "nss")) == len(_values(rows, "nss_low")):
        return _median(rows, "nss")
    return f"{_median(rows, 'nss_low')} to {_median(rows, 'nss_high')}"


def _median(rows: pd.DataFrame, quantity: str) -> str:
    return f"{float(_values(rows, quantity).median()):.2g}"


def _values(rows: pd.DataFrame, quantity: str) -> pd.Series:
    found = rows.loc[rows["quantity"] == quantity, "value"]
    assert isinstance(found, pd.Series), "one column"
    return found
