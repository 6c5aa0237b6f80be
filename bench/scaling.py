"""How the cost grows: with the width of a square weight, and with the number of parameters."""

import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import matrices
import torch
import weights
import whole_model


def width(*, quick: bool) -> list[dict[str, Any]]:
    """CPU seconds of one thread on square ``llm`` weights, r = 32."""
    torch.set_num_threads(1)
    rows = []
    for k in (768, 1024) if quick else (768, 1024, 1536, 2048, 3072, 4096):
        W = weights.weight(k, k, "llm").float()
        clock = matrices.Clock(1)
        for _ in range(1 if quick else 3):
            for end in ("top", "bottom"):
                clock.time(end, partial(contenders.ours, W, end, 32))
        clock.time("svd", partial(contenders.svd, W, "top", 32, tall=True))
        rows.append({"width": k} | {f"{key}_s": clock.cpu(key) for key in ("top", "bottom", "svd")})
        print(f"width {k}", file=sys.stderr, flush=True)
    for key in ("top_s", "bottom_s", "svd_s"):
        rows[-1][f"exponent_{key}"] = _exponent([(row["width"], row[key]) for row in rows])
    return rows


def parameters(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Wall seconds and peak memory of ``orthora init`` on checkpoints of more and more layers."""
    rows = []
    for layers in (1, 2) if quick else (4, 8, 16, 28):
        name = folder / f"qwen2-1.5B-{layers}-layers"
        model = weights.write_checkpoint(name, "1.5B", None if layers == 28 else layers)
        size = layers * sum(m * n for m, n in weights.shapes("1.5B").values())
        with tempfile.TemporaryDirectory() as scratch:
            command = whole_model.commands(model, Path(scratch) / "out", 16)
            run = whole_model.run_one(command["orthora init --method rlpo"])
        rows.append({"layers": layers, "parameters": size} | run)
        print(f"{layers} layers", file=sys.stderr, flush=True)
    return rows


def _exponent(points: list[tuple[float, float]]) -> float:
    """Slope of the least-squares line through the logarithms."""
    x = [math.log(a) for a, _ in points]
    y = [math.log(b) for _, b in points]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return over / sum((a - mx) ** 2 for a in x)
