"""The top of the spectrum: Gram matrix, block Lanczos, and a proof that nothing was missed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from orthora.linalg.certificate import (
    ENERGY,
    GUARDS,
    NotCertified,
    Ritz,
    certify,
    energy_error,
    gram_noise,
    prove_outside,
    rayleigh_ritz,
    times,
)
from orthora.linalg.lanczos import BLOCK, block_lanczos
from orthora.linalg.precision import float32_products
from orthora.linalg.products import product
from orthora.types import Subspace

PATH = "gram+lanczos"
_SINE = 3e-3  # at rank 32; the energy error grows with its square over the rank
_SEED = 0


def start_block(k: int, device: torch.device, seed: int = _SEED) -> Float[Tensor, "k b"]:
    """A Gaussian block, the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    block = torch.randn(k, BLOCK, generator=generator, dtype=torch.float32, device="cpu")
    return block.to(device)


@float32_products()
def top(A: Float[Tensor, "p k"], G: Float[Tensor, "k k"], rank: int, *, wide: bool) -> Subspace:
    """The top-r subspace of a tall float32 matrix from its Gram matrix.

    Args:
        A: (p, k) float32.
        G: (k, k) float32, A'A; overwritten.
        rank: r, at most k / 6 or so.
        wide: A is the transpose of the weight.

    Raises:
        NotCertified: if a check of the certificate fails.
    """
    k = A.shape[1]
    keep = rank + GUARDS
    found = block_lanczos(
        lambda X: product(G, X),
        product(G, start_block(k, A.device)),
        keep,
        group=rank,
        tolerance=_SINE * min(1.0, math.sqrt(rank / 32)),
        most=max(24, k // BLOCK),
        least=max(4, math.ceil(4 * rank / BLOCK)),
    )
    V = torch.linalg.qr(found.vectors.double())[0]
    ritz = rayleigh_ritz(V, times(A, V.float()), "top", keep)
    R = _residual(G, ritz)
    largest = float(ritz.theta[0])
    margin = float(ritz.theta[rank - 1]) - prove_outside(G, ritz, "top", rank)
    energy = energy_error(ritz, "top", rank, R.mT @ R / margin)
    return certify(
        ritz,
        R,
        end="top",
        rank=rank,
        wide=wide,
        sigma_1=largest**0.5,
        energy=energy,
        evidence="proved",
        path=PATH,
        limit=ENERGY["top"],
    )


def _residual(G: Tensor, ritz: Ritz) -> Tensor:
    """A'A V - V Theta by the Gram matrix, which must agree with A where A was applied.

    Saves a second pass over A. V'GV against the Ritz values, which come from A V, tells a wrong G.

    Raises:
        NotCertified: if they differ by more than rounding.
    """
    GV = product(G, ritz.V.to(G.dtype)).double()
    difference = ritz.V.mT @ GV - torch.diag(ritz.theta)
    if not float(difference.abs().max()) <= gram_noise(G):
        raise NotCertified("the Gram matrix does not agree with the weight")
    return GV - ritz.V * ritz.theta
