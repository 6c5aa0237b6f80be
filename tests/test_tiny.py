import json
import random
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from orthora import tiny
from orthora.tasks.arithmetic import answer, problems, solution, split_of
from orthora.tiny import card, pretrain
from orthora.tiny.network import ANSWER, build_tokenizer


@pytest.fixture(scope="module")
def loaded():
    return tiny.load()


@pytest.fixture(scope="module")
def written():
    return json.loads((tiny.path() / "card.json").read_text())


def test_import_loads_no_transformers():
    code = "import sys, orthora.tiny; print({'torch', 'transformers'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_tokenizer_round_trip_is_exact(loaded):
    _, tokenizer = loaded
    prompts = [p.prompt for p in problems("validation", 100, terms=(2, 3, 4, 5))]
    for text in [*prompts, *(p + solution(p) for p in prompts), "Answer: \n\nAnswer: 7=+-"]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 1 + len(text.replace(ANSWER, "#"))
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids


def test_answer_is_one_token_and_all_else_single_characters(loaded):
    _, tokenizer = loaded
    assert len(tokenizer.encode(ANSWER, add_special_tokens=False)) == 1
    ids = tokenizer.encode("47+5=52\nAnswer: 52", add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in ids] == [*"47+5=52\n", ANSWER, *"52"]


def test_saved_tokenizer_is_the_built_one(loaded):
    _, tokenizer = loaded
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.padding_side == "left"
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_auto_classes_read_the_folder(loaded):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny.path())
    tokenizer = AutoTokenizer.from_pretrained(tiny.path())
    assert type(model) is type(loaded[0])
    text = "47+25-18=47+25=72\n72-18=54\nAnswer: 54"
    assert tokenizer(text)["input_ids"] == loaded[1](text)["input_ids"]


def test_model_is_a_small_qwen2(loaded, written):
    model, tokenizer = loaded
    parameters = sum(p.numel() for p in model.parameters())
    assert model.config.model_type == "qwen2"
    assert model.config.vocab_size == len(tokenizer)
    assert parameters == written["parameters"] <= 2_000_000
    assert sum(f.stat().st_size for f in tiny.path().iterdir()) <= 5_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_generation_samples_the_true_distribution(loaded):
    g = loaded[0].generation_config
    assert (g.do_sample, g.temperature, g.top_k, g.top_p) == (True, 1.0, 0, 1.0)
    assert (g.pad_token_id, g.bos_token_id, g.eos_token_id) == (0, 1, 2)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="reinstall"):
        tiny.load(folder=tmp_path)


def test_a_fresh_measurement_agrees_with_the_card(loaded, written):
    claim = written["measured"]["test, 3 and 4 terms"]
    fresh = card.measure(*loaded, problems("test", 128, seed=99), samples=8, seed=5)
    # Both are means over independent problems: a normal 95 % interval spans 3.92 standard errors,
    # and the difference stays within 4 of its own standard errors but for 1 case in 16000.
    widths = [high - low for low, high in (claim["pass@1_interval"], fresh["pass@1_interval"])]
    error = (sum(w**2 for w in widths)) ** 0.5 / 3.92
    assert abs(fresh["pass@1"] - claim["pass@1"]) < 4 * error
    assert fresh["truncated"] < 0.02


def test_card_keeps_the_promises_of_the_embedded_model(written):
    for split in ("train", "test"):
        claim = written["measured"][f"{split}, 3 and 4 terms"]
        assert 0.25 < claim["pass@1"] < 0.5
        assert claim["pass@8"] > 0.8
        assert claim["truncated"] < 0.02
    assert card.readme(written) == (tiny.path() / "README.md").read_text()
    recipe = json.loads(json.dumps(asdict(pretrain.Recipe())))
    assert written["pretraining"]["recipe"] == recipe  # a changed default wants a new model
    assert written["pretraining"]["steps"] == pretrain.STEPS


def test_rule_wants_the_end_and_the_last_answer():
    def judge(text, ended=True):
        return card.is_correct(card.Response(text, 3, ended), "54")

    assert judge("47+7=54\nAnswer: 54")
    assert judge("Answer: 5\nAnswer:54 ")
    assert not judge("Answer: 54", ended=False)
    assert not judge("Answer: 54\nAnswer: 5")
    assert not judge("54")
    assert not judge("Answer: 054")


def test_faults_are_told_apart():
    texts = ["Answer: 3", "47+25=72\n72-18=64\nAnswer: 64", "40+25=66\nAnswer: 66"]
    found = card.faults([card.Response(t, 9, True) for t in texts])
    assert found == {
        "guessed": 1 / 3,
        "carry_step_right": 1 / 2,
        "carry_forgotten": 1 / 2,
        "plain_step_right": 0,
    }


def test_a_careful_demonstrator_is_faultless_and_a_sloppy_one_is_not():
    careful = pretrain.Recipe(guess=0, forget=0, slip=0)
    rng = random.Random(0)
    rows = problems("train", 200)
    assert all(pretrain.demonstrate(p.prompt, rng, careful) == solution(p) for p in rows)
    sloppy = [pretrain.demonstrate(p.prompt, rng, pretrain.Recipe()) for p in rows]
    right = sum(t.endswith(f"{ANSWER}{p.answer}") for t, p in zip(sloppy, rows, strict=True))
    assert 0.2 < right / len(rows) < 0.7


def test_batches_hold_train_problems_and_label_responses_alone():
    tokenizer = build_tokenizer()
    ids, labels = pretrain._batch(tokenizer, random.Random(0), pretrain.Recipe(batch=64))
    for row, label in zip(ids, labels, strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True)
        response = tokenizer.decode(label[label != pretrain.IGNORED])
        assert response.endswith("<eos>")
        prompt = text.removesuffix(response.removesuffix("<eos>"))
        assert answer(prompt)
        assert split_of(prompt) == "train"


def test_pretraining_repeats_bit_by_bit():
    recipe = pretrain.Recipe(batch=8)
    first, again, other = (
        pretrain.pretrain(3, seed=seed, recipe=recipe, report_every=0).model.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if first[k].ndim == 2)


def test_save_writes_a_whole_folder_once(tmp_path, loaded):
    result = pretrain.pretrain(1, recipe=pretrain.Recipe(batch=2), report_every=0)
    out = tmp_path / "deep" / "model"
    pretrain.save(result, out, {"seed": 0})
    assert [p.name for p in out.parent.iterdir()] == ["model"]
    kept = {p.name for p in tiny.path().iterdir()} - {"card.json", "README.md"}
    assert {p.name for p in out.iterdir()} == kept
    model, _ = tiny.load(torch.bfloat16, out)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="not empty"):
        pretrain.save(result, out, {})
    with pytest.raises(ValueError, match="not empty"):
        pretrain.main(["--out", str(out)])


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="steps is 0"):
        pretrain.pretrain(0)
    with pytest.raises(ValueError, match="threads is 0"):
        pretrain.main(["--out", str(tmp_path), "--threads", "0"])
