"""The theory of "geometry-preserving orthonormal initialisation" (arXiv 2606.31813), executed.

The statements are those of the paper as orthora reads them, with the scale s written out. They are
checked in float64 on a linear softmax policy (logits = W x) under group-normalised REINFORCE, and
on arbitrary gradients. Throughout, W_eff = W + s (B A - B0 A0), G = dL/dW_eff, a step is plain
gradient descent with rate eta on A and B, and "full" is gradient descent on W itself.

* Lemma A.1: dL/dB = s G A', dL/dA = s B' G.
* Theorem 4.1: to first order |dW1(PiSSA)| / |dW1(RLPO)| >= sigma_r / s, whatever the gradient; so
  for MiLoRA against RLMO, with its own smallest singular value.
* Theorem 5.2: with B0 = 0 and s = 1 the gap to full fine-tuning after one step is
  eta |G (I - A0'A0)|; the factor |I - A0'A0|_2 is at least 1 for r < n, and 1 exactly for
  orthonormal rows.
* Proposition 5.3: with B0 = 0 the first update is at most s^2 eta |G| |A0|_2^2, thus s^2 eta |G|
  for orthonormal rows.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import orthora
from orthora.methods import get, initialize

TINY = 1e-5  # factors are float32
PAIRS = [("pissa", "rlpo"), ("milora", "rlmo")]
ORTHONORMAL = ["rlpo", "rlmo", "dct", "wavelet"]

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=40)
seeds = st.integers(0, 2**31 - 1)
scales = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])
steps = st.sampled_from([1e-4, 1e-2, 0.3])


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Policy:
    """One batch: contexts, sampled actions, advantages normalised in their group."""

    def __init__(self, W: Tensor, seed: int, prompts: int = 6, group: int = 8) -> None:
        m, n = W.shape
        generator = torch.Generator().manual_seed(seed)
        contexts = torch.randn(prompts, n, generator=generator, dtype=torch.float64)
        self.X = contexts.repeat_interleave(group, dim=0)
        odds = torch.softmax(self.X @ W.detach().mT, dim=-1)
        self.actions = torch.multinomial(odds, 1, generator=generator)
        # Skill differs by action; noise keeps every group's rewards from being all equal.
        skill = torch.randn(m, generator=generator, dtype=torch.float64)
        noise = torch.randn(prompts, group, generator=generator, dtype=torch.float64)
        rewards = skill[self.actions].view(prompts, group) + noise
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        self.advantages = (centred / rewards.std(dim=1, keepdim=True)).view(-1, 1)

    def loss(self, W: Tensor) -> Tensor:
        logp = torch.log_softmax(self.X @ W.mT, dim=-1).gather(1, self.actions)
        return -(self.advantages * logp).mean()

    def gradient(self, W: Tensor) -> Tensor:
        W = W.detach().requires_grad_()
        return torch.autograd.grad(self.loss(W), W)[0]


def start(W: Tensor, name: str, rank: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    A, B = initialize(W, name, rank, scale=scale, seed=seed)
    return A.double(), B.double()


def factor_gradients(
    policy: Policy, W: Tensor, A: Tensor, B: Tensor, anchor: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dA, dL/dB and dL/dW_eff by autograd."""
    A, B = A.detach().requires_grad_(), B.detach().requires_grad_()
    effective = W + scale * (B @ A - anchor)
    dA, dB, G = torch.autograd.grad(policy.loss(effective), (A, B, effective))
    return dA, dB, G


def first_update(
    G: Tensor, A: Tensor, B: Tensor, scale: float, eta: float
) -> tuple[Tensor, Tensor]:
    """The first step's change of W_eff to first order in eta, and exactly."""
    dA, dB = scale * B.mT @ G, scale * G @ A.mT
    first = -eta * scale * (dB @ A + B @ dA)
    exact = scale * ((B - eta * dB) @ (A - eta * dA) - B @ A)
    return first, exact


def frobenius(X: Tensor) -> float:
    return float(torch.linalg.matrix_norm(X))


def spectral(X: Tensor) -> float:
    return float(torch.linalg.matrix_norm(X, ord=2))


def close(X: Tensor, Y: Tensor, rel: float = 1e-10) -> bool:
    return frobenius(X - Y) <= rel * max(frobenius(X), frobenius(Y))


