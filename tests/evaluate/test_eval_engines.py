"""vLLM behind its door: what is asked of it, and what it is refused. It is not installed here."""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

import orthora
from orthora import tiny
from orthora.evaluate.engines import check_vllm, seed_of

CONFIG = {
    "model": "tiny",
    "task": "arithmetic",
    "problems": 6,
    "samples": 2,
    "max_response_tokens": 30,
    "engine": "vllm",
    "batch": 5,
    "temperature": 0.7,
    "top_p": 0.9,
}


class Engine:
    """What vLLM's LLM is to us; answers every prompt with the seed's last digit."""

    made: ClassVar[list["Engine"]] = []
    lost = 0

    def __init__(self, **settings):
        self.settings, self.calls = settings, []
        Engine.made.append(self)

    def generate(self, prompts, manner, lora_request=None, use_tqdm=True):
        self.calls.append((prompts, manner, lora_request))
        _, tokenizer = tiny.load()
        found = []
        for prompt, how in zip(prompts, manner, strict=True):
            assert tokenizer.decode(prompt["prompt_token_ids"]).endswith("=")
            ids = tokenizer(f"Answer: {how.seed % 10}")["input_ids"]
            reason = "length" if how.seed % 3 == 0 else "stop"
            output = SimpleNamespace(token_ids=ids, finish_reason=reason)
            found.append(SimpleNamespace(outputs=[output] * how.n))
        return found[: len(found) - Engine.lost]


@pytest.fixture
def vllm(monkeypatch):
    module, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = Engine, SimpleNamespace
    lora.LoRARequest = lambda *args: args
    for name, value in (("vllm", module), ("vllm.lora", lora), ("vllm.lora.request", lora)):
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr("orthora.evaluate.engines.find_spec", lambda name: object())
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "lost", 0)
    return Engine


def test_every_sample_is_a_request_with_a_seed_of_its_own(vllm, tmp_path):
    result = orthora.evaluate(CONFIG | {"out": str(tmp_path / "e")})
    (engine,) = vllm.made
    assert engine.settings["dtype"] == "float32"
    assert "enable_lora" not in engine.settings
    manners = [how for _, manner, _ in engine.calls for how in manner]
    assert [len(manner) for _, manner, _ in engine.calls] == [5, 5, 2]
    assert len({how.seed for how in manners}) == 12
    settings = {(how.n, how.temperature, how.top_p, how.top_k) for how in manners}
    assert settings == {(1, 0.7, 0.9, -1)}
    assert result.samples == 2
    rows = [json.loads(x) for x in (tmp_path / "e" / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["text"] == f"Answer: {seed_of(0, row['key']) % 10}"
        assert row["ended"] == (seed_of(0, row["key"]) % 3 != 0)
    assert 0 < result.truncated < 1


def test_only_what_is_missing_is_asked_for(vllm, tmp_path):
    out = tmp_path / "e"
    whole = orthora.evaluate(CONFIG | {"out": str(out)})
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(lines[:7]))
    assert orthora.evaluate(CONFIG | {"out": str(out)}) == whole
    assert sum(len(prompts) for prompts, _, _ in vllm.made[1].calls) == 5


def test_fewer_samples_than_asked_for_are_an_error(vllm, monkeypatch, tmp_path):
    monkeypatch.setattr(vllm, "lost", 1)
    with pytest.raises(ValueError, match="returned 4 samples where 5 were asked for"):
        orthora.evaluate(CONFIG | {"out": str(tmp_path / "e")})


def test_a_plain_adapter_is_served_and_an_odd_one_refused(vllm, tmp_path):
    model, _ = tiny.load()
    folder = orthora.export_plain(orthora.adapt(model, "rlpo", rank=3), tmp_path / "adapter")
    given = CONFIG | {"adapter": str(folder), "any_base": True}
    with pytest.raises(ValueError, match="16 bits only; set dtype 'bfloat16'"):
        orthora.evaluate(given)
    orthora.evaluate(given | {"dtype": "bfloat16"})
    (engine,) = vllm.made
    assert (engine.settings["enable_lora"], engine.settings["max_lora_rank"]) == (True, 8)
    assert all(request == ("adapter", 1, str(folder)) for _, _, request in engine.calls)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text())
    for change, word in (
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"bias": "all"}, "bias"),
        ({"r": 1024}, "rank 1024"),
    ):
        file.write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=rf"can't serve.*{word}.*--form merged"):
            check_vllm(folder, "bfloat16")


def test_what_is_longer_than_the_model_is_refused_before_the_engine_starts(vllm):
    with pytest.raises(ValueError, match="exceed the 256 positions of 'tiny'"):
        orthora.evaluate(CONFIG | {"max_response_tokens": 5_000})
    assert not vllm.made


def test_without_vllm_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"pip install vllm .*or use engine 'transformers'"):
        orthora.evaluate(CONFIG)


def test_seeds_differ_by_seed_and_key():
    seeds = {seed_of(seed, key) for seed in range(30) for key in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_adapter_is_used(tmp_path):
    """Folded or not, the samples are those of the adapted model."""
    from orthora.evaluate.run import score
    from orthora.sampling import Sampling
    from orthora.tasks import arithmetic

    model, tokenizer = tiny.load()
    adapted = orthora.adapt(model, "rlpo", rank=2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    folder = orthora.export_plain(adapted, tmp_path / "adapter")
    transformers = CONFIG | {"engine": "transformers"}
    given = orthora.evaluate(transformers | {"adapter": str(folder)})
    problems = arithmetic.problems("test", 6)
    how = Sampling(max_tokens=30, temperature=0.7, top_p=0.9, batch=5)
    assert given.mean_length == score(adapted, tokenizer, problems, how, 2).mean_length
    assert given.mean_length != orthora.evaluate(transformers).mean_length
