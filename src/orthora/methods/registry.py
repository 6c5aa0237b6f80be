"""The registry of initialisations: one pure function of a weight matrix per method."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

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


def known() -> list[str]:
    """Canonical names and aliases of all initialisations."""
    return [*_METHODS, *_ALIASES]


def get(name: str) -> Method:
    """The initialisation called ``name`` or aliased so; case and underscores don't matter.

    Raises:
        ValueError: if there is none, with the nearest name and the whole list.
    """
    if not isinstance(name, str):
        raise ValueError(f"method must be a name such as 'rlpo', got {name!r}")
    key = name.lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key in _METHODS:
        return _METHODS[key]
    near = difflib.get_close_matches(key, known(), n=1, cutoff=0.65)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown method {name!r}.{hint} Available: {', '.join(names())}")


def zeros_like_output(W: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "m r"]:
    """The B0 = 0 of every method without an anchor: (m, r) float32."""
    return torch.zeros(W.shape[0], rank, dtype=torch.float32, device=W.device)
