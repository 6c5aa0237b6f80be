"""The registry of initialisations: one pure function of a weight matrix per method."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg import check_matrix, check_rank, check_weight
from orthora.types import Factors


@runtime_checkable
class Init(Protocol):
    """Contract of a method: ``(W, rank, *, scale, generator) -> Factors``, pure.

    ``generator`` lives on the CPU, so that a seed means the same on every device.
    """

    def __call__(
        self, W: Tensor, rank: int, *, scale: float, generator: torch.Generator
    ) -> Factors:
        """Factors A (r, n) and B (m, r) for the weight ``W`` (m, n)."""
        ...


@dataclass(frozen=True)
class Method:
    """What orthora knows of an initialisation.

    Attributes:
        name: canonical name.
        init: the pure function W -> Factors.
        claim: one line that says what the start does.
        reference: paper and equation.
        anchored: True if B0 A0 != 0, so that the layer computes ``W x + s (B A - B0 A0) x``.
        spectral: True if it starts from singular subspaces of the weight.
        aliases: other names that mean the same.
    """

    name: str
    init: Init
    claim: str
    reference: str
    anchored: bool
    aliases: tuple[str, ...] = ()
    spectral: bool = False


_METHODS: dict[str, Method] = {}
_ALIASES: dict[str, str] = {}


def method(
    name: str,
    *,
    claim: str,
    reference: str,
    anchored: bool,
    aliases: tuple[str, ...] = (),
    spectral: bool = False,
) -> Callable[[Init], Init]:
    """Register the decorated function under ``name``; a collision is a programming error."""

    def register(init: Init) -> Init:
        for key in (name, *aliases):
            assert key not in {*_METHODS, *_ALIASES}, f"method {key!r} registered twice"
        _METHODS[name] = Method(name, init, claim, reference, anchored, aliases, spectral)
        _ALIASES.update(dict.fromkeys(aliases, name))
        return init

    return register


def names() -> list[str]:
    """Canonical names of all initialisations, sorted."""
    return sorted(_METHODS)


def get(name: str) -> Method:
    """The method called ``name`` or aliased so; case and underscores don't matter.

    Raises:
        ValueError: if there is none, with the nearest name and the whole list.
    """
    key = name.lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key in _METHODS:
        return _METHODS[key]
    near = difflib.get_close_matches(key, [*_METHODS, *_ALIASES], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown method {name!r}.{hint} Available: {', '.join(names())}")


def markdown() -> str:
    """The registry as README's table."""
    lines = ["| name | start | anchored | reference |", "| --- | --- | --- | --- |"]
    for name in names():
        record = _METHODS[name]
        alias = f" ({', '.join(f'`{a}`' for a in record.aliases)})" if record.aliases else ""
        anchored = "yes" if record.anchored else "no"
        lines.append(f"| `{name}`{alias} | {record.claim} | {anchored} | {record.reference} |")
    return "\n".join(lines)


def initialize(
    W: Float[Tensor, "m n"], method: str, rank: int, *, scale: float = 2.0, seed: int = 0
) -> Factors:
    """Starting factors of ``method`` for one weight matrix.

    Args:
        W: (m, n) weight as ``y = W x`` applies it (transpose a GPT-2 ``Conv1D`` weight first).
        method: a name or alias of `orthora.methods()`.
        rank: r, 1 to min(m, n).
        scale: s = alpha / r with which the layer will multiply B A; must be positive.
        seed: of the random methods; the others ignore it.

    Returns:
        Factors A (r, n) and B (m, r), float32, on the device of ``W``. B is zeros unless the method
        is anchored.

    Raises:
        ValueError: unknown method, unfit rank, NaN or Inf in ``W``, or a scale not above 0.
    """
    record = get(method)
    if record.spectral:
        check_matrix(W)  # its values are checked on the way to their subspaces
    else:
        check_weight(W)
    check_rank(rank, (W.shape[0], W.shape[1]))
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite (alpha / rank), got {scale!r}")
    if W.dtype == torch.float64 and float(W.abs().max()) > torch.finfo(torch.float32).max:
        raise ValueError("the weight exceeds the range of float32, in which factors are kept")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        A, B = record.init(W, rank, scale=scale, generator=generator)
    return Factors(
        A.to(W.device, torch.float32).contiguous(), B.to(W.device, torch.float32).contiguous()
    )


def zeros_like_output(W: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "m r"]:
    """The B0 = 0 of every method without an anchor: (m, r) float32."""
    return torch.zeros(W.shape[0], rank, dtype=torch.float32, device=W.device)
