"""Every method, and every kind of composition, trained for three steps on the embedded model."""

import copy
import functools

import pytest
import torch
from conftest import kinds_of_composition, some_compositions
from peft import PeftModel

import orthora
from orthora import models
from orthora.adapters import base_policy, dense_of
from orthora.config import TrainConfig
from orthora.methods import compose
from orthora.tasks import arithmetic
from orthora.train.loading import Parts
from orthora.train.problems import Source
from orthora.train.rewards import Judged
from orthora.train.rollouts import Stream
from orthora.train.trainer import RLVRTrainer
from orthora.train.world import World

STEPS = 3
every_method = pytest.mark.parametrize(
    "method",
    [
        name if name in some_compositions() else pytest.param(name, marks=pytest.mark.slow)
        for name in kinds_of_composition()
    ],
)
TOKENS = torch.tensor([[5, 9, 4, 8, 7, 6, 5, 10]])


@functools.cache
def tokenizer():
    return models.load_tokenizer("tiny")


@functools.cache
def loaded():
    return models.load_model("tiny", "float32", "cpu")


def base():
    return copy.deepcopy(loaded())


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


DRAWN = Source("arithmetic", None, "train", "{prompt}", 8)


def differing(responses, problems) -> list[Judged]:
    """Scores that differ in nearly every group."""
    return [Judged(float(sum(map(ord, response)) % 5), False) for response in responses]


def equal(responses, problems) -> list[Judged]:
    return [Judged(1.0, True) for _ in responses]


def train(method: str, folder, learning_rate: float, steps: int = STEPS, **changes):
    """The trained model, its rows, and all its tensors before training."""
    config = TrainConfig(
        model="tiny", out="unused", task="arithmetic", method=method, rank=2, alpha=4,
        learning_rate=learning_rate, steps=steps, prompts_per_step=4, group_size=2,
        mini_batch_prompts=2, micro_batch=8, max_prompt_tokens=24, max_response_tokens=12,
        overlong_buffer=0, save_every=0, **changes,
    )  # fmt: skip
    problems = arithmetic.problems("train", 8, seed=1)
    prompts = [models.prompt_ids(p, tokenizer()) for p in problems]
    model = orthora.adapt(
        base(), method, rank=2, alpha=4, seed=42, total_updates=2 * steps if steps > 1 else 4
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stream = Stream(problems, prompts, 42)
    parts = Parts(tokenizer(), model, problems, stream, [], 0, differing, DRAWN)
    rows: list[dict] = []
    RLVRTrainer(config, parts, World(), folder, rows.append).train()
    return model, rows, before


@every_method
def test_three_steps_train_exactly_what_is_stated_and_the_export_is_what_was_trained(
    method, tmp_path
):
    model, rows, before = train(method, tmp_path / "run", 1e-2)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["kl_update_k3"] > 0 for row in rows)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    stated = {n for n, p in model.named_parameters() if p.requires_grad}
    pruned = {n for n, p in model.named_parameters() if ".lora_E." in n and not p.any()}
    assert changed | pruned == stated != set()  # AdaLoRA may prune a matrix to rank 0
    assert len(pruned) < len(changed)
    trained = logits(model)
    with base_policy(model):
        assert torch.equal(logits(model), logits(loaded()))
    assert not torch.equal(trained, logits(loaded()))
    if dense_of(model) is not None:
        orthora.export_merged(model, tmp_path / "out")
        reloaded = models.load_model(str(tmp_path / "out"), "float32", "cpu")
    else:
        orthora.export_plain(model, tmp_path / "out")
        reloaded = PeftModel.from_pretrained(base(), str(tmp_path / "out"))
    torch.testing.assert_close(logits(reloaded), trained, rtol=1e-5, atol=2e-5)
    dense = dense_of(model)
    if dense is not None and dense.masks:
        for name, mask in dense.masks.items():  # weight decay included
            assert torch.equal(dict(model.named_parameters())[name][~mask], before[name][~mask])
            assert not torch.equal(dict(model.named_parameters())[name][mask], before[name][mask])