@pytest.mark.parametrize("name", orthora.methods("initialisation"))
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_lemma_a1_gradients_through_the_factors(name, scale):
    for seed in range(3):
        W = gaussian(7, 5, seed=seed)
        policy = Policy(W, seed)
        A0, B0 = start(W, name, 3, scale)
        later = (A0 + 0.1 * gaussian(3, 5, seed=seed + 10), B0 + 0.1 * gaussian(7, 3, seed=seed))
        for A, B in ((A0, B0), later):
            dA, dB, G = factor_gradients(policy, W, A, B, B0 @ A0, scale)
            assert close(dB, scale * G @ A.mT)
            assert frobenius(dA - scale * B.mT @ G) <= 1e-12
            assert frobenius(G) > 0.01
        assert close(
            factor_gradients(policy, W, A0, B0, B0 @ A0, scale)[2], policy.gradient(W)
        )  # the anchor leaves the function, hence its gradient, as it was


@pytest.mark.parametrize(
    "name", [x for x in orthora.methods("initialisation") if not get(x).anchored]
)
def test_without_an_anchor_the_first_step_moves_b_alone(name):
    W = gaussian(7, 5, seed=0)
    A, B = start(W, name, 3, 2.0)
    dA, dB, _ = factor_gradients(Policy(W, 0), W, A, B, B @ A, 2.0)
    assert not dA.any()
    assert dB.any()


def smallest_inside(W: Tensor, name: str, rank: int) -> float:
    """The smallest singular value of the part of W that the method carries."""
    S = torch.linalg.svdvals(W)
    return float(S[rank - 1] if name == "pissa" else S[-1])


def check_ratio(
    W: Tensor, G: Tensor, pair: tuple[str, str], rank: int, scale: float, eta: float
) -> None:
    heavy, light = pair
    A, B = start(W, heavy, rank, scale)
    first, exact = first_update(G, A, B, scale, eta)
    flat, flat_exact = first_update(G, *start(W, light, rank, scale), scale, eta)
    assert close(flat, flat_exact)  # B0 = 0: no second-order term
    bound = smallest_inside(W, heavy, rank) / scale
    floor = bound * frobenius(flat) * (1 - TINY) - 1e-6 * eta * scale * frobenius(G)
    assert frobenius(first) >= floor
    # Exactly, the step adds eta^2 s dB dA.
    second = eta**2 * scale**3 * (G @ A.mT @ B.mT @ G)
    assert close(exact, first + second, rel=1e-9)
    assert frobenius(exact) >= floor - frobenius(second)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@settings(repeatable, max_examples=60)
@given(
    seed=seeds, m=st.integers(2, 9), n=st.integers(2, 9), scale=scales, eta=steps, data=st.data()
)
def test_theorem_4_1_update_ratio_for_any_gradient(pair, seed, m, n, scale, eta, data):
    rank = data.draw(st.integers(1, min(m, n)))
    W, G = 3 * gaussian(m, n, seed=seed), gaussian(m, n, seed=seed + 1)
    check_ratio(W, G, pair, rank, scale, eta)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_theorem_4_1_update_ratio_for_policy_gradients(pair, seed, scale):
    W = gaussian(8, 6, seed=seed)
    check_ratio(W, Policy(W, seed).gradient(W), pair, 3, scale, 1e-2)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_theorem_4_1_is_tight(pair, scale):
    heavy = pair[0]
    W, rank = gaussian(8, 6, seed=4), 3
    U, S, Vh = torch.linalg.svd(W)
    last = rank - 1 if heavy == "pissa" else 5
    G = U[:, 7:] @ Vh[last][None]  # reads the weakest direction inside, writes outside U_r
    one, two = (first_update(G, *start(W, x, rank, scale), scale, 1e-2)[0] for x in pair)
    assert frobenius(one) / frobenius(two) == pytest.approx(float(S[last]) / scale, rel=TINY)


@repeatable
@given(seed=seeds, n=st.integers(2, 12), size=st.floats(0.01, 10), data=st.data())
def test_theorem_5_2_the_factor_is_at_least_one_below_full_rank(seed, n, size, data):
    rank = data.draw(st.integers(1, n - 1))
    A = size * gaussian(rank, n, seed=seed)
    assert spectral(torch.eye(n) - A.mT @ A) >= 1 - 1e-12


