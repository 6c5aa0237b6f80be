"""Float32 matrix products by the faster of the two libraries in PyTorch.

MKL serves processors that are not Intel's with AVX2 at most; oneDNN uses AVX-512 where there is
one, and is up to twice as fast on few columns in any case. Both are part of PyTorch's CPU build,
and ``torch.matmul`` takes MKL for float32. The choice depends on the machine and the shapes alone,
so that results there are the same bits every time.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

_SMALL = 1 << 20  # multiplications, up to which a call's overhead counts for more
_FEW = 64  # columns


def product(A: Float[Tensor, "p k"], B: Float[Tensor, "k c"]) -> Float[Tensor, "p c"]:
    """``A @ B`` with float32 accuracy for float32 operands.

    Inside `orthora.linalg.precision.float32_products`.
    """
    if not _ONEDNN or A.dtype != torch.float32 or A.device.type != "cpu":
        return A @ B
    if A.numel() * B.shape[1] <= _SMALL:
        return A @ B
    if not (_AVX512 or (A.is_contiguous() and B.shape[1] <= _FEW)):
        return A @ B
    if A.is_contiguous():
        right = B.mT
        whole = B.is_contiguous() or right.is_contiguous()
        return _rows_by_rows(A, right if whole else right.contiguous())
    if A.mT.is_contiguous():
        return _rows_by_rows(B.mT.contiguous(), A).mT
    return A @ B


def _rows_by_rows(X: Tensor, Y: Tensor) -> Tensor:
    """``X Y'`` by oneDNN; X contiguous, and Y or its transpose, else it falls to reference code."""
    return torch.ops.mkldnn._linear_pointwise(X, Y, None, "none", [], "")


def _prefers_onednn() -> tuple[bool, bool]:
    """Whether this CPU is AMD's and PyTorch was built with oneDNN; whether it has AVX-512."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False, False
    has = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has and "AuthenticAMD" in cpu, "avx512f" in cpu


_ONEDNN, _AVX512 = _prefers_onednn()
