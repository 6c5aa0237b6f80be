"""The statements, one by one, on the layers of a model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orthora.linalg.theory import (
    Step,
    adam_moves,
    factor_gradients,
    first_step,
    first_update_bound,
    gap_factor,
    norm_bound,
    sign_update_bound,
    smallest_carried,
)
from orthora.train.theory_findings import Finding, Kind
from orthora.train.theory_policy import Policy
from orthora.train.theory_steps import ADAMW, DESCENT, EPS, Start, Travel
from orthora.types import Factors

PARTNERS = {"pissa": "rlpo", "olora": "rlpo", "milora": "rlmo", "olora-tail": "rlmo"}
"""Methods with B0 != 0, and the method with B0 = 0 that starts from the same directions."""

_LEMMA = 1e-4  # relative error that float32 training may leave
_STATED = ("pissa", "milora")  # what Theorem 4.1 is about


@dataclass(frozen=True)
class Scene:
    """What all methods share.

    Attributes:
        policy: of the mini-batch.
        layers: names of the adapted weights.
        gradients: G of every layer (m, n) at the base.
        rates: learning rate by optimizer.
        updates: T.
        full: where full fine-tuning came in T updates, by optimizer.
    """

    policy: Policy
    layers: list[str]
    gradients: list[Tensor]
    rates: dict[str, float]
    updates: int
    full: dict[str, Travel]

    def step(self, start: Start, layer: int, optimizer: str) -> Step:
        """A method's first update of one layer."""
        A, B = start.factors[layer]
        moves = factor_gradients(self.gradients[layer], A, B, start.scale)
        moves = adam_moves(moves, EPS) if optimizer == ADAMW else moves
        return first_step(A, B, moves, start.scale, self.rates[optimizer])


def lemma(start: Start, layers: Sequence[str], errors: Sequence[dict[str, float]]) -> list[Finding]:
    """Lemma A.1: the gradients of the factors that train are those of the weight, projected.

    Args:
        start: of the method.
        layers: names.
        errors: relative errors of each layer by factor and moment, from `gradient_errors`.
    """
    return [
        Finding("A.1", "theorem", start.method, "", layer, max(one.values()), _LEMMA, one)
        for layer, one in zip(layers, errors, strict=True)
    ]


def gradient_errors(found: Factors, G: Tensor, now: Factors, scale: float) -> tuple[float, float]:
    """Relative errors of dL/dA and dL/dB by autograd against Lemma A.1; 0 where both are 0.

    Args:
        found: gradients of A and B.
        G: gradient of the effective weight (m, n).
        now: A and B.
        scale: s.
    """
    right = factor_gradients(G, now.A, now.B, scale)
    pairs = zip(found, right, strict=True)
    errors = []
    for one, other in pairs:
        size = max(_norm(one), _norm(other))
        errors.append(_norm(one.double() - other) / size if size else 0.0)
    return errors[0], errors[1]


def ratios(scene: Scene, start: Start, partner: Start) -> Iterator[Finding]:
    """Theorem 4.1: the first update over that of the orthonormal start on the same directions.

    For gradient descent to first order in eta, as stated; the detail has the exact step's. For
    AdamW the exact step, against the same bound and against its square root.
    """
    for i, layer in enumerate(scene.layers):
        bound = smallest_carried(*start.factors[i])
        heavy, flat = (scene.step(one, i, DESCENT) for one in (start, partner))
        kind: Kind = "theorem" if _is_stated(start) else "same argument"
        ratio = _over(_norm(heavy.first), _norm(flat.first))
        more = {
            "exact_ratio": _over(_norm(heavy.exact), _norm(flat.exact)),
            "second_order": _over(_norm(heavy.second), _norm(heavy.first)),
        }
        yield Finding("4.1", kind, start.method, DESCENT, layer, ratio, bound, more)
        heavy, flat = (scene.step(one, i, ADAMW) for one in (start, partner))
        ratio = _over(_norm(heavy.exact), _norm(flat.exact))
        for name, limit in (("4.1", bound), ("4.1 root", math.sqrt(bound))):
            yield Finding(name, "measured", start.method, ADAMW, layer, ratio, limit)


def _is_stated(start: Start) -> bool:
    return start.method.partition("+")[0] in _STATED


