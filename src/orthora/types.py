"""The values that move between modules, and the dimension legend.

Legend, used in every shape of the package::

    m  out features of a weight matrix        W: (m, n), applied as  y = W x
    n  in features
    k  min(m, n), the number of thin singular triplets
    r  rank of the adapter
    s  scale of the adapter, alpha / r        effective weight: W + s (B A - B0 A0)
"""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

Message = dict[str, str]
"""One chat message, ``{"role": ..., "content": ...}``."""


class Factors(NamedTuple):
    """Starting point of a low-rank adapter.

    Attributes:
        A: (r, n) float32, reads the input.
        B: (m, r) float32, writes the output. Zeros for methods without an anchor.
    """

    A: Float[Tensor, "r n"]
    B: Float[Tensor, "m r"]


@dataclass(frozen=True)
class Subspace:
    """One end of a matrix's singular value decomposition, with the proof that it is right.

    Columns are ordered by descending singular value, and signed so that the entry of largest
    magnitude in each column of ``V`` is positive.

    Attributes:
        U: (m, r) left singular vectors.
        S: (r,) singular values, descending.
        V: (n, r) right singular vectors.
        residual: ``max(|W V - U S|_2, |W' U - V S|_2) / |W|_2``, measured on the returned tensors.
        orthonormality: ``max(|U'U - I|_max, |V'V - I|_max)``, measured on the returned tensors.
        gap: ``|sigma_in - sigma_out| / sigma_1`` between the last singular value inside the group
            and the first outside it; 1 if nothing is outside. The sine of the angle between a
            computed subspace and the true one is at most about ``residual / gap`` (Wedin); 0 means
            that the group is ambiguous.
        path: the algorithm that produced it, e.g. ``"svd-float64"``.
    """

    U: Float[Tensor, "m r"]
    S: Float[Tensor, " r"]
    V: Float[Tensor, "n r"]
    residual: float
    orthonormality: float
    gap: float
    path: str


@dataclass(frozen=True)
class Problem:
    """One verifiable task row.

    Attributes:
        prompt: plain text, or chat messages.
        answer: the gold answer, as text.
        id: stable identifier, unique inside its data set.
    """

    prompt: str | list[Message]
    answer: str
    id: str


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
        correct: whether the response's final answer equals the gold.
        answer: the answer that was extracted, or None where none was found.
        reason: a short phrase that says why, e.g. ``"exact"``, ``"no answer"``.
    """

    correct: bool
    answer: str | None
    reason: str