@pytest.mark.parametrize("beta", [0.0, 0.1])
@every_method
def test_at_learning_rate_0_the_policy_is_the_base(method, beta, tmp_path):
    structure = compose(method).structure
    model, (row,), before = train(method, tmp_path, 0.0, steps=1, beta=beta)
    assert abs(row["kl_base_k1"]) <= 1e-6
    assert row["kl_base_k3"] <= 1e-9
    assert row["kl_update_k3"] <= 1e-9
    assert row["sampling_gap"] <= 1e-4
    assert torch.equal(logits(model), logits(loaded()))
    if structure != "adalora":  # whose masks are zeros on zeros
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_adalora_really_reallocates_its_ranks_to_the_budget(tmp_path):
    """From 3 triplets in each of 21 matrices to 2 on average, unevenly, and they stay pruned."""
    model, rows, _ = train("adalora", tmp_path, 1e-2, steps=10)
    kept = {
        name: int(p.count_nonzero()) for name, p in model.named_parameters() if ".lora_E." in name
    }
    assert len(kept) == 21
    assert sum(kept.values()) == 2 * 21
    assert len(set(kept.values())) > 1
    means = [row["rank_mean"] for row in rows]
    assert means[0] > means[-1] == 2.0
    assert rows[-1]["rank_max"] == max(kept.values()) > 2


def test_adaloras_orthogonality_term_is_in_the_loss(tmp_path):
    """At learning rate 0 and equal rewards there is no other gradient on A and B."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watching(RLVRTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            seen.append(grads)
            return loss

    config = TrainConfig(
        model="tiny", out="unused", task="arithmetic", method="adalora", rank=2, alpha=4,
        learning_rate=0.0, steps=3, prompts_per_step=2, group_size=2, mini_batch_prompts=2,
        micro_batch=2, max_prompt_tokens=24, max_response_tokens=6, overlong_buffer=0,
        save_every=0, patience=0,
    )  # fmt: skip
    problems = arithmetic.problems("train", 8, seed=1)
    prompts = [models.prompt_ids(p, tokenizer()) for p in problems]
    model = orthora.adapt(base(), "adalora", rank=2, alpha=4, total_updates=3)
    stream = Stream(problems, prompts, 0)
    parts = Parts(tokenizer(), model, problems, stream, [], 0, equal, DRAWN)
    Watching(config, parts, World(), tmp_path, lambda row: None).train()
    own = [(n, p) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
    terms = []
    for name, p in own:
        gram = p @ p.T if ".lora_A." in name else p.T @ p
        terms.append((gram - torch.eye(len(gram))).norm())
    expected = torch.autograd.grad(0.5 * torch.stack(terms).mean(), [p for _, p in own])
    accumulated = seen[1]  # after both micro-batches of the first update
    for (name, _), gradient in zip(own, expected, strict=True):
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_larger_rate_for_b_under_lora_plus(tmp_path):
    """With Adam the first update is about the rate, whatever the gradient's size."""
    model, _, before = train("lora-plus", tmp_path, 1e-3, steps=1, lora_plus_ratio=4.0,
                             weight_decay=0.0)  # fmt: skip
    steps = {
        kind: torch.cat([
            (p - before[n]).abs().flatten() for n, p in model.named_parameters() if kind in n
        ]).max().item()
        for kind in (".lora_A.", ".lora_B.")
    }  # fmt: skip
    assert steps[".lora_B."] == pytest.approx(
        2 * 4e-3, rel=0.2
    )  # two updates in the same direction
    assert steps[".lora_A."] <= 2.2e-3


def test_lora_fa_projects_bs_gradient(tmp_path):
    """Against the formula: g s^-2 (A A')^-1, on a layer whose A is far from orthonormal."""
    from orthora.train.optimizers import project_gradients

    model = orthora.adapt(base(), "lora-fa", rank=2, alpha=6)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        A[1] = 0.9 * A[0] + 0.1 * A[1]
    G = torch.randn(B.shape[0], A.shape[1], generator=torch.Generator().manual_seed(0))
    s = 3.0
    B.grad = s * G @ A.detach().T
    project_gradients(model)()
    expected = B.grad
    # nearest to full fine-tuning's step: s g A minimises |s g A - G| over g
    best = torch.linalg.lstsq(s * A.detach().T.double(), G.T.double()).solution.T
    torch.testing.assert_close(expected.double(), best, rtol=1e-3, atol=1e-4)
