"""The loss against a reference written by hand, token by token, in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from orthora.train.losses import (
    Objective,
    advantages,
    kl_k3,
    normaliser,
    policy_loss,
    summed,
    total_loss,
)

LENGTHS = (7, 1, 4, 12, 3, 9)
VALUES = (1.3, -0.7, 0.0, -1.9, 0.4, 2.0)  # advantages of both signs, and none


def reference(
    new: list[list[float]],
    old: list[list[float]],
    base: list[list[float]],
    entropy: list[list[float]],
    A: tuple[float, ...],
    o: Objective,
    rows: range,
    everything: range,
) -> float:
    """verl's loss of some rows of a mini-batch, with plain numbers."""
    total = 0.0
    for i in rows:
        terms = []
        n = len(new[i])
        mean = sum(a - b for a, b in zip(new[i], old[i], strict=True)) / n
        for t in range(n):
            d = new[i][t] - old[i][t] if o.ratio == "token" else mean
            r = math.exp(min(max(d, -20.0), 20.0))
            clipped = min(max(r, 1 - o.clip_low), 1 + o.clip_high)
            loss = max(-A[i] * r, -A[i] * clipped)
            if o.dual_clip is not None and A[i] < 0:
                loss = min(loss, -A[i] * o.dual_clip)
            if o.beta:
                k = base[i][t] - new[i][t]
                loss += o.beta * (math.exp(k) - k - 1)
            terms.append(loss - o.entropy_bonus * entropy[i][t])
        total += sum(terms) / n if o.loss == "grpo" else sum(terms)
    tokens = sum(len(new[i]) for i in everything)
    divisor = {
        "dapo": tokens, "grpo": len(everything), "dr_grpo": len(everything) * o.max_tokens
    }[o.loss]  # fmt: skip
    return total / divisor


def numbers(seed: int, spread: float) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, generator=generator, dtype=torch.float64) * spread - 1.0).tolist()
        for n in LENGTHS
    ]


def padded(values: list[list[float]], rows: range, shift: int = 2) -> Tensor:
    """Rows with other things before and after, as a batch holds them."""
    width = max(len(values[i]) for i in rows) + shift
    tensor = torch.full((len(rows), width), -3.0, dtype=torch.float64)
    for place, i in enumerate(rows):
        tensor[place, shift : shift + len(values[i])] = torch.tensor(values[i], dtype=torch.float64)
    return tensor


def mask_of(rows: range, shift: int = 2) -> Tensor:
    width = max(LENGTHS[i] for i in rows) + shift
    mask = torch.zeros(len(rows), width, dtype=torch.float64)
    for place, i in enumerate(rows):
        mask[place, shift : shift + LENGTHS[i]] = 1.0
    return mask


OBJECTIVES = [
    Objective(loss, ratio, dual_clip=dual, beta=beta, entropy_bonus=bonus, max_tokens=20)
    for loss, ratio, (dual, beta, bonus) in itertools.product(
        ("dapo", "grpo", "dr_grpo"),
        ("token", "sequence"),
        ((10.0, 0.0, 0.0), (3.0, 0.1, 0.0), (None, 0.0, 0.01), (1.5, 0.05, 0.02)),
    )
]


@pytest.mark.parametrize("o", OBJECTIVES, ids=str)
@pytest.mark.parametrize("cut", [(6,), (2, 4), (1, 1, 1, 1, 1, 1), (5, 1)], ids=str)
def test_micro_batches_of_unequal_rows_add_up_to_the_reference(o, cut):
    """Ratios reach from e^-3 to e^3: outside both clips, on both sides, and beyond the dual one."""
    new, old, base, entropy = (numbers(seed, 1.0) for seed in range(4))
    divisor = normaliser(o, sum(LENGTHS), len(LENGTHS))
    found, start = 0.0, 0
    for size in cut:
        rows = range(start, start + size)
        start += size
        share, _ = total_loss(
            padded(new, rows),
            padded(entropy, rows),
            padded(old, rows),
            padded(base, rows),
            None,
            torch.tensor([VALUES[i] for i in rows], dtype=torch.float64),
            mask_of(rows),
            o,
            divisor,
        )
        found += float(share)
    everything = range(len(LENGTHS))
    expected = reference(new, old, base, entropy, VALUES, o, everything, everything)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("o", OBJECTIVES, ids=str)
