"""Rollouts by vLLM through TRL, with a stand-in for vLLM itself, which no CPU run can have.

The stand-in takes weights by name into a model of its own, as vLLM does, and samples from it with
noise in its log-probabilities: if the policy were not served exactly, or under another name, the
log-probabilities would tell.
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import logits, make_model, snapshot
from trl.trainer import grpo_trainer

import orthora
from orthora.adapters.fold import base_parameters
from orthora.config import TrainConfig, read_toml
from orthora.models import load_model
from orthora.sampling import Sampling, Vocabulary, sample
from orthora.train import engines
from orthora.train.engines import serve_merged_weights
from orthora.train.settings import rules_of
from orthora.train.world import World

NOISE = 0.01  # nats, in every log-probability of the stand-in


class StandIn:
    """`VLLMGeneration` with a transformers model behind it.

    Attributes:
        syncs: times that weights were taken.
        drawn: responses so far.
    """

    latest: "StandIn"

    def __init__(self, *, model, max_completion_length, temperature, processing_class, **_):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._served = load_model("tiny", "float32", "cpu")
        assert type(self._served) is type(base)
        self._names = {name for name, _ in self._served.named_parameters()}
        self._limit, self._temperature = max_completion_length, temperature
        self._ends = Vocabulary((processing_class.eos_token_id,), processing_class.pad_token_id)
        self.syncs = self.drawn = 0
        StandIn.latest = self

    def sync_weights(self):
        with torch.no_grad():
            taken = dict.fromkeys(self._names)
            for name, value in self._iter_named_params():
                assert name in taken, f"vLLM knows no {name}"
                self._served.get_parameter(name).copy_(value)
                del taken[name]
        assert not taken, f"vLLM never got {sorted(taken)[:3]}"
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler):
        assert images is None
        distinct = prompts[::num_generations]
        assert prompts == [p for p in distinct for _ in range(num_generations)]
        keys = [[self.drawn + i] for i in range(len(prompts))]
        self.drawn += len(prompts)
        how = Sampling(max_tokens=self._limit, temperature=self._temperature, seed=1)
        responses = {
            index: response
            for index, _, response in sample(self._served, prompts, keys, how, self._ends)
        }
        ids = [responses[i].ids.tolist() for i in range(len(prompts))]
        logps = [[[x - NOISE] for x in responses[i].logps.tolist()] for i in range(len(prompts))]
        logps[0][0][0] = None  # vLLM cannot always say
        return prompts, ids, logps, None


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", StandIn)
    monkeypatch.setattr(engines, "find_spec", lambda name: name)
    return StandIn


SMALL = {
    "engine": "vllm",
    "prompts_per_step": 4,
    "dynamic_sampling": False,
    "group_size": 4,
    "mini_batch_prompts": 2,
    "micro_batch": 8,
    "rank": 2,
    "max_response_tokens": 24,
    "eval_problems": 0,
    "threads": 1,
    "learning_rate": 1e-2,
}
SERVED = ["rlpo", "geora", "adalora", "full"]
SERVED_TOO = ["pissa", "rlpo+dora", "vera", "miss", "ia3", "ln"]


@pytest.mark.parametrize(
    "method", [*SERVED, *(pytest.param(name, marks=pytest.mark.slow) for name in SERVED_TOO)]
)
def test_every_structure_is_served_merged_and_corrected_by_importance_weights(
    method, tmp_path, stand_in
):
    """The trainer's scores differ from the engine's by the noise alone, at every step."""
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / "run"), "method": method}
    result = orthora.train(config | {"steps": 3}, progress=False)
    assert stand_in.latest.syncs == 3
    rows = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["sampling_gap"] == pytest.approx(NOISE, abs=1e-3)
        assert math.isfinite(row["loss"])
    assert result.mean_kl_update is not None
    assert result.mean_kl_update > 0
    assert rows[-1]["kl_base_k3"] > 1e-8  # it has moved, and was served where it went


def test_weights_are_sent_without_a_trace_in_the_base():
    """TRL merges in place and unmerges after, which leaves rounding."""
    model = orthora.adapt(make_model("qwen2", torch.bfloat16), "pissa", rank=4, alpha=4.0)
    before, weights = logits(model), snapshot(model)
    base = {name: p.data_ptr() for name, p in base_parameters(model)}
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        model=model,
        vllm_generation=SimpleNamespace(),
    )
    serve_merged_weights(trainer)
    for _ in range(2):
        sent = {n: p.clone() for n, p in trainer.vllm_generation._iter_named_params()}
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[name]) for name, value in snapshot(model).items())
    assert {name: p.data_ptr() for name, p in base_parameters(model)} == base
    plain = make_model("qwen2", torch.bfloat16)
    assert sent.keys() == dict(plain.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(sent[name])
    assert float((logits(plain) - before).abs().max()) < 0.05 * float(before.abs().max())


def test_importance_weights_are_what_the_loss_sees(tmp_path, stand_in):
    """With the cap at 0 they are off; the noise is the same in all tokens, and so is the factor."""
    config = read_toml("tiny") | SMALL | {"steps": 1, "method": "rlpo"}
    on = orthora.train(config | {"out": str(tmp_path / "on")}, progress=False)
    off = orthora.train(
        config | {"out": str(tmp_path / "off"), "importance_cap": 0.0}, progress=False
    )
    capped = orthora.train(
        config | {"out": str(tmp_path / "capped"), "importance_cap": 0.5}, progress=False
    )
    assert on.final["reward"] == off.final["reward"]
    ratio = on.final["grad_norm"] / off.final["grad_norm"]
    assert 1.0 < ratio <= math.exp(NOISE) * 1.02
    # a second update sees another policy, so that the halves are not exact
    assert capped.final["grad_norm"] / off.final["grad_norm"] == pytest.approx(0.5, rel=0.05)


def test_prompts_are_drawn_in_equal_numbers_for_every_process(tmp_path):
    """vLLM's server slices by process, and colocated engines gather: both need equal shares."""
    config = TrainConfig(**read_toml("tiny") | SMALL | {"out": str(tmp_path)})
    assert rules_of(config, World(0, 3), sharded=False).multiple == 3
    own = config.model_copy(update={"engine": "transformers"})
    assert rules_of(own, World(0, 3), sharded=False).multiple == 1
    assert rules_of(own, World(0, 3), sharded=True).multiple == 3
