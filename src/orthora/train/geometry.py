"""What a training step did to the weights, read off the factors: cheap enough to stay on."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthora.adapters import Product, has_products, products_of
from orthora.adapters.products import factors_of
from orthora.config import TrainConfig
from orthora.linalg import top_subspace
from orthora.train.measure import module_type


class Geometry:
    """Norms of updates, where they point, and the condition of the factors.

    For structures whose update is no product of factors (DoRA, AdaLoRA, VeRA, MiSS, (IA)^3, full)
    there is nothing to read cheaply, and no metric.

    Args:
        model: from `orthora.adapt`, before training.
        config: says the dimension of the head subspace, the top right singular vectors of each
            weight.
    """

    def __init__(self, model: Any, config: TrainConfig) -> None:
        head_rank = config.rank if config.head_rank is None else config.head_rank
        self._model = model if has_products(model) else None
        self._heads: list[Tensor] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._first: float | None = None
        if self._model is not None and head_rank:
            for product in products_of(self._model):
                W = product.slot.weight().float()
                self._heads.append(top_subspace(W, min(head_rank, *W.shape)).V.to(W))

    def begin(self) -> None:
        """Before a step's updates."""
        if self._model is not None:
            self._before, self._first = factors_of(self._model), None

    def after_update(self) -> None:
        """After an optimizer update; the step's first one is measured apart (Theorem 4.1)."""
        if self._model is not None and self._first is None:
            self._first = math.hypot(*(p.norm() for p in products_of(self._model, self._before)))

    def metrics(self) -> dict[str, float | None]:
        """After a step's updates.

        ``update_norm``: ``|W_t - W_(t-1)|_F`` over all adapted weights, and by module type;
        ``first_update_norm``: the same of the step's first optimizer update;
        ``delta_norm``: ``|W_t - W_0|_F``; ``head_energy``: share of ``|W_t - W_0|_F^2`` whose
        inputs lie in the head subspace; ``stable_rank``: mean over weights of ``|dW|_F^2/|dW|_2^2``
        of ``W_t - W_0``; ``condition``: largest ratio of singular values of any A.
        """
        if self._model is None:
            return {}
        steps = products_of(self._model, self._before)
        row: dict[str, float | None] = dict(_by_type(steps))
        whole = products_of(self._model)
        squares = [p.norm() ** 2 for p in whole]
        row["first_update_norm"] = self._first
        row["delta_norm"] = math.sqrt(sum(squares))
        if self._heads:
            energies = [p.energy_in(V) for p, V in zip(whole, self._heads, strict=True)]
            weighted = sum(e * s for e, s in zip(energies, squares, strict=True))
            row["head_energy"] = weighted / sum(squares) if sum(squares) else None
        largest = [p.spectral_norm() ** 2 for p in whole]
        ranks = [s / top for s, top in zip(squares, largest, strict=True) if top]
        row["stable_rank"] = sum(ranks) / len(ranks) if ranks else None
        row["condition"] = max(map(_condition, whole))
        return row


def _by_type(steps: Sequence[Product]) -> dict[str, float]:
    squares: dict[str, float] = defaultdict(float)
    for step in steps:
        squares[module_type(f"{step.slot.name}.lora_A")] += step.norm() ** 2
    found = {f"update_norm/{kind}": math.sqrt(value) for kind, value in sorted(squares.items())}
    return {"update_norm": math.sqrt(sum(squares.values()))} | found


def _condition(product: Product) -> float:
    A = product.slot.factors()[0].double().cpu()
    gram = A @ A.mT
    if not gram.isfinite().all():  # LAPACK would fail, and the run with it
        return math.nan
    values = torch.linalg.eigvalsh(gram)
    return float((values[-1] / values[0].clamp_min(1e-300)).sqrt())
