"""The values that move between modules, and the dimension legend.

Legend, used in every shape of the package::

    m  out features of a weight matrix        W: (m, n), applied as  y = W x
    n  in features
    k  min(m, n), the number of thin singular triplets
    r  rank of the adapter
    s  scale of the adapter, alpha / r        effective weight: W + s (B A - B0 A0)
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

Message = dict[str, str]
"""One chat message, ``{"role": ..., "content": ...}``."""


End = Literal["top", "bottom"]
"""An end of the spectrum."""

Evidence = Literal["decomposition", "proved", "probed"]
"""How it is known that a subspace misses no direction; see `Subspace.evidence`."""


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
        residual: ``max(|W V - U S|_2, |W' U - V S|_2) / |W|_2``. The exact path measures it in
            float64 on the returned tensors; the others in their own products, before the vectors
            are rounded to float32 (which adds at most 1e-7).
        orthonormality: ``max(|U'U - I|_max, |V'V - I|_max)``, measured on the returned tensors.
        gap: ``|sigma_in - sigma_out| / sigma_1`` between the last singular value inside the group
            and the first outside it; 1 if nothing is outside. The sine of the angle between a
            computed subspace and the true one is at most about ``residual / gap`` (Wedin); 0 means
            that the group is ambiguous.
        path: the algorithm that produced it, e.g. ``"svd-float64"``.
        energy_error: upper bound on the energy that the subspace misses, relative to its own. With
            E the sum of squares of the true r singular values: ``(E - |W V|_F^2) / E`` at the top,
            ``(|W V|_F^2 - E) / E`` at the bottom. To rounding; 0 on the exact path.
        evidence: how it is known that no direction was missed, on which ``energy_error`` rests.
            ``"decomposition"``: all singular values were computed. ``"proved"``: a Cholesky
            factorisation shows that nothing outside lies beyond the group's edge. ``"probed"``
            (bottom of a square matrix): sixteen random directions show that nothing outside lies
            below half of the group's edge, with failure probability 1e-8. Between half and the
            edge block Lanczos has converged; it can miss only further copies of a singular value
            that has a block of them, which is refused.
        replaced: the faster paths whose checks failed, with the reason; empty if none was tried.
    """

    U: Float[Tensor, "m r"]
    S: Float[Tensor, " r"]
    V: Float[Tensor, "n r"]
    residual: float
    orthonormality: float
    gap: float
    path: str
    energy_error: float = 0.0
    evidence: Evidence = "decomposition"
    replaced: str = ""


@dataclass(frozen=True)
class Certificate:
    """A subspace's figures without its vectors, for records; see `Subspace`.

    Attributes:
        end: of the spectrum.
        path: the algorithm.
        residual: relative to sigma_1.
        orthonormality: largest entry of ``X'X - I``.
        gap: to the first singular value outside, relative to sigma_1.
        energy_error: upper bound, relative.
        evidence: how completeness is known.
        replaced: faster paths that failed.
        sigma: largest and smallest singular value of the group.
    """

    end: End
    path: str
    residual: float
    orthonormality: float
    gap: float
    energy_error: float
    evidence: Evidence
    replaced: str
    sigma: tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """One verifiable task row.

    Attributes:
        prompt: plain text, or chat messages.
        answer: the gold answer, as text; of a programming problem, a reference program.
        id: stable identifier, unique inside its data set.
        tests: assertions that a program must pass; empty where the answer is judged.
        setup: code that the tests need, to run after the program.
    """

    prompt: str | list[Message]
    answer: str
    id: str
    tests: tuple[str, ...] = ()
    setup: str = ""


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
