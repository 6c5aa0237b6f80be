"""What is timed: orthora, and the ways in which the same vectors are computed elsewhere."""

import importlib.util
from collections.abc import Callable

import peft
import torch
from torch import Tensor, nn

from orthora.linalg import bottom_subspace, top_subspace

_LARGE = 20_000_000  # entries, from which scipy's ways and QR take minutes

Vectors = Callable[[], Tensor | None]
"""Computes right singular vectors (n, r), or something that has none to compare."""


def svd(W: Tensor, end: str, rank: int, *, tall: bool) -> Tensor:
    """LAPACK's full SVD in float32, of the tall orientation or of W as it is, as PEFT calls it."""
    X = W.mT.contiguous() if tall and W.shape[0] < W.shape[1] else W
    U, _, Vh = torch.linalg.svd(X, full_matrices=False)
    V = U if X is not W else Vh.mT
    return V[:, :rank] if end == "top" else V[:, -rank:]


def ours(W: Tensor, end: str, rank: int) -> Tensor:
    """orthora, certificate included."""
    return (top_subspace if end == "top" else bottom_subspace)(W, rank).V


def peft_init(W: Tensor, rank: int, how: str) -> Tensor:
    """A LoRA layer of PEFT with ``init_lora_weights=how``; its A spans PEFT's subspace."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False)
    linear.weight = nn.Parameter(W, requires_grad=False)
    config = peft.LoraConfig(r=rank, target_modules=["0"], init_lora_weights=how)
    before = W.clone()
    model = peft.get_peft_model(nn.Sequential(linear), config)
    W.copy_(before)  # PEFT subtracts the factors from the weight
    (A,) = (p for name, p in model.named_parameters() if ".lora_A." in name)
    return A.detach().mT


def arpack(W: Tensor, rank: int) -> Tensor:
    """Scipy's ARPACK on the weight."""
    from scipy.sparse.linalg import svds

    return torch.from_numpy(svds(W.numpy(), k=rank, return_singular_vectors="vh")[2].copy()).mT


def gram_eigh(W: Tensor, end: str, rank: int) -> Tensor:
    """Scipy's ?syevr on the float64 Gram matrix, the wanted end only."""
    from scipy.linalg import eigh

    m, n = W.shape
    X = W.double()
    G = X.mT @ X if m >= n else X @ X.mT
    k = G.shape[0]
    wanted = (k - rank, k - 1) if end == "top" else (0, rank - 1)
    P = torch.from_numpy(eigh(G.numpy(), subset_by_index=wanted)[1].copy())
    return P if m >= n else torch.linalg.qr(X.mT @ P)[0]


def contenders(W: Tensor, end: str, rank: int) -> dict[str, Vectors]:
    """Everything that is compared at one rank; `svd` is timed apart, it has no rank."""
    timed: dict[str, Vectors] = {"orthora": lambda: ours(W, end, rank)}
    if end == "top":
        timed["PEFT pissa_niter_16"] = lambda: peft_init(W, rank, "pissa_niter_16")
    if end == "top" and W.numel() < _LARGE:
        timed["PEFT olora (QR)"] = lambda: peft_init(W, rank, "olora")
    if importlib.util.find_spec("scipy") and W.numel() < _LARGE:
        timed["scipy eigh of the float64 Gram"] = lambda: gram_eigh(W, end, rank)
        if end == "top":
            timed["scipy svds"] = lambda: arpack(W, rank)
    return timed
