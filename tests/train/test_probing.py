"""The probe: what it says of a step is what a run's first step does."""

import json
import math

import pytest

import orthora
from orthora.config import read_toml
from orthora.train.probing import probe
from orthora.train.trials import following_rate

SMALL = {
    "prompts_per_step": 6,
    "group_size": 4,
    "mini_batch_prompts": 3,
    "rank": 2,
    "max_response_tokens": 32,
    "eval_problems": 0,
    "threads": 1,
    "learning_rate": 1e-3,
    "dynamic_sampling": False,
}


def settings(**changes) -> dict:
    return read_toml("tiny") | SMALL | {"out": "never made"} | changes


def first_row(out, **changes) -> dict:
    config = settings(out=str(out), steps=1, kl_update_share=1.0, **changes)  # as a probe measures
    orthora.train(config, progress=False)
    return json.loads((out / "metrics.jsonl").read_text())


pytestmark = pytest.mark.xdist_group("probing")  # one worker makes what all look at


@pytest.fixture(scope="module")
def found():
    return {p.method: p for p in probe(settings(), ["lora", "pissa", "rlmo"], rollouts=1)}


@pytest.mark.parametrize("method", ["lora", "pissa", "rlmo"])
def test_its_step_is_the_first_step_of_a_run(method, found, tmp_path):
    row = first_row(tmp_path / "run", method=method)
    one = found[method]
    assert one.kl == row["kl_update_k3"]
    assert one.first_update_norm == row["first_update_norm"]
    assert one.update_norms["all"] == row["update_norm"]
    assert one.update_norms["q_proj"] == row["update_norm/q_proj"]


@pytest.mark.parametrize("method", ["pissa", "rlmo"])
def test_at_the_matched_rate_a_run_moves_the_policy_as_far_as_the_first_method(
    method, found, tmp_path
):
    """Bit for bit what the probe measured: every trial was taken back without a trace."""
    one, target = found[method], found["lora"].kl
    assert 1 / 1.15 <= one.matched_kl / target <= 1.15
    row = first_row(tmp_path / "run", method=method, learning_rate=one.matched_learning_rate)
    assert row["kl_update_k3"] == one.matched_kl


def test_norms_relate_as_the_pilot_found_and_principal_directions_move_the_policy_most(found):
    lora, pissa = found["lora"], found["pissa"]
    assert 1.2 < pissa.first_update_norm / lora.first_update_norm < 4.0
    assert pissa.kl > 5 * lora.kl
    assert pissa.matched_learning_rate < lora.learning_rate
    assert lora.matched_learning_rate == lora.learning_rate  # it is what the others are matched to


def test_full_training_is_probed_as_well():
    (one,) = probe(settings(learning_rate=1e-5), ["full"], rollouts=1, target_kl=1e-5)
    assert one.update_norms["all"] > 0
    assert one.matched_learning_rate is not None


def test_rollouts_are_averaged():
    (one,) = probe(settings(), ["lora"], rollouts=3, trials=1)
    assert len(one.kl_by_rollout) == 3
    assert one.kl == pytest.approx(sum(one.kl_by_rollout) / 3)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("start", [1e-7, 1e-3, 1.0])
def test_the_search_meets_the_target_for_any_power_law(power, start):
    target = 2e-3
    trials = [(start, 3e3 * start**power)]
    for _ in range(12):
        lr = following_rate(trials, target, (1e-12, 10.0))
        if lr is None:
            break
        trials.append((lr, 3e3 * lr**power))
    else:
        pytest.fail(f"not met: {trials}")
    assert len(trials) <= 10


def test_the_search_stays_in_its_bracket_and_its_bounds():
    low, high = (1e-4, 1e-4), (1e-3, 1.0)
    assert 1e-4 < following_rate([low, high], 2e-3, (1e-9, 0.1)) < 1e-3
    assert following_rate([low, (1e-3, math.nan)], 2e-3, (1e-9, 0.1)) == pytest.approx(10**-3.5)
    assert following_rate([(1e-3, 1e-9)], 2e-3, (1e-9, 5e-3)) == 5e-3
    assert following_rate([(1e-3, 2.1e-3)], 2e-3, (1e-9, 0.1)) is None


