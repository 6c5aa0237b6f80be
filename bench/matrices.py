"""One matrix at a time: time, accuracy and memory of each contender."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import contenders
import torch
import weights
from torch import Tensor

from orthora.checkpoint import open_checkpoint
from orthora.linalg.gram import gram

Row = dict[str, Any]
SVD, SVD_AS_PEFT = "SVD", "SVD as PEFT calls it"


class Clock:
    """Medians of alternating runs: process CPU seconds, wall seconds, peak memory."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.runs: dict[Any, list[tuple[float, float]]] = {}
        self.peak: dict[Any, float] = {}

    def time(self, key: Any, function: Callable[[], Any]) -> Any:
        """Run once, note the times and the peak of memory, hand back the result."""
        base = _reset_peak()
        cpu, wall = time.process_time(), time.perf_counter()
        value = function()
        run = time.process_time() - cpu, time.perf_counter() - wall
        self.runs.setdefault(key, []).append(run)
        self.peak[key] = max(self.peak.get(key, 0.0), _peak() - base)
        return value

    def cpu(self, key: Any) -> float:
        """Median CPU seconds of the process."""
        return statistics.median(cpu for cpu, _ in self.runs[key])

    def wall(self, key: Any) -> float:
        """Median wall seconds."""
        return statistics.median(wall for _, wall in self.runs[key])


def measure(
    W: Tensor, label: str, ranks: Iterable[int], *, repeats: int, threads: int, wide: bool
) -> list[Row]:
    """All contenders on one bfloat16 matrix.

    Args:
        W: (m, n) bfloat16.
        label: of the rows.
        ranks: to measure.
        repeats: alternating rounds; the median counts.
        threads: of BLAS.
        wide: also time the SVD of a wide matrix as PEFT calls it, several times slower.
    """
    torch.set_num_threads(threads)
    W = W.float()
    ends = ("top", "bottom")
    truth = _Truth(W)
    clock = Clock(threads)
    found: dict[Any, Tensor | None] = {}
    for _ in range(repeats):
        V = clock.time(SVD, lambda: contenders.svd(W, "top", W.shape[1], tall=True))
        if wide and W.shape[0] < W.shape[1]:
            clock.time(SVD_AS_PEFT, lambda: contenders.svd(W, "top", 1, tall=False))
        clock.time("floor", lambda: _floor(W))
        for rank in ranks:
            for end in ends:
                found[SVD, end, rank] = V[:, :rank] if end == "top" else V[:, -rank:]
                for name, function in contenders.contenders(W, end, rank).items():
                    found[name, end, rank] = clock.time((name, end, rank), function)
    del V
    common = {"case": label, "shape": list(W.shape), "threads": threads, "repeats": repeats}
    rows = []
    for (name, end, rank), V in found.items():
        key = SVD if name == SVD else (name, end, rank)
        times = {
            "method": name,
            "end": end,
            "rank": rank,
            "cpu_s": clock.cpu(key),
            "wall_s": clock.wall(key),
            "ratio": clock.cpu(SVD) / clock.cpu(key),
            "floors": clock.cpu(key) / clock.cpu("floor"),
            "peak_mb": clock.peak[key],
        }
        rows.append(common | times | truth.errors(V, end, rank))
    if SVD_AS_PEFT in clock.runs:
        cpu = clock.cpu(SVD_AS_PEFT)
        rows.append(
            common
            | {"method": SVD_AS_PEFT, "end": "top", "rank": 0, "cpu_s": cpu}
            | {"ratio": clock.cpu(SVD) / cpu}
        )
    return rows


