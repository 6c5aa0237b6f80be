"""Named tasks in training: which problems, which judge, what the run folder says of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import orthora
from orthora.config import TrainConfig, build, read_toml, to_toml
from orthora.rewards import SandboxError, check_programs, launch
from orthora.sampling import Response
from orthora.tasks import arithmetic, load_task
from orthora.tasks.named import TASKS
from orthora.tasks.statements import MATH_TEMPLATE
from orthora.train.collect import Collector, Rules
from orthora.train.probing import probe
from orthora.train.problems import held_out_problems, training_problems
from orthora.train.rewards import own_judge, verdict_judge
from orthora.train.rollouts import Stream
from orthora.train.world import World
from orthora.types import Problem, Verdict

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MINIMAL = {"model": "tiny", "out": "x"}
SMALL = {
    "model": "tiny", "method": "lora", "rank": 2, "alpha": 4, "learning_rate": 1e-3, "steps": 2,
    "prompts_per_step": 2, "group_size": 2, "mini_batch_prompts": 2, "micro_batch": 4,
    "max_prompt_tokens": 90, "max_response_tokens": 8, "overlong_buffer": 0, "save_every": 1,
    "threads": 1, "geometry": False,
}  # fmt: skip
ADD = Problem("Add.", "", "add", ("assert add(1, 2) == 3", "assert add(-1, 1) == 0"))
GOOD, BAD = "```python\ndef add(a, b):\n    return a + b\n```", "def add(a, b):\n    return 3"


def data_file(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    return str(path)


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(**changes) -> TrainConfig:
    return build(TrainConfig, MINIMAL | changes)


def gsm8k_file(path: Path, *numbers: int) -> str:
    """Rows with the question n+n and its gold."""
    return write(path, *({"question": f"{n}+{n}=", "answer": f"#### {2 * n}"} for n in numbers))


# Settings


def test_names_of_tasks_are_canonical_and_survive_toml(tmp_path):
    config = config_of(task="DAPO_Math", eval_task="AIME24", eval_problems=2, drop=["duplicates"])
    assert (config.task, config.eval_task, config.drop) == ("dapo-math", "aime24", ("duplicates",))
    (tmp_path / "a.toml").write_text(to_toml(config))
    assert build(TrainConfig, tmp_path / "a.toml") == config


@pytest.mark.parametrize("known", TASKS.values(), ids=TASKS)
def test_every_task_trains_on_a_split_that_it_has(known):
    for split in known.splits if known.hub else ("train",):
        assert config_of(task=known.name, data_split=split).data is None
    assert config_of(task="file", data="a.jsonl").task == "file"


MISTAKES = [
    ({"task": "gsm8"}, ["unknown task 'gsm8'", "Did you mean 'gsm8k'?", "'file'"]),
    ({"task": "arithmetics"}, ["Did you mean 'arithmetic'?"]),
    ({"task": "mbpp", "eval_problems": 1, "eval_task": "amie24"}, ["Did you mean 'aime24'?"]),
    ({"task": "mbpp", "eval_problems": 1, "eval_task": "file"}, ["eval_task 'file'", "eval_data"]),
    ({"task": "math500"}, ["no split 'train'", "data_split of: test"]),
    ({"task": "gsm8k", "data_split": "dev"}, ["no split 'dev'", "test, train"]),
    ({"task": "gsm8k", "prompt_column": "q"}, ["prompt_column 'q'", "'gsm8k'", "own columns"]),
    ({"task": "mbpp", "answer_column": "a"}, ["answer_column 'a'", "'mbpp'", "leave"]),
    ({"task": "arithmetic", "prompt_column": "q"}, ["prompt_column 'q'", "draws its problems"]),
    ({"task": "arithmetic", "drop": ["duplicates"]}, ["drop ('duplicates',)", "draws its"]),
    ({"task": "arithmetic", "prompt_template": "Q: {prompt}"}, ["prompt_template", "draws its"]),
    ({"task": "arithmetic", "data_split": "test"}, ["data_split 'test'", "draws its"]),
    ({"task": "gsm8k", "drop": ["twins"]}, ["drop", "'twins'"]),
    ({"task": "mbpp", "reward_rule": "dapo"}, ["reward_rule 'dapo'", "'mbpp'", "tests"]),
    ({"task": "gsm8k", "eval_task": "aime24"}, ["eval_task needs eval_problems"]),
    ({"task": "gsm8k", "eval_data": "a.jsonl"}, ["eval_data needs eval_problems"]),
    ({"task": "dapo-math", "eval_problems": 9}, ["train split of task 'dapo-math'", "eval_task"]),
    ({"task": "gsm8k", "data_split": "test", "eval_problems": 9}, ["test split", "eval_task"]),
    (
        {"task": "aime24", "data": "a.jsonl", "eval_data": "a.jsonl", "eval_problems": 9},
        ["train split of task 'aime24'", "eval_task"],
    ),
    (
        {"task": "gsm8k", "eval_task": "arithmetic", "eval_data": "a", "eval_problems": 9},
        ["'arithmetic' is procedural", "leave eval_data out"],
    ),
    ({"task": "file", "data": "a.jsonl", "eval_problems": 9}, ["eval_data", "name an eval_task"]),
    ({"task": "arithmetic", "eval_data": "a"}, ["eval_data needs task 'file', or an eval_task"]),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES)
def test_settings_that_do_not_go_together_are_one_line(changes, words):
    with pytest.raises(ValueError, match=r".+") as error:
        config_of(**changes)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rule_for_answers_is_taken_where_held_out_answers_need_it():
    held_out = {"eval_task": "aime24", "eval_problems": 3}
    assert config_of(task="mbpp", reward_rule="dapo", **held_out).reward_rule == "dapo"
    with pytest.raises(ValueError, match="reward_rule 'dapo'"):
        config_of(task="mbpp", reward_rule="dapo", **held_out | {"eval_task": "mbpp-sanitized"})


def test_a_probe_of_a_run_with_held_out_problems_leaves_them_out():
    held_out = {"eval_task": "gsm8k", "eval_problems": 1, "eval_data": "nowhere.jsonl"}
    longer = {"max_response_tokens": 56, "group_size": 8, "out": "x"}
    config = build(TrainConfig, {**SMALL, "task": "arithmetic", **longer, **held_out})
    (found,) = probe(config, ["lora"], rollouts=1, trials=1)
    assert found.kl > 0


# Problems


def test_arithmetic_draws_what_it_always_drew():
    problems, source = training_problems(config_of(task="arithmetic", train_problems=5, seed=3))
    assert problems == arithmetic.problems("train", 5, seed=3)
    assert (source.task, source.data, source.split, source.read) == ("arithmetic", None, "train", 5)
    held_out, _ = held_out_problems(config_of(task="arithmetic", eval_problems=4))
    assert held_out == arithmetic.problems("test", 4)
    named = config_of(task="file", data="a", eval_task="arithmetic", eval_problems=4)
    assert held_out_problems(named)[0] == held_out


def test_without_a_file_the_hub_is_asked_for_the_training_and_the_evaluation_split(monkeypatch):
    asked = []

    def load_dataset(path, name=None, split=None, **_):
        asked.append((path, name, split))
        return Dataset.from_list([{"question": f"{i}?", "answer": f"#### {i}"} for i in range(5)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    config = config_of(task="gsm8k", eval_problems=2)
    problems, source = training_problems(config)
    held_out, scored = held_out_problems(config)
    hub = "openai/gsm8k"
    assert asked == [(hub, "main", "train"), (hub, "main", "test")]
    assert (source.data, source.split, len(problems)) == (hub, "train", 5)
    assert (scored.data, scored.split, len(held_out)) == (hub, "test", 2)
    training_problems(config_of(task="gsm8k", data_split="test", data="someone/gsm8k"))
    assert asked[-1] == ("someone/gsm8k", None, "test")


def test_held_out_problems_are_never_read_from_the_file_that_is_trained_on(tmp_path, monkeypatch):
    asked = []

    def load_dataset(path, name=None, split=None, **_):
        asked.append((path, split))
        raise ConnectionError("no hub here")

    file = gsm8k_file(tmp_path / "a.jsonl", 1, 2)
    config = config_of(task="gsm8k", data=file, eval_problems=2)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"held-out problems \(eval_task, eval_data\): can't read"):
        held_out_problems(config)
    assert asked == [("openai/gsm8k", "test")]
    with pytest.raises(ValueError, match=r"would be trained on and scored; give a held-out file"):
        held_out_problems(config.model_copy(update={"eval_data": file}))


def test_fewer_held_out_problems_than_asked_for_are_refused(tmp_path):
    file = gsm8k_file(tmp_path / "a.jsonl", 1, 2)
    config = config_of(task="arithmetic", eval_task="gsm8k", eval_data=file, eval_problems=3)
    with pytest.raises(ValueError, match=r"eval_problems is 3, and .*a\.jsonl has 2; lower it"):
        held_out_problems(config)


def test_a_file_a_folder_and_a_task_of_its_own_are_scored(tmp_path):
    train, test = (gsm8k_file(tmp_path / f"{n}.jsonl", *range(n, n + 3)) for n in (1, 7))
    config = config_of(task="gsm8k", data=train, eval_data=test, eval_problems=2)
    assert [p.answer for p in training_problems(config)[0]] == ["2", "4", "6"]
    problems, source = held_out_problems(config)
    assert [p.answer for p in problems] == ["14", "16"]
    assert (source.task, source.data, source.split) == ("gsm8k", test, None)  # it is read whole
    folder = tmp_path / "both"
    folder.mkdir()
    gsm8k_file(folder / "train.jsonl", 1)
    gsm8k_file(folder / "test.jsonl", 2)
    config = config_of(task="gsm8k", data=str(folder), eval_problems=1)
    assert [p.answer for p in training_problems(config)[0]] == ["2"]
    problems, source = held_out_problems(config)
    assert ([p.answer for p in problems], source.split) == (["4"], "test")
    other = config_of(task="file", data="a", eval_task="gsm8k", eval_data=test, eval_problems=1)
    assert [p.answer for p in held_out_problems(other)[0]] == ["14"]


def test_the_template_is_the_tasks_own_unless_it_is_changed(tmp_path):
    files = [gsm8k_file(tmp_path / f"{n}.jsonl", n) for n in (1, 2)]
    settings = {"task": "gsm8k", "data": files[0], "eval_data": files[1], "eval_problems": 1}
    own = config_of(**settings)
    changed = config_of(**settings, prompt_template="Q: {prompt}\nA:")
    for read, question in ((training_problems, "1+1="), (held_out_problems, "2+2=")):
        assert read(own)[0][0].prompt == MATH_TEMPLATE.replace("{prompt}", question)
        assert read(changed)[0][0].prompt == f"Q: {question}\nA:"
    other = {**settings, "task": "file", "eval_task": "gsm8k", "prompt_template": "Q: {prompt}"}
    (problem,), source = held_out_problems(config_of(**other))
    assert problem.prompt == MATH_TEMPLATE.replace("{prompt}", "2+2=")  # Q: is for the file's rows
    assert source.template == MATH_TEMPLATE


def test_mbpp_files_hold_all_splits_and_none_is_in_another():
    file = data_file("mbpp/mbpp.jsonl")
    config = config_of(task="mbpp", data=file, eval_problems=500)
    (problems, source), (held_out, scored) = training_problems(config), held_out_problems(config)
    assert (len(problems), len(held_out)) == (374, 500)
    assert (source.split, scored.split, scored.data) == ("train", "test", file)
    assert not {p.id for p in problems} & {p.id for p in held_out}
    same = held_out_problems(config.model_copy(update={"eval_data": file}))
    assert same == (held_out, scored)


def test_rows_are_dropped_and_counted(tmp_path):
    rows = [("1+1=", "2"), ("1+1=", "2"), ("1+2=", "3"), ("1+2=", "4"), ("2+2=", "4")]
    file = write(tmp_path / "a.jsonl", *({"prompt": p, "answer": a} for p, a in rows))
    left = {(): 5, ("duplicates",): 4, ("contradictions",): 3, ("duplicates", "contradictions"): 2}
    for drop, count in left.items():
        problems, source = training_problems(config_of(task="file", data=file, drop=drop))
        assert (len(problems), source.read, source.dropped) == (count, 5, 5 - count)


def test_dapo_math_without_its_repetitions_and_contradictions():
    file = data_file("dapo_math_17k/dapo_math_17k.parquet")
    config = config_of(task="dapo-math", data=file, drop=("duplicates", "contradictions"))
    problems, source = training_problems(config)
    assert problems == load_task("dapo-math", file, drop=config.drop)
    assert source.read == 17_917
    assert source.dropped == source.read - len(problems) > 717


# Verdicts


def test_reference_programs_get_plus_one_and_others_minus_one():
    problems = load_task("mbpp", data_file("mbpp/mbpp.jsonl"), "train", count=12)
    problems += load_task("mbpp-sanitized", data_file("mbpp/sanitized-mbpp.json"), count=12)
    judge = verdict_judge("robust")
    assert {one.score for one in judge([p.answer for p in problems], problems)} == {1.0}
    shifted = [*problems[1:], problems[0]]
    assert {one.score for one in judge([p.answer for p in shifted], problems)} == {-1.0}


def test_answers_and_programs_in_one_batch_keep_their_places():
    answer = Problem("1+1=", "2", "two")
    judged = verdict_judge("robust")(
        [GOOD, "Answer: 2", BAD, "Answer: 3", "no program"], [ADD, answer, ADD, answer, ADD]
    )
    assert [one.score for one in judged] == [1.0, 1.0, -1.0, -1.0, -1.0]
    assert [one.passed for one in judged] == [True, True, False, False, False]


def test_the_collector_scores_programs():
    """Responses are indices of texts: of every group the first one passes."""
    texts = [GOOD, BAD]
    stream = Stream([ADD, replace(ADD, id="again")], [[1], [2]], 0)

    def generate(prompts, keys):
        return [[Response(torch.tensor([k % 2]), torch.zeros(1), True) for k in ks] for ks in keys]

    rules = Rules(2, 2, False, False, 1, 1, False, 1, 10, 0, 1.0, 0)
    judge = verdict_judge("robust")
    made = Collector(stream, generate, lambda ids: texts[ids[0]], judge, rules, World())
    for group in made.collect().groups:
        assert [(a.score, a.passed) for a in group.answers] == [(1.0, True), (-1.0, False)]


@pytest.mark.parametrize("how", ["none", "error"])
def test_a_sandbox_that_fails_is_no_score(how, monkeypatch):
    def failing(responses, problems, **_):
        if how == "error":
            raise SandboxError("no\nmemory")
        return [Verdict(True, GOOD, "passed"), None]

    monkeypatch.setattr("orthora.train.rewards.verdicts_of", failing)
    with pytest.raises(ValueError, match=r"says nothing about the program.*--resume") as error:
        verdict_judge("robust")([GOOD, GOOD], [ADD, replace(ADD, id="second")])
    assert ("'second'" if how == "none" else "no memory") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_own_reward_is_called_with_the_reference_program_in_order():
    seen = []
    judge = own_judge(lambda response, answer: seen.append((response, answer)) or len(seen))
    problem = replace(ADD, answer="def add(a, b): ...")
    assert [one.score for one in judge(["a", "b"], [problem, ADD])] == [1.0, 2.0]
    assert seen == [("a", "def add(a, b): ..."), ("b", "")]


def test_tests_that_the_judge_does_not_know_are_refused_before_the_run():
    odd = replace(ADD, id="odd", tests=("assert add(1, 2).real == 3",))
    with pytest.raises(ValueError, match=r"problem 'odd': .*leave it out"):
        check_programs([ADD, odd])


# Runs


def run(tmp_path, **changes):
    config = SMALL | {"out": str(tmp_path / "run")} | changes
    return orthora.train(config, progress=False), tmp_path / "run"


def mbpp_run(tmp_path, **changes):
    return run(tmp_path, task="mbpp", data=data_file("mbpp/mbpp.jsonl"), **changes)


def test_two_steps_on_programs(tmp_path):
    """The embedded model writes digits: no program, so every score is -1."""
    result, folder = mbpp_run(tmp_path)
    assert (result.status, result.steps, result.final["pass_rate"]) == ("finished", 2, 0.0)
    assert result.final["reward"] == -1.0
    record = json.loads((folder / "problems.json").read_text())
    assert record["data"] == str((DATA / "mbpp" / "mbpp.jsonl").resolve())
    assert (record["task"], record["split"], record["read"]) == ("mbpp", "train", 374)
    assert record["problems"] == 374 - result.dropped_prompts < 374
    assert "{tests}" in record["prompt_template"]
    assert record["example"]["prompt"].endswith("Write the whole program in one ```python block.")
    assert record["example"]["answer"].startswith("def ") or "\ndef " in record["example"]["answer"]
    assert record["held_out"] is None


def test_programs_that_pass_are_rewarded_in_a_run(tmp_path, monkeypatch):
    """The tokens are the model's; the first response of each group says the reference solution."""
    problems = {p.id: p for p in load_task("mbpp", data_file("mbpp/mbpp.jsonl"), "train")}

    class Helped(Collector):
        def _answer(self, prompts, seconds):
            said = [t for _, p, _ in prompts for t in (problems[p.id].answer, "no program")]
            self.decode = lambda ids: said.pop(0)
            return super()._answer(prompts, seconds)

    monkeypatch.setattr("orthora.train.trainer.Collector", Helped)
    result, _ = mbpp_run(tmp_path, steps=1)
    assert result.final["pass_rate"] == 0.5
    assert result.final["groups_without_signal"] == 0.0
    assert result.peak_grad_norm > 0