def gaps(scene: Scene, start: Start, travels: dict[str, Travel]) -> Iterator[Finding]:
    """Theorem 5.2: the factor, and the gap to full fine-tuning after T updates.

    The factor of the statement is ``|I - A0'A0|_2``. The scaled one has s and B0 in it, as
    `orthora.linalg.theory.gap_factor` says; it is that of the rows ``s A0`` where B0 = 0, to which
    the theorem applies as it stands. The gap is held against the scaled one; under AdamW it is a
    number without a bound.
    """
    T = scene.updates
    for i, layer in enumerate(scene.layers):
        A, B = start.factors[i]
        factor, least = gap_factor(A), float(A.shape[0] < A.shape[1])
        yield Finding("5.2 factor", "theorem", start.method, "", layer, factor, least)
        kind: Kind = "same argument" if start.anchored else "theorem"
        scaled, least = gap_factor(A, B, start.scale), _least(A, B)
        yield Finding("5.2 scaled", kind, start.method, "", layer, scaled, least)
        for optimizer, travel in travels.items():
            full = scene.full[optimizer]
            gap = _norm(travel.moved[i] - full.moved[i])
            largest = max(travel.largest[i], full.largest[i])
            bound = scene.rates[DESCENT] * largest * scaled if optimizer == DESCENT else None
            claim: Kind = "measured" if bound is None else kind
            more = {"to_full_update": _over(gap, _norm(full.moved[i])), "largest_gradient": largest}
            yield Finding("5.2 gap", claim, start.method, optimizer, layer, gap / T, bound, more)


def _least(A: Tensor, B: Tensor) -> float:
    """What the scaled factor can't be below: 1 where a gradient can be lost whole."""
    lost = A.shape[0] < A.shape[1] and (not bool(B.any()) or B.shape[1] < B.shape[0])
    return float(lost)


def first_updates(scene: Scene, start: Start) -> Iterator[Finding]:
    """Proposition 5.3, and its like for AdamW: the size of the first update where B0 = 0."""
    for i, layer in enumerate(scene.layers):
        A, B = start.factors[i]
        norms = {x: _norm(scene.step(start, i, x).exact) for x in scene.rates}
        method, eta = start.method, scene.rates[DESCENT]
        bound = first_update_bound(scene.gradients[i], A, start.scale, eta)
        yield Finding("5.3", "theorem", method, DESCENT, layer, norms[DESCENT], bound)
        bound = sign_update_bound(A, len(B), start.scale, scene.rates[ADAMW])
        yield Finding("5.3 sign", "same argument", method, ADAMW, layer, norms[ADAMW], bound)


def moved_by_kl(scene: Scene, start: Start, optimizer: str) -> Iterator[Finding]:
    """Zhu et al.: how far the first update moved the weights, against the KL that it caused.

    The update's subspace is the span of the layers' own directions, one each. The Fisher matrix on
    it, and the KL to the base's policy, are exact means over the mini-batch's response tokens.
    """
    steps = [scene.step(start, i, optimizer).exact for i in range(len(scene.layers))]
    sizes = {i: size for i, step in enumerate(steps) if (size := _norm(step))}
    F = scene.policy.fisher({i: steps[i] / size for i, size in sizes.items()})
    d = torch.tensor(list(sizes.values())).to(F)
    values = torch.linalg.eigvalsh(F)
    kl = _kl(scene, {i: steps[i] for i in sizes})
    more = {
        "kl": kl, "quadratic_kl": float(d @ F @ d) / 2,
        "smallest_fisher": float(values[0]), "largest_fisher": float(values[-1]),
    }  # fmt: skip
    bound = norm_bound(kl, float(values[0]))
    yield _kl_finding("Zhu step", start, optimizer, "all", math.hypot(*sizes.values()), bound, more)
    for (i, size), curvature in zip(sizes.items(), F.diagonal().tolist(), strict=True):
        kl = _kl(scene, {i: steps[i]})
        more = {"kl": kl, "quadratic_kl": curvature * size**2 / 2, "fisher": curvature}
        bound = norm_bound(kl, curvature)
        yield _kl_finding("Zhu layer", start, optimizer, scene.layers[i], size, bound, more)


def _kl_finding(
    name: str,
    start: Start,
    optimizer: str,
    layer: str,
    number: float,
    bound: float,
    more: dict[str, float],
) -> Finding:
    return Finding(name, "leading order", start.method, optimizer, layer, number, bound, more)


def _kl(scene: Scene, steps: dict[int, Tensor]) -> float:
    """KL to the base policy with these layers moved."""
    weights = enumerate(scene.policy.weights)
    return scene.policy.kl([W + steps[i] if i in steps else W for i, W in weights])


def _norm(X: Tensor) -> float:
    return float(torch.linalg.vector_norm(X.double()))


def _over(number: float, other: float) -> float:
    return number / other if other else math.inf