class _Truth:
    """The float64 eigendecomposition of the short side's Gram matrix."""

    def __init__(self, W: Tensor) -> None:
        self.wide = W.shape[0] < W.shape[1]
        self.X = W.double()
        A = self.X.mT if self.wide else self.X
        values, self.P = torch.linalg.eigh(A.mT @ A)
        self.values = values.clamp_min(0.0)

    def errors(self, V: Tensor | None, end: str, rank: int) -> Row:
        """Sine of the largest angle, relative energy error, orthonormality, gap."""
        if V is None:
            return {}
        V = V.double()
        norms = V.norm(dim=0)  # PEFT's A carries singular values
        V = V / norms if bool((norms > 2).any()) else V
        Q = torch.linalg.qr(V)[0]
        pick = slice(-rank, None) if end == "top" else slice(0, rank)
        P = self.P[:, pick]
        if self.wide:  # the right vectors that belong to the left ones
            P = torch.linalg.qr(self.X.mT @ P)[0]
        energy = float(self.values[pick].sum())
        held = float((self.X @ Q).square().sum())
        error = (energy - held) / energy if end == "top" else (held - energy) / energy
        inside, outside = (-rank, -rank - 1) if end == "top" else (rank - 1, rank)
        sigma = self.values.sqrt()
        gap = abs(float(sigma[inside] - sigma[outside])) / float(sigma[inside])
        eye = torch.eye(rank, dtype=torch.float64)
        return {
            "sine": float(torch.linalg.matrix_norm(Q - P @ (P.mT @ Q), ord=2)),
            "energy_error": error,
            "orthonormality": float((V.mT @ V - eye).abs().max()),
            "relative_gap": gap,
        }


def _floor(W: Tensor) -> None:
    """What no algorithm of this kind can avoid: one LU of a square, one Gram matrix of others."""
    if W.shape[0] == W.shape[1]:
        torch.linalg.lu_factor_ex(W.mT)
    else:
        gram(W if W.shape[0] > W.shape[1] else W.mT, bf16=True)


def embedded(ranks: Iterable[int], *, repeats: int, threads: int) -> list[Row]:
    """The trained matrices of the embedded model, summed over its layers: sides of 128 to 384."""
    checkpoint = open_checkpoint("tiny")
    rows: list[Row] = []
    names = [n for n, info in checkpoint.tensors.items() if "layers" in n and len(info.shape) == 2]
    for name in names:
        W = checkpoint.read(name).bfloat16()
        rows += measure(W, "embedded", ranks, repeats=repeats, threads=threads, wide=False)
    return [_summed(rows, *key) for key in dict.fromkeys(_key(row) for row in rows)]


def _key(row: Row) -> tuple[str, str, int]:
    return row["method"], row["end"], row["rank"]


def _summed(rows: list[Row], method: str, end: str, rank: int) -> Row:
    """One row for all matrices: times added, errors at their worst."""
    these = [row for row in rows if _key(row) == (method, end, rank)]
    svd = [row for row in rows if _key(row) == (SVD, end, rank)]
    total = {key: sum(row[key] for row in these) for key in ("cpu_s", "wall_s")}
    clear = [row["sine"] for row in these if row["relative_gap"] >= 1e-3]
    worst = {key: max(row[key] for row in these) for key in ("energy_error", "orthonormality")}
    return (
        these[0]
        | {"shape": [len(these)], "floors": None}
        | total
        | worst
        | {"sine": max(clear, default=None), "ratio": sum(r["cpu_s"] for r in svd) / total["cpu_s"]}
    )


def _reset_peak() -> float:
    """Start a new peak of resident memory; MB resident now. Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def run(sizes: Iterable[str], ranks: list[int], *, quick: bool) -> list[Row]:
    """The cases of the table, for the shapes of these model sizes."""
    rows: list[Row] = []
    repeats = 1 if quick else 3
    shapes = [(size, shape) for size in sizes for shape in _distinct(size)]
    cases = [(*case, 1) for case in shapes if case != ("7B", (3584, 18944))]
    if not quick:
        cases += [(*case, 2) for case in shapes if case[0] == "1.5B"]
    for size, (m, n), threads in cases:
        for kind in ("llm",) if quick or threads == 2 else weights.KINDS:
            all_ranks = kind == "llm" and size == "1.5B" and threads == 1 and not quick
            these = ranks if all_ranks else [32]
            print(f"{size} {m} x {n} {kind}, {threads} thread(s)", file=sys.stderr, flush=True)
            W = weights.weight(m, n, kind)
            wide = size == "1.5B"
            rows += measure(W, kind, these, repeats=repeats, threads=threads, wide=wide)
    return rows + embedded([16], repeats=repeats, threads=1)


def _distinct(size: str) -> list[tuple[int, int]]:
    return list(dict.fromkeys(weights.shapes(size).values()))