@pytest.fixture(name="no_bubblewrap")
def _no_bubblewrap(monkeypatch):
    monkeypatch.setattr("orthora.rewards.sandbox.time.sleep", lambda _: None)
    monkeypatch.setattr("orthora.rewards.launch.shutil.which", lambda _: None)
    launch._parts.cache_clear()
    yield
    launch._parts.cache_clear()


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_bubblewrap_a_run_on_programs_is_refused_before_it_begins(tmp_path):
    with pytest.raises(ValueError, match=r"can't be judged here: .*apt-get install") as error:
        mbpp_run(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    file = data_file("mbpp/mbpp.jsonl")
    with pytest.raises(ValueError, match="apt-get install bubblewrap"):  # held-out programs as well
        run(tmp_path, task="arithmetic", eval_task="mbpp", eval_data=file, eval_problems=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_bubblewrap_an_own_reward_and_answers_go_on(tmp_path):
    reward = tmp_path / "mine.py"
    reward.write_text("def longer(response, answer):\n    return float(len(response))\n")
    result, _ = mbpp_run(tmp_path, reward=f"{reward}:longer", steps=1)
    assert result.status == "finished"
    result, _ = run(tmp_path / "b", task="arithmetic", steps=1)
    assert result.status == "finished"


def test_a_run_whose_sandbox_fails_says_so_and_goes_on_with_resume(tmp_path, monkeypatch):
    real, calls = verdict_judge("robust"), []

    def failing(rule):
        def judge(responses, problems):
            calls.append(len(responses))
            if len(calls) == 2:
                monkeypatch.setattr("orthora.train.rewards.verdicts_of", lambda *_, **__: [None])
                return verdict_judge("robust")(responses[:1], problems[:1])
            return real(responses, problems)

        return judge

    with monkeypatch.context() as patched:
        patched.setattr("orthora.train.loading.verdict_judge", failing)
        with pytest.raises(ValueError, match="says nothing about the program"):
            mbpp_run(tmp_path)
    monkeypatch.undo()
    folder = tmp_path / "run"
    stopped = json.loads((folder / "result.json").read_text())
    assert (stopped["status"], stopped["steps"]) == ("failed", 1)
    assert "--resume" in stopped["reason"]
    (folder / "problems.json").write_text("as it was")
    settings = SMALL | {"task": "mbpp", "data": data_file("mbpp/mbpp.jsonl"), "out": str(folder)}
    result = orthora.train(settings, resume=True, progress=False)
    assert (result.status, result.steps) == ("finished", 2)
    assert (
        folder / "problems.json"
    ).read_text() == "as it was"  # it is the run's, not the resume's


def test_a_sandbox_that_fails_at_the_end_leaves_the_adapter_and_the_way_on(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise SandboxError("no memory")

    file = data_file("mbpp/mbpp.jsonl")
    held_out = {"eval_task": "mbpp", "eval_data": file, "eval_problems": 1, "eval_samples": 1}
    with monkeypatch.context() as patched:
        patched.setattr("orthora.train.rlvr.score", failing)
        with pytest.raises(ValueError, match=r"held-out programs were scored; .*--resume"):
            run(tmp_path, task="arithmetic", steps=1, **held_out)
    folder = tmp_path / "run"
    assert (folder / "adapter").is_dir()
    settings = SMALL | held_out | {"task": "arithmetic", "steps": 1, "out": str(folder)}
    result = orthora.train(settings, resume=True, progress=False)
    assert (result.status, result.evaluation.problems) == ("finished", 1)
    assert result.evaluation.pass_at_1 == 0.0


def test_dropped_rows_and_the_held_out_task_are_on_record(tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in (1, 1, 1, 2, 3, 4)]
    held_out = gsm8k_file(tmp_path / "held.jsonl", 5, 6, 7)
    result, folder = run(
        tmp_path, task="file", data=write(tmp_path / "a.jsonl", *rows), drop=["duplicates"],
        steps=1, eval_task="gsm8k", eval_data=held_out, eval_problems=2, eval_samples=1,
    )  # fmt: skip
    assert (result.dropped_rows, result.dropped_prompts) == (2, 0)
    assert json.loads((folder / "result.json").read_text())["dropped_rows"] == 2
    assert result.evaluation.problems == 2
    record = json.loads((folder / "problems.json").read_text())
    counts = {key: record[key] for key in ("read", "dropped_rows", "dropped_prompts", "problems")}
    assert counts == {"read": 6, "dropped_rows": 2, "dropped_prompts": 0, "problems": 4}
    assert (record["drop"], record["split"]) == (["duplicates"], None)
    assert record["example"] == {"id": "0", "prompt": "1+1=", "answer": "2"}
    assert len(record["fingerprint"]) == 64
    assert record["held_out"] == {
        "task": "gsm8k", "data": held_out, "split": None, "prompt_template": MATH_TEMPLATE,
        "problems": 2,
    }  # fmt: skip


def test_the_tiny_preset_records_a_procedural_source(tmp_path):
    config = read_toml("tiny") | SMALL | {"out": str(tmp_path / "run"), "steps": 1}
    config |= {"dynamic_sampling": False, "eval_problems": 2, "eval_samples": 1}
    orthora.train(config, progress=False)
    record = json.loads((tmp_path / "run" / "problems.json").read_text())
    assert (record["task"], record["data"], record["split"]) == ("arithmetic", None, "train")
    assert record["held_out"]["split"] == "test"


def test_the_fingerprint_sees_tests_and_is_what_it_was_without_them():
    def of(problem: Problem) -> str:
        return Stream([problem], [[1, 2]], 0).fingerprint

    assert of(ADD) != of(replace(ADD, tests=ADD.tests[:1]))
    assert of(ADD) != of(replace(ADD, setup="import math"))
    plain = Problem("1+1=", "2", "a")
    assert of(plain).startswith("82ed05435cd9e5f2")  # runs from before programs still resume
