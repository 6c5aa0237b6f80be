"""A whole model's start on a GPU, beside the source paper's Table 7 (A100, r = 32, bf16)."""

import time
from typing import Any

import torch
import weights

from orthora.adapters import starts

_TABLE_7 = {"4B": (1.8, 8.3), "7B": (3.5, 16.0), "14B": (12.3, 29.8)}  # minutes, GiB


def run(rank: int = 32) -> list[dict[str, Any]]:
    """Minutes and peak memory for the shapes of 4B, 7B and 14B; empty where there is no GPU."""
    if not torch.cuda.is_available():
        return []
    rows = []
    for size, (minutes, gib) in _TABLE_7.items():
        layers = weights.SHAPES[size]["layers"]
        items = [shape for shape in weights.shapes(size).values() for _ in range(layers)]
        for method in ("rlpo", "rlmo"):
            torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            _start(items, method, rank)
            torch.cuda.synchronize()
            rows.append(
                {
                    "model": size,
                    "method": method,
                    "rank": rank,
                    "minutes": (time.perf_counter() - begun) / 60,
                    "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                    "table_7_minutes": minutes,
                    "table_7_gib": gib,
                    "device": torch.cuda.get_device_name(),
                }
            )
    return rows


def _start(items: list[tuple[int, int]], method: str, rank: int) -> None:
    """All weights, drawn on the GPU, in batches of equal shapes."""
    how = starts.How(method, 2.0, 0)
    cards: dict[tuple[int, int], torch.Tensor] = {}

    def load(shape: tuple[int, int]) -> torch.Tensor:
        if shape not in cards:
            cards.clear()
            cards[shape] = weights.weight(*shape, "llm").cuda()
        return cards[shape].clone()

    def start(W: torch.Tensor, shape: tuple[int, int]) -> starts.Start:
        return starts.compute(W, str(shape), rank, how)

    order = sorted(items)
    for _ in starts.compute_in_batches(order, load, start, shape=lambda s: s, method=method):
        pass
