"""Benchmark of adapter starts: ``make bench-init``.

Prints tables, writes them as JSON, one file per kind of CPU, and renders README's tables from these
files. Speed is a ratio to the better full SVD, measured in the same run: contenders alternate,
process CPU time, medians.

    python bench/init.py [--quick] [--only matrices model scaling gpu] [--json FILE]
    python bench/init.py --readme README.md     # render README's tables from the JSON files
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # scipy's: its idle threads spin in our time

import gpu
import matrices
import scaling
import torch
import whole_model
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- bench-init -->", "<!-- /bench-init -->"
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few cases, one round: minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--sizes", nargs="+", choices=("1.5B", "7B"), help="of single matrices")
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 32, 64])
    default = RESULTS / f"{slug(cpu_name())}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the numbers go")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="of checkpoints")
    parser.add_argument("--readme", type=Path, help="render its tables from all results and stop")
    options = parser.parse_args()
    if options.readme:
        return render_into(options.readme)
    found = json.loads(options.json.read_text()) if options.json.is_file() else {}
    for name in options.only:
        found[name] = {"machine": machine(), "rows": SECTIONS[name](options)}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")  # a later crash loses nothing
        show(name, found[name]["rows"])
    print(f"\n{options.json}")
    return 0


SECTIONS = {
    "matrices": lambda options: matrices.run(
        options.sizes or (["1.5B"] if options.quick else ["1.5B", "7B"]),
        options.ranks,
        quick=options.quick,
    ),
    "model": lambda options: whole_model.run(options.folder, quick=options.quick),
    "scaling": lambda options: (
        scaling.width(quick=options.quick) + scaling.parameters(options.folder, quick=options.quick)
    ),
    "gpu": lambda options: gpu.run(),
}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "bf16_units": bf16_units(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
        "commit": commit(),
    }


def commit() -> str | None:
    """Short hash of this checkout, with a mark if it was changed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    family, model = (
        next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "?")
        for key in ("cpu family", "model\t")
    )
    return f"{name} (family {family}, model {model})"


def bf16_units() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    return "amx" if "amx_bf16" in flags else "avx512" if "avx512_bf16" in flags else "none"


def show(name: str, rows: list[Row]) -> None:
    """One table on stdout."""
    if not rows:
        print(f"{name}: nothing was measured (no GPU here?)")
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(text(row.get(key)) for key in columns))
    Console(width=max(160, 12 * len(columns))).print(table)


def text(value: Any) -> str:
    """A number with three digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return str(value)


def render_into(readme: Path) -> int:
    """Replace what stands between the marks in a README by the tables of all results."""
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{markdown(all_results())}\n{END}{after}")
    return 0


def all_results() -> list[dict[str, Any]]:
    """Every file of results, the newest first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda one: one["matrices"]["machine"]["time"], reverse=True)


def markdown(results: list[dict[str, Any]]) -> str:
    """README's tables for each machine: single matrices at r = 32, and the whole model."""
    return "\n\n".join("\n".join([where(one), "", *tables(one)]) for one in results)


def where(found: dict[str, Any]) -> str:
    machine = found["matrices"]["machine"]
    return (
        f"**{machine['cpu']}**, {machine['cores']} cores, bfloat16 units: {machine['bf16_units']}; "
        f"torch {machine['torch']}, {machine['time'][:10]}:"
    )


def tables(found: dict[str, Any]) -> list[str]:
    rows = [row for row in found["matrices"]["rows"] if row["threads"] == 1]
    of = {(row["case"], *row["shape"], row["end"]): row for row in rows if is_ours(row)}
    shapes = list(dict.fromkeys(key[1:3] for key in of))
    lines = [
        "| weight (out x in) | top: llm, mp, spiky | bottom: llm, mp, spiky | energy error "
        "| times the floor |",
        "| --- | --- | --- | --- | --- |",
    ]
    for shape in shapes:
        these = {end: [of[kind, *shape, end] for kind in KINDS] for end in ENDS}
        ratios = [", ".join(f"{row['ratio']:.1f}" for row in these[end]) for end in ENDS]
        errors = [max(max(row["energy_error"], 0.0) for row in these[end]) for end in ENDS]
        floors = [max(row["floors"] for row in these[end]) for end in ENDS]
        lines.append(
            f"| {shape[0]} x {shape[1]} | {ratios[0]} | {ratios[1]} "
            f"| {errors[0]:.0e} / {errors[1]:.0e} | {floors[0]:.1f} / {floors[1]:.1f} |"
        )
    lines += ["", "| whole 1.5B checkpoint, r = 16 | wall | peak memory | times faster |"]
    lines += ["| --- | --- | --- | --- |"]
    for row in found["model"]["rows"]:
        lines.append(
            f"| {row['method']} | {row['wall_s']:.1f} s | {row['peak_mb'] / 1024:.2f} GB | "
            f"{row['ratio']:.1f} |"
        )
    return lines


KINDS, ENDS = ("llm", "mp", "spiky"), ("top", "bottom")


def is_ours(row: Row) -> bool:
    return row["method"] == "orthora" and row["rank"] == 32 and row["case"] in KINDS


if __name__ == "__main__":
    sys.exit(main())