def test_no_signal_and_bad_targets_are_one_line():
    with pytest.raises(ValueError, match=r"no group of the rollouts has a signal.*nearer"):
        probe(settings(max_response_tokens=1), ["lora"])
    with pytest.raises(ValueError, match="above 0"):
        probe(settings(), ["lora"], target_kl=-1.0)
    with pytest.raises(ValueError, match="at least 1 rollout"):
        probe(settings(), [], rollouts=1)
    with pytest.raises(ValueError, match="set one above 0"):
        probe(settings(learning_rate=0.0), ["lora"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1e5, "method": "pissa"}, "at learning rate 100000 breaks the policy"),
        ({"learning_rate": 1e-12}, "rounding; raise it"),
        ({"learning_rate": 1e-6, "dtype": "bfloat16"}, "rounding, not the step; .* 'float32'"),
    ],
)
def test_a_first_method_whose_step_is_no_measure_is_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        probe(settings(**changes), [changes.get("method", "lora"), "rlmo"], rollouts=1)
    assert "\n" not in str(error.value)


def test_norms_of_bfloat16_are_matched_whatever_the_kl_is(tmp_path):
    config = settings(
        out=str(tmp_path / "run"), method="pissa", learning_rate="match-norm:lora@1e-6", steps=1,
        dtype="bfloat16",
    )  # fmt: skip
    result = orthora.train(config, progress=False)
    assert 1e-7 < result.learning_rate < 1e-6


def test_a_step_of_bfloat16_that_is_more_than_rounding_is_matched():
    one, other = probe(settings(dtype="bfloat16"), ["lora", "rlmo"], rollouts=1)
    (rate, kl), (lower, less) = one.trials
    assert (rate, lower) == (1e-3, 2.5e-4)
    assert (one.kl, one.matched_kl) == (kl, kl)
    assert kl > 4 * less
    assert 1 / 1.15 <= other.matched_kl / kl <= 1.15


def test_a_trial_that_breaks_the_policy_is_one_among_others(found, monkeypatch):
    """PiSSA at a rate at which its loss is no number, matched to a KL that LoRA causes."""
    target = found["lora"].kl
    (one,) = probe(settings(learning_rate=1e5), ["pissa"], target_kl=target, rollouts=1, trials=12)
    assert one.kl == math.inf
    assert (one.kl_by_rollout, one.first_update_norm) == ([], None)
    assert one.trials[0] == (1e5, math.inf)
    assert 1 / 1.15 <= one.matched_kl / target <= 1.15
    assert one.matched_learning_rate < 1e-3


def test_an_own_reward_is_the_one_that_is_probed(tmp_path):
    """Every answer would be wrong to the verifier, which would leave no signal."""
    asked = []

    def reward(response: str, answer: str) -> float:
        asked.append(response)
        return float(sum(map(ord, response)) % 2)

    config = settings(
        out=str(tmp_path / "run"), method="pissa", learning_rate="match-kl:lora@1e-3", steps=1,
        max_response_tokens=8,
    )  # fmt: skip
    orthora.train(config, reward=reward, progress=False)
    probed, (row, *_) = 2 * 24, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(asked) == probed + 24
    assert json.loads(row)["groups_without_signal"] < 1


@pytest.mark.parametrize("what", ["kl", "norm"])
def test_a_run_takes_the_learning_rate_that_matches_and_keeps_it(what, found, tmp_path):
    out = tmp_path / "run"
    config = settings(
        out=str(out), method="pissa", learning_rate=f"match-{what}:lora@1e-3", steps=2, save_every=1
    )
    result = orthora.train(config, progress=False)
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert row["lr"] == result.learning_rate < 1e-3
    probes = json.loads((out / "probe.json").read_text())
    assert [one["method"] for one in probes] == ["lora", "pissa"]
    if what == "norm":
        assert row["first_update_norm"] == pytest.approx(found["lora"].first_update_norm, rel=0.05)
    else:
        assert 1 / 1.15 <= probes[1]["matched_kl"] / probes[0]["kl"] <= 1.15
    text = (out / "config.toml").read_text()
    assert f'learning_rate_match = "{what}:lora@0.001"' in text
    for path in (out / "adapter").iterdir():
        path.unlink()
    (out / "result.json").unlink()
    again = orthora.train(config, resume=True, progress=False)  # without another probe
    assert again.learning_rate == result.learning_rate
    assert again.steps == 2


@pytest.mark.parametrize(
    "text", ["match-kl:lora", "match-kl:@1e-5", "match-kl:lora@-1", "match-size:lora@1e-5", "fast"]
)
def test_a_match_of_another_form_is_one_line(text, tmp_path):
    with pytest.raises(ValueError, match=r"learning.rate|unknown method"):
        orthora.train(settings(out=str(tmp_path / "run"), learning_rate=text))
    assert not (tmp_path / "run").exists()


def test_a_norm_that_is_not_known_is_one_line(tmp_path):
    config = settings(
        out=str(tmp_path / "run"), method="vera", learning_rate="match-norm:lora@1e-3"
    )
    with pytest.raises(ValueError, match="no norm of an update is known for both lora and vera"):
        orthora.train(config, progress=False)