@pytest.mark.parametrize("name", ORTHONORMAL)
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (8, 8)])
def test_theorem_5_2_the_factor_is_one_for_orthonormal_rows(name, shape):
    W = gaussian(*shape, seed=1)
    for rank in range(1, shape[1]):
        if rank <= min(shape):
            A = start(W, name, rank, 2.0)[0]
            assert spectral(torch.eye(shape[1]) - A.mT @ A) == pytest.approx(1.0, abs=1e-6)


@repeatable
@given(seed=seeds, size=st.floats(0.1, 5))
def test_theorem_5_2_the_factor_of_singular_value_weighted_rows(seed, size):
    W = size * gaussian(8, 6, seed=seed)
    sigma = float(torch.linalg.svdvals(W)[0])
    A = start(W, "pissa", 3, 1.0)[0]
    factor = spectral(torch.eye(6) - A.mT @ A)
    assert factor == pytest.approx(max(1.0, sigma - 1.0), rel=TINY)
    if sigma > 2.001:
        assert factor > 1.0


@pytest.mark.parametrize("name", orthora.methods("initialisation"))
@pytest.mark.parametrize("seed", range(3))
def test_theorem_5_2_the_gap_to_full_fine_tuning_after_one_step(name, seed):
    W, eta = 2 * gaussian(8, 6, seed=seed), 0.05
    policy = Policy(W, seed)
    A, B = start(W, name, 3, 1.0)[0], torch.zeros(8, 3, dtype=torch.float64)
    dA, dB, G = factor_gradients(policy, W, A, B, B @ A, 1.0)
    lora = W + (B - eta * dB) @ (A - eta * dA)
    full = W - eta * policy.gradient(W)
    projection = torch.eye(6) - A.mT @ A
    assert frobenius(lora - full) == pytest.approx(eta * frobenius(G @ projection), rel=1e-9)
    assert frobenius(lora - full) <= eta * frobenius(G) * spectral(projection) * (1 + 1e-9)


@pytest.mark.parametrize("name", orthora.methods("initialisation"))
@pytest.mark.parametrize("seed", range(2))
def test_theorem_5_2_over_small_steps_the_gap_grows_by_at_most_the_factor(name, seed):
    W, eta, count = 2 * gaussian(8, 6, seed=seed), 1e-3, 50
    policy = Policy(W, seed)
    A, B = start(W, name, 3, 1.0)[0], torch.zeros(8, 3, dtype=torch.float64)
    factor = spectral(torch.eye(6) - A.mT @ A)
    anchor, full, largest = B @ A, W, 0.0
    for step in range(1, count + 1):
        dA, dB, G = factor_gradients(policy, W, A, B, anchor, 1.0)
        H = policy.gradient(full)
        largest = max(largest, frobenius(G), frobenius(H))
        A, B, full = A - eta * dA, B - eta * dB, full - eta * H
        gap = frobenius(W + B @ A - anchor - full)
        assert gap / step <= eta * largest * factor * 1.02, step
    assert gap > 0.1 * eta * largest  # the two did part


@repeatable
@given(
    seed=seeds, m=st.integers(2, 9), n=st.integers(2, 9), scale=scales, eta=steps, data=st.data()
)
def test_proposition_5_3_the_first_update_is_bounded_by_the_rows(seed, m, n, scale, eta, data):
    rank = data.draw(st.integers(1, min(m, n)))
    W, G = 3 * gaussian(m, n, seed=seed), gaussian(m, n, seed=seed + 1)
    full = eta * frobenius(G)
    for name in orthora.methods("initialisation"):
        if get(name).anchored:
            continue
        A, B = start(W, name, rank, scale, seed=seed)
        update = frobenius(first_update(G, A, B, scale, eta)[1])
        assert update <= scale**2 * full * spectral(A) ** 2 * (1 + 1e-9), name
        if spectral(A @ A.mT - torch.eye(rank)) <= 1e-5:
            assert update <= scale**2 * full * (1 + TINY), name


@pytest.mark.parametrize("name", ORTHONORMAL)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_proposition_5_3_is_tight_at_a_gradient_inside_the_rows(name, scale):
    W = gaussian(8, 6, seed=2)
    A, B = start(W, name, 3, scale)
    G = gaussian(8, 3, seed=3) @ A
    update = frobenius(first_update(G, A, B, scale, 0.01)[1])
    assert update == pytest.approx(scale**2 * 0.01 * frobenius(G), rel=TINY)
