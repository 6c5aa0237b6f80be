"""Matrices small enough for a hand, and parity with the two starts that PEFT also ships."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from orthora.methods import initialize
from orthora.types import Factors

H = math.sqrt(0.5)

# [[3, 0], [4, 5]] = sqrt(45) (1, 3)(1, 1)'/sqrt(20) + sqrt(5) (3, -1)(1, -1)'/sqrt(20)
SKEW = [[3.0, 0.0], [4.0, 5.0]]
SKEW_PRODUCTS = {  # B0 A0 at s = 1, r = 1
    "pissa": [[1.5, 1.5], [4.5, 4.5]],
    "milora": [[1.5, -1.5], [-0.5, 0.5]],
    "olora": [[0.05**0.5, 0.05**0.5], [0.45**0.5, 0.45**0.5]],
    "olora-tail": [[0.45**0.5, -(0.45**0.5)], [-(0.05**0.5), 0.05**0.5]],
    "olora-qr": [[3.0, 2.4], [4.0, 3.2]],
}
SKEW_PROJECTORS = {  # A0' A0, B0 = 0, r = 1
    "rlpo": [[0.5, 0.5], [0.5, 0.5]],
    "rlmo": [[0.5, -0.5], [-0.5, 0.5]],
    "dct": [[0.5, 0.5], [0.5, 0.5]],
    "wavelet": [[0.5, 0.5], [0.5, 0.5]],
}

# The middle singular value of diag(3, -1, 2) is 2, the smallest belongs to -1.
DIAGONAL = [3.0, -1.0, 2.0]
DIAGONAL_FACTORS = {  # method, r, s: A0, B0
    ("rlpo", 1, 2.0): ([[1, 0, 0]], [[0], [0], [0]]),
    ("rlpo", 2, 2.0): ([[1, 0, 0], [0, 0, 1]], [[0, 0], [0, 0], [0, 0]]),
    ("rlmo", 1, 2.0): ([[0, 1, 0]], [[0], [0], [0]]),
    ("rlmo", 2, 2.0): ([[0, 0, 1], [0, 1, 0]], [[0, 0], [0, 0], [0, 0]]),
    ("pissa", 1, 1.0): ([[3**0.5, 0, 0]], [[3**0.5], [0], [0]]),
    ("pissa", 1, 2.0): ([[1.5**0.5, 0, 0]], [[1.5**0.5], [0], [0]]),
    ("pissa", 2, 0.5): ([[6**0.5, 0, 0], [0, 0, 2]], [[6**0.5, 0], [0, 0], [0, 2]]),
    ("milora", 1, 1.0): ([[0, 1, 0]], [[0], [-1], [0]]),
    ("milora", 1, 2.0): ([[0, H, 0]], [[0], [-H], [0]]),
    ("milora", 2, 0.5): ([[0, 0, 2], [0, 2**0.5, 0]], [[0, 0], [0, -(2**0.5)], [2, 0]]),
    ("olora", 2, 2.0): ([[1, 0, 0], [0, 0, 1]], [[1, 0], [0, 0], [0, 1]]),
    ("olora-tail", 1, 2.0): ([[0, 1, 0]], [[0], [-1], [0]]),
    # Both thresholds are 0: every entry stays but the 3, which alone is large in the rank-1 part.
    ("geora", 1, 1.0): ([[0, 0, 2**0.5]], [[0], [0], [2**0.5]]),
    ("geora", 1, 2.0): ([[0, 0, 2**0.5]], [[0], [0], [2**0.5]]),
}


def start(W: Tensor, method: str, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    A, B = initialize(W, method, rank, scale=scale)
    return A.double(), B.double()


def same(X: Tensor, expected: list[list[float]]) -> bool:
    return torch.allclose(X, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", SKEW_PRODUCTS)
def test_products_of_a_two_by_two_matrix_by_hand(method):
    A, B = start(torch.tensor(SKEW), method, 1, 1.0)
    assert same(B @ A, SKEW_PRODUCTS[method])


@pytest.mark.parametrize("method", SKEW_PROJECTORS)
def test_projectors_of_a_two_by_two_matrix_by_hand(method):
    A, B = start(torch.tensor(SKEW), method, 1, 2.0)
    assert same(A.mT @ A, SKEW_PROJECTORS[method])
    assert not B.any()


@pytest.mark.parametrize(("method", "rank", "scale"), DIAGONAL_FACTORS)
def test_factors_of_a_diagonal_matrix_by_hand(method, rank, scale):
    A, B = start(torch.diag(torch.tensor(DIAGONAL)), method, rank, scale)
    expected_A, expected_B = DIAGONAL_FACTORS[method, rank, scale]
    assert same(A, expected_A)
    assert same(B, expected_B)


def test_minor_directions_of_a_wide_and_of_a_deficient_matrix_by_hand():
    wide = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert same(start(wide, "rlmo", 1, 1.0)[0], [[0, 1, 0]])  # not the null vector (0, 0, 1)
    deficient = torch.diag(torch.tensor([3.0, 0.0, 2.0]))
    assert same(start(deficient, "rlmo", 1, 1.0)[0], [[0, 0, 1]])
    with pytest.raises(ValueError, match="only 2 of 3 singular values are positive"):
        initialize(deficient, "milora", 3)


def test_data_free_rows_by_hand():
    W = torch.ones(2, 4)
    c, s = math.cos(math.pi / 8) * H, math.sin(math.pi / 8) * H
    assert same(start(W, "dct", 2, 1.0)[0], [[0.5] * 4, [c, s, -s, -c]])
    assert same(start(W, "wavelet", 2, 1.0)[0], [[0.5] * 4, [0.5, 0.5, -0.5, -0.5]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(16, 40, bias=False)
        self.wide = nn.Linear(40, 12, bias=False)
        self.square = nn.Linear(12, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(torch.relu(self.wide(torch.relu(self.tall(x)))))


def net() -> Net:
    """Singular values 2, ..., 0.2 in constant ratio: PEFT's float32 subspaces are well defined."""
    generator = torch.Generator().manual_seed(0)
    model = Net()
    for layer in model.children():
        U, S, Vh = torch.linalg.svd(
            torch.randn(layer.weight.shape, generator=generator), full_matrices=False
        )
        S = torch.logspace(math.log10(2.0), math.log10(0.2), S.numel())
        layer.weight.data = (U * S) @ Vh
    return model