def test_the_gradient_is_that_of_the_reference(o):
    """By central differences of the reference, in float64."""
    new, old, base, entropy = (numbers(seed, 0.4) for seed in range(4))
    rows = range(len(LENGTHS))
    tensor = padded(new, rows).requires_grad_()
    loss, _ = total_loss(
        tensor,
        padded(entropy, rows),
        padded(old, rows),
        padded(base, rows),
        None,
        torch.tensor(VALUES, dtype=torch.float64),
        mask_of(rows),
        o,
        normaliser(o, sum(LENGTHS), len(LENGTHS)),
    )
    loss.backward()
    assert tensor.grad is not None
    assert not tensor.grad[mask_of(rows) == 0].any()
    h = 1e-6
    for i, t in ((0, 0), (0, 6), (1, 0), (3, 5), (5, 8)):
        ends = []
        for sign in (1, -1):
            moved = [list(row) for row in new]
            moved[i][t] += sign * h
            ends.append(reference(moved, old, base, entropy, VALUES, o, rows, rows))
        slope = (ends[0] - ends[1]) / (2 * h)
        assert float(tensor.grad[i, t + 2]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_at_equal_policies_the_gradient_is_the_policy_gradient():
    """r = 1: the gradient of the token mean is -A / tokens, whatever the clips."""
    rows = range(len(LENGTHS))
    new = padded(numbers(0, 1.0), rows).requires_grad_()
    loss, _ = total_loss(
        new, None, new.detach(), None, None, torch.tensor(VALUES, dtype=torch.float64),
        mask_of(rows), Objective(), float(sum(LENGTHS)),
    )  # fmt: skip
    loss.backward()
    expected = -torch.tensor(VALUES, dtype=torch.float64)[:, None] * mask_of(rows) / sum(LENGTHS)
    assert new.grad is not None
    torch.testing.assert_close(new.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("ratio", "A", "expected", "which"),
    [
        (1.1, 2.0, -2.2, None),  # inside
        (1.5, 2.0, -2.56, "high"),  # 1.28 * 2
        (0.5, 2.0, -1.0, None),  # a good token that became rarer is not held
        (0.5, -2.0, 1.6, "low"),  # 0.8 * 2
        (1.5, -2.0, 3.0, None),  # a bad token that became likelier is not held,
        (50.0, -2.0, 20.0, "dual"),  # but by the dual clip: 10 * 2
        (50.0, 2.0, -2.56, "high"),
        (1e12, -1.0, 10.0, "dual"),
    ],
)
def test_each_clip_by_hand(ratio, A, expected, which):
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    loss, counts = policy_loss(
        new, torch.zeros_like(new), torch.tensor([A]).double(), torch.ones_like(new), Objective()
    )
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert counts._asdict() == {name: float(name == which) for name in ("low", "high", "dual")}


def test_importance_weights_multiply_the_policy_term_alone():
    new, old, base = (padded(numbers(seed, 0.3), range(2)) for seed in range(3))
    mask, A = mask_of(range(2)), torch.tensor([1.0, -1.0], dtype=torch.float64)
    weight = torch.rand_like(new) + 0.5
    o = Objective(beta=0.2)
    plain = policy_loss(new, old, A, mask, o)[0]
    expected = ((plain * weight + 0.2 * kl_k3(new, base)) * mask).sum() / 8
    found, _ = total_loss(new, None, old, base, weight, A, mask, o, 8.0)
    torch.testing.assert_close(found, expected)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]).double()
    # deviations 1.5 and -0.5; unbiased standard deviation 1
    torch.testing.assert_close(
        advantages(rewards, "group"),
        torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.0] * 4]).double() / (1 + 1e-6),
    )
    torch.testing.assert_close(advantages(rewards, "none")[0, 0].item(), 1.5)
    std = float(rewards.std())
    torch.testing.assert_close(advantages(rewards, "batch")[0, 0].item(), 1.5 / (std + 1e-6))


def test_advantages_of_every_group_sum_to_zero():
    rewards = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double()
    for scale in ("group", "batch", "none"):
        assert float(advantages(rewards, scale).sum(dim=1).abs().max()) < 1e-12


def test_the_sequence_ratio_is_the_geometric_mean():
    """With one advantage, the loss of a sequence is its length times that of the mean ratio."""
    new, old = (padded(numbers(seed, 0.05), range(1), shift=0) for seed in (0, 1))
    mask, A = torch.ones_like(new), torch.tensor([1.0], dtype=torch.float64)
    loss, _ = policy_loss(new, old, A, mask, Objective(ratio="sequence"))
    ratio = math.exp(float((new - old).mean()))
    torch.testing.assert_close(loss, torch.full_like(new, -ratio))


def test_k3_is_not_negative_and_zero_where_policies_agree():
    new, base = (padded(numbers(seed, 2.0), range(3)) for seed in (0, 1))
    assert float(kl_k3(new, base).min()) >= 0
    assert not kl_k3(new, new).any()


def test_rows_without_a_token_count_in_the_sequence_mean_alone():
    """A truncated response that is masked: no token, but one of the sequences (as in TRL)."""
    mask = mask_of(range(2))
    mask[1] = 0
    loss = torch.ones_like(mask)
    assert float(summed(loss, mask, Objective("grpo"))) == 1.0
    assert normaliser(Objective("grpo"), 7, 2) == 2
    assert normaliser(Objective("dapo"), 0, 2) == 1  # nothing to divide
