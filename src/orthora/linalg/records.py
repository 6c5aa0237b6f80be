"""What a computation of subspaces leaves for, or takes from, its surroundings, thread by thread.

A method is a plain function of one weight. Certificates of the subspaces that it used, and
decompositions made for many weights at once, pass by it through these two contexts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from orthora.linalg.full import Spectrum, spectra
from orthora.linalg.gram import tall
from orthora.types import Certificate, End, Subspace

_NOTES: ContextVar[list[Certificate] | None] = ContextVar("certificates", default=None)
_READY: ContextVar[dict[tuple[int, ...], Spectrum] | None] = ContextVar("spectra", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Certificate]]:
    """Collect the certificates of every subspace that this thread computes inside, in order."""
    notes: list[Certificate] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


@contextlib.contextmanager
def decomposed(weights: Sequence[Tensor]) -> Iterator[None]:
    """Decompose the Gram matrices of equal-shaped weights as one float64 batch, for use inside.

    For GPUs, where one batched eigendecomposition is far cheaper than one per weight; on a CPU
    LAPACK runs them one by one and nothing is gained. Holds 24 bytes k^2 per weight meanwhile.
    """
    found = spectra([tall(W.detach()) for W in weights])
    ready = {_identity(W): spectrum for W, spectrum in zip(weights, found, strict=True)}
    token = _READY.set(ready)
    try:
        yield
    finally:
        _READY.reset(token)


def note(end: End, subspace: Subspace) -> None:
    """Leave a certificate for `recorded`."""
    notes = _NOTES.get()
    if notes is None:
        return
    notes.append(
        Certificate(
            end=end,
            path=subspace.path,
            residual=subspace.residual,
            orthonormality=subspace.orthonormality,
            gap=subspace.gap,
            energy_error=subspace.energy_error,
            evidence=subspace.evidence,
            replaced=subspace.replaced,
            sigma=(float(subspace.S[0]), float(subspace.S[-1])),
        )
    )


def ready(W: Tensor) -> Spectrum | None:
    """The float64 decomposition that `decomposed` made for this weight, if any."""
    table = _READY.get()
    return None if table is None else table.get(_identity(W))


def _identity(W: Tensor) -> tuple[int, ...]:
    """The memory that a weight views."""
    device = -1 if W.device.index is None else W.device.index
    dtype = torch.finfo(W.dtype).bits
    return (device, dtype, W.data_ptr(), *W.shape, *W.stride())