def projector(rows: Tensor) -> Tensor:
    Q = torch.linalg.qr(rows.double().mT).Q
    return Q @ Q.mT


def distance(X: Tensor, Y: Tensor) -> float:
    return float((X.double() - Y.double()).abs().max())


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize(("ours", "theirs"), [("pissa", "pissa"), ("olora-qr", "olora")])
def test_products_projectors_and_base_change_equal_pefts(ours, theirs, rank, scale):
    weights = {name: layer.weight.detach().clone() for name, layer in net().named_children()}
    config = LoraConfig(
        r=rank, lora_alpha=scale * rank, target_modules=list(weights), init_lora_weights=theirs
    )
    model = get_peft_model(net(), config).base_model.model
    for name, W in weights.items():
        layer = getattr(model, name)
        A, B = (getattr(layer, f"lora_{x}")["default"].weight.detach() for x in "AB")
        mine: Factors = initialize(W, ours, rank, scale=float(scale))
        assert distance(B @ A, mine.B @ mine.A) <= 2e-6, name
        assert distance(projector(A), projector(mine.A)) <= 1e-5, name
        assert distance(projector(B.mT), projector(mine.B.mT)) <= 1e-5, name
        assert distance(A.double().mT @ A.double(), mine.A.double().mT @ mine.A.double()) <= 1e-5
        change = layer.get_base_layer().weight.detach() - W
        assert distance(change, -scale * (mine.B @ mine.A)) <= 4e-6, name
        assert float(change.abs().max()) > 0.01, name
