"""``orthora measure`` of five adapters against one full SVD pass: ``python bench/measure.py``.

A checkpoint of 1.5B shapes, five rank-16 adapters (two in the plain rank-32 form of anchored
methods). The baseline reads the same weights one by one and decomposes each by LAPACK in float32,
in the tall orientation, which is the faster one. Both run in processes of their own with one
thread, alternating; CPU seconds, medians of the turns, peak resident memory.

    python bench/measure.py [--quick] [--turns 3] [--layers 28]
    python bench/measure.py --docs docs/measure.md     # render its table from the JSON files
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import weights
from init import machine, show, slug
from safetensors.torch import load_file, save_file
from whole_model import run_one

from orthora.adapters import init_adapter

HERE = Path(__file__).parent
RESULTS = HERE / "results-measure"
BEGIN, END = "<!-- bench-measure -->", "<!-- /bench-measure -->"
RANKS = (16, 16, 16, 32, 32)

_SVD = """
import sys, torch
from orthora.adapters.saved import Layouts
from orthora.checkpoint import open_checkpoint
torch.set_num_threads(1)
checkpoint = open_checkpoint(sys.argv[1])
for source in Layouts(checkpoint).linear().values():
    W = source.read(checkpoint).float()
    torch.linalg.svd(W if W.shape[0] >= W.shape[1] else W.mT.contiguous(), full_matrices=False)
"""


def adapters(model: Path, folder: Path) -> list[Path]:
    """Five adapters with updates of the size that training leaves."""
    made = []
    for number, rank in enumerate(RANKS):
        out = folder / f"adapter-{number}"
        made.append(out)
        if (out / "moved").is_file():
            continue
        shutil.rmtree(out, ignore_errors=True)
        init_adapter(str(model), "lora", out=out, rank=rank, alpha=2 * rank, seed=number)
        file = out / "adapter_model.safetensors"
        tensors = load_file(file)
        generator = torch.Generator().manual_seed(number)
        for name, value in tensors.items():
            if "lora_B" in name:
                value.normal_(0, 1e-3, generator=generator)
        save_file(tensors, file, metadata={"format": "pt"})
        (out / "moved").touch()
    return made


def run(folder: Path, layers: int, turns: int) -> list[dict[str, Any]]:
    """Both contenders, alternating."""
    model = weights.write_checkpoint(folder / f"qwen2-1.5B-{layers}-layers", "1.5B", layers)
    five = [str(path) for path in adapters(model, folder / f"measure-{layers}-layers")]
    runs: dict[str, list[dict[str, float]]] = {}
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as scratch:
            out = str(Path(scratch) / "geometry.parquet")
            ours = [sys.executable, "-m", "orthora", "measure", *five, "--model", str(model)]
            contenders = {
                "orthora measure, 5 adapters": [*ours, "--out", out, "--workers", "1"],
                "one SVD pass, float32": [sys.executable, "-c", _SVD, str(model)],
            }
            for name, command in contenders.items():
                print(f"{name}, turn {turn + 1}", file=sys.stderr, flush=True)
                runs.setdefault(name, []).append(run_one(command))
    rows = []
    for name, these in runs.items():
        row = {key: statistics.median(one[key] for one in these) for key in these[0]}
        row["peak_mb"] = max(one["peak_mb"] for one in these)
        rows.append({"what": name, "layers": layers, "turns": turns, **row})
    slowest = rows[1]["cpu_s"]
    for row in rows:
        row["svd_over_it"] = slowest / row["cpu_s"]
    return rows


def markdown() -> str:
    """All results as one table."""
    lines = [
        "| CPU, torch, date | layers | what | CPU seconds | peak memory | SVD pass over it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text())
        about = found["machine"]
        where = f"{about['cpu']}, {about['torch']}, {about['time'][:10]}"
        for row in found["rows"]:
            lines.append(
                f"| {where} | {row['layers']} | {row['what']} | {row['cpu_s']:.0f} | "
                f"{row['peak_mb'] / 1024:.2f} GB | {row['svd_over_it']:.2f} |"
            )
            where = ""
    return "\n".join(lines)


def render_into(page: Path) -> int:
    """Put the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{after}", encoding="utf-8")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two layers, one turn")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="of checkpoints")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--docs", type=Path, help="render its table from all results and stop")
    options = parser.parse_args()
    if options.docs:
        return render_into(options.docs)
    layers, turns = (2, 1) if options.quick else (options.layers, options.turns)
    about = machine()
    out = options.json or RESULTS / f"{slug(about['cpu'])}-{layers}-layers.json"
    rows = run(options.folder, layers, turns)
    show("measure", rows)
    if not options.quick:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
        print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
