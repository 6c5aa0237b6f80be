"""Named tasks: every real file loads, golds are read or refused, and mistakes are one line."""

import ast
import json
from pathlib import Path

import pytest
from datasets import Dataset

from orthora.rewards import math_verdict
from orthora.tasks import load_task
from orthora.tasks.golds import asserts_of, gsm8k_gold, integer_gold, program_gold, text_gold
from orthora.tasks.named import CODE_TEMPLATE, TASKS
from orthora.tasks.registry import names, task
from orthora.tasks.rows import one_block
from orthora.tasks.statements import AFTER, BEFORE, MATH_TEMPLATE, statement

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
AIME = "aime/aimo-validation-aime.jsonl"
SVS = "aime/svs_MATH-AIME-Evaluation.parquet"
DAPO = "dapo_math_17k/dapo_math_17k.parquet"

FILES = {  # task: (file, split, rows)
    "dapo-math": [(DAPO, "train", 17_917)],
    "gsm8k": [("gsm8k/test.jsonl", "test", 1_319), ("gsm8k/train.jsonl", "train", 7_473)],
    "math500": [("math500/test.jsonl", "test", 500)],
    "aime22": [(AIME, "train", 30)],
    "aime23": [(AIME, "train", 30)],
    "aime24": [(AIME, "train", 30), (SVS, "train", 30)],
    "aime25": [(SVS, "test", 30)],
    "mbpp": [
        ("mbpp/mbpp.jsonl", split, rows)
        for split, rows in (("test", 500), ("validation", 90), ("train", 374), ("prompt", 10))
    ],
    "mbpp-sanitized": [
        ("mbpp/sanitized-mbpp.json", split, rows)
        for split, rows in (("test", 257), ("validation", 43), ("train", 120), ("prompt", 7))
    ],
}
ROW = {  # one row of each task's data
    "dapo-math": {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model.ground_truth": "2",
    },
    "gsm8k": {"question": "1+1?", "answer": "1+1=2\n#### 2"},
    "math500": {"problem": "1+1?", "answer": "2", "unique_id": "a"},
    "mbpp": {"text": "Add.", "code": "x = 1", "task_id": 11, "test_list": ["assert x"]},
    "mbpp-sanitized": {"prompt": "Add.", "code": "x = 1", "task_id": 11, "test_list": ["assert x"]},
    **{f"aime{year}": {"problem": "1+1?", "answer": "2", "id": 1} for year in (22, 23, 24, 25)},
}


def data_file(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    return str(path)


def nested(row: dict) -> dict:
    """The row with dots in its keys made structs."""
    if "reward_model.ground_truth" not in row:
        return row
    gold = row["reward_model.ground_truth"]
    return {"prompt": row["prompt"], "reward_model": {"ground_truth": gold, "style": "rule"}}


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(nested(row)) + "\n" for row in rows))
    return str(path)


def test_every_task_with_data_has_a_file_and_a_row_here():
    assert FILES.keys() == ROW.keys() == TASKS.keys() - {"arithmetic"}
    assert names() == sorted(TASKS)


@pytest.mark.parametrize("known", TASKS.values(), ids=TASKS)
def test_every_record_is_complete(known):
    assert known.samples >= 1
    assert known.source
    assert known.licence
    assert known.splits
    assert "{prompt}" in known.template
    assert ("{tests}" in known.template) == (known.verifier == "code")


@pytest.mark.parametrize(
    ("name", "file", "split", "rows"),
    [(name, *case) for name, cases in FILES.items() for case in cases],
)
def test_every_real_file_loads_whole(name, file, split, rows):
    problems = load_task(name, data_file(file), split)
    assert len(problems) == len({p.id for p in problems}) == rows
    for p in problems:
        assert p.answer
        if task(name).verifier == "code":
            assert p.tests
            ast.parse("\n".join([p.answer, p.setup, *p.tests]))
            assert "\r" not in p.answer + p.setup + "".join(p.tests)
            assert all(test in p.prompt for test in p.tests)
        else:
            assert (p.tests, p.setup) == ((), "")
            assert p.prompt == BEFORE + statement(p) + AFTER


def test_golds_verify_against_themselves():
    for name, file in (("gsm8k", "gsm8k/test.jsonl"), ("math500", "math500/test.jsonl")):
        for p in load_task(name, data_file(file)):
            assert math_verdict(f"Answer: {p.answer}", p.answer).correct, p


def test_aime_years_are_slices_with_exam_ids():
    exams = {f"{year}-{e}-{n}" for year in (2022,) for e in ("I", "II") for n in range(1, 16)}
    assert {p.id for p in load_task("aime22", data_file(AIME))} == exams
    sets = [{p.prompt for p in load_task(f"aime{y}", data_file(AIME))} for y in (22, 23, 24)]
    assert len(set.union(*sets)) == 90
    answers = [
        sorted(int(p.answer) for p in load_task("aime24", data_file(f))) for f in (AIME, SVS)
    ]
    assert answers[0] == answers[1]
    assert all(0 <= int(p.answer) <= 999 for p in load_task("aime25", data_file(SVS)))


def test_mbpp_setup_comes_from_both_kinds_of_column():
    problems = {p.id: p for p in load_task("mbpp", data_file("mbpp/mbpp.jsonl"))}
    assert [i for i, p in problems.items() if p.setup] == ["367"]
    assert problems["367"].setup.startswith("root = Node(1)")
    sanitized = load_task("mbpp-sanitized", data_file("mbpp/sanitized-mbpp.json"))
    assert {p.setup for p in sanitized} == {"", "import math"}


def test_mbpp_reference_programs_pass_with_the_setup_after_them():
    for name, file in (("mbpp", "mbpp.jsonl"), ("mbpp-sanitized", "sanitized-mbpp.json")):
        for p in load_task(name, data_file(f"mbpp/{file}"), count=60):
            exec("\n".join([p.answer, p.setup, *p.tests]), {"__name__": p.id})


def hub_rows(problems: list, copies: int) -> list[dict]:
    """DAPO rows as the hub has them: prompt around them, UUIDs, and one block again and again."""
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": BEFORE + statement(p) + AFTER}],
            "ability": "MATH",
            "reward_model": {"ground_truth": p.answer, "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"uuid-{p.id}"},
        }
        for _ in range(copies)
        for p in problems
    ]


@pytest.mark.slow
def test_both_schemas_of_dapo_give_the_same_problems(tmp_path):
    local = load_task("dapo-math", data_file(DAPO))
    block = tmp_path / "hub.parquet"
    Dataset.from_list(hub_rows(local, 3)).to_parquet(block)
    assert load_task("dapo-math", str(block)) == local


def test_the_wrapper_comes_off_the_authors_own_file():
    rows = Dataset.from_parquet(data_file("aime/dapo_aime-2024.parquet"))
    for row, p in zip(
        rows, load_task("dapo-math", data_file("aime/dapo_aime-2024.parquet")), strict=False
    ):
        assert statement(p) == row["extra_info"]["raw_problem"].strip()
        assert p.prompt == row["prompt"][0]["content"]  # and the template puts it back


def test_a_hub_data_set_is_asked_for_by_name_config_and_split(monkeypatch):
    asked = []

    def load_dataset(path, name=None, split=None, **_):
        asked.append((path, name, split))
        return Dataset.from_list([nested(ROW[current])])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for current in ROW:
        known = task(current)
        (problem,) = load_task(current)
        assert asked.pop() == (known.hub, known.config, known.splits[0])
        assert problem.answer in ("2", "x = 1")
    current = "gsm8k"
    load_task("gsm8k", "someone/gsm8k", "train")
    assert asked.pop() == ("someone/gsm8k", None, "train")


@pytest.mark.parametrize("card", [False, True])
def test_a_local_folder_is_a_data_set(tmp_path, card):
    write(tmp_path / "test.jsonl", ROW["gsm8k"], ROW["gsm8k"])
    write(tmp_path / "train.jsonl", ROW["gsm8k"])
    if card:
        (tmp_path / "README.md").write_text(
            "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n"
            "    path: test.jsonl\n  - split: train\n    path: train.jsonl\n"
            "- config_name: socratic\n  data_files: test.jsonl\n---\n"
        )
    assert len(load_task("gsm8k", str(tmp_path))) == 2
    assert len(load_task("gsm8k", str(tmp_path), "train")) == 1


def test_an_absent_hub_is_one_line_with_the_remedy(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach it\nat all")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"can't read 'openai/gsm8k'.*give a local file") as found:
        load_task("gsm8k")
    assert "\n" not in str(found.value)


def test_prompts(tmp_path):
    file = write(tmp_path / "a.jsonl", ROW["gsm8k"])
    assert load_task("gsm8k", file)[0].prompt == MATH_TEMPLATE.replace("{prompt}", "1+1?")
    assert load_task("gsm8k", file, template="{prompt}")[0].prompt == "1+1?"
    code = ROW["mbpp"] | {"text": "Braces {tests} {0}", "test_list": ["assert '{prompt}'"]}
    (problem,) = load_task("mbpp", write(tmp_path / "b.jsonl", code))
    filled = CODE_TEMPLATE.split("{prompt}")[1].replace("{tests}", "assert '{prompt}'")
    assert problem.prompt == "Braces {tests} {0}" + filled


def test_arithmetic_and_counts(tmp_path):
    assert len(load_task("arithmetic")) == 256
    assert (
        load_task("Arithmetic", split="train", count=3)
        == load_task("arithmetic", None, "train")[:3]
    )
    file = write(tmp_path / "a.jsonl", *[ROW["gsm8k"]] * 4)
    assert len(load_task("gsm8k", file, count=3)) == 3
    assert len(load_task("gsm8k", file, drop=("duplicates",))) == 1


@pytest.mark.parametrize(
    ("rows", "block"),
    [("abcabcabc", 3), ("abab", 2), ("abcab", 5), ("aab", 3), ("abcabd", 6), ("a", 1)],
)
def test_one_block_is_found_where_the_whole_repeats(rows, block):
    made = Dataset.from_list([{"prompt": r, "reward_model": r, "n": i} for i, r in enumerate(rows)])
    assert list(one_block(made)["prompt"]) == list(rows[:block])


@pytest.mark.parametrize(
    ("read", "cell", "gold"),
    [
        (integer_gold, "025", "25"),
        (integer_gold, 204, "204"),
        (integer_gold, " -366 ", "-366"),
        (integer_gold, "12345678901234567890123", "12345678901234567890123"),
        (integer_gold, r"336^\circ", "336"),
        (gsm8k_gold, "so\n#### 1,234", "1234"),
        (gsm8k_gold, "#### 1\n#### -2", "-2"),
        (text_gold, r"\frac{1}{2}", r"\frac{1}{2}"),
        (text_gold, r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (text_gold, 7, "7"),
        (program_gold, "x = 1\r\ny = 2", "x = 1\ny = 2"),
        (asserts_of, ["assert 1\r\n", "x\ry"], ("assert 1", "x\ny")),
    ],
)
def test_golds_are_read(read, cell, gold):
    assert read(cell) == gold


@pytest.mark.parametrize(
    ("read", "cell", "message"),
    [
        (integer_gold, "25.5", "'25.5' is not an integer"),
        (integer_gold, "1,234", "not an integer"),
        (integer_gold, True, "not an integer"),
        (integer_gold, "", "not an integer"),
        (gsm8k_gold, "the answer is 18", "no '#### '"),
        (gsm8k_gold, "#### many", "'many' is not an integer"),
        (gsm8k_gold, "#### ", "no gold answer"),
        (text_gold, "$ $", "says nothing"),
        (text_gold, [1], "neither text nor a number"),
        (program_gold, "def f(:", "reference program 'def f.:' is not Python"),
        (asserts_of, ["assert 1", "assert ("], "test 'assert .' is not Python"),
        (asserts_of, "assert 1", "a str, not a list"),
    ],
)
def test_golds_that_say_nothing_are_refused(read, cell, message):
    with pytest.raises(ValueError, match=message):
        read(cell)


def without(name: str, column: str) -> dict:
    return {key: value for key, value in ROW[name].items() if key != column}


MISTAKES = [
    ("gsm8k", ROW["gsm8k"] | {"answer": "18"}, r"task 'gsm8k', row 0: the gold '18' has no"),
    ("gsm8k", without("gsm8k", "question"), "no column 'question'; there are: answer.*rename"),
    ("gsm8k", ROW["gsm8k"] | {"question": " "}, "row 0: column 'question' holds no problem"),
    ("gsm8k", ROW["gsm8k"] | {"question": 3}, "row 0: column 'question' holds no problem"),
    ("math500", without("math500", "answer"), "no column 'answer'"),
    ("math500", ROW["math500"] | {"answer": ""}, "row 0: column 'answer' is empty"),
    ("aime24", ROW["aime24"] | {"answer": "x"}, "the gold 'x' is not an integer"),
    ("aime24", ROW["aime24"] | {"year": 2023}, "no problem of AIME 2024"),
    ("aime24", without("aime24", "problem"), "no column 'problem' or 'question' or 'prompt'"),
    ("mbpp", without("mbpp", "test_list"), "no column 'test_list'"),
    ("mbpp", without("mbpp", "task_id"), "row 0 has no whole number in column 'task_id'"),
    ("mbpp", ROW["mbpp"] | {"task_id": 1}, r"no problem of MBPP's test split .*ids 11 to 510"),
    ("mbpp", ROW["mbpp"] | {"test_list": []}, "row 0: column 'test_list' is empty"),
    ("mbpp", ROW["mbpp"] | {"code": "def"}, "reference program 'def' is not Python"),
    ("mbpp", ROW["mbpp-sanitized"], "no column 'text'"),
    ("dapo-math", ROW["dapo-math"] | {"reward_model.ground_truth": "1/2"}, "not an integer"),
    ("dapo-math", ROW["gsm8k"], "no column 'prompt'"),
]


@pytest.mark.parametrize(("name", "row", "message"), MISTAKES)
def test_bad_rows_are_one_line_with_the_remedy(tmp_path, name, row, message):
    with pytest.raises(ValueError, match=message) as found:
        load_task(name, write(tmp_path / "a.jsonl", row))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("gsm8",), r"unknown task 'gsm8'\. Did you mean 'gsm8k'\?"),
        (("aime26",), r"unknown task 'aime26'\. Did you mean 'aime2"),
        (("chess",), r"unknown task 'chess'\. Available: aime22, .*mbpp-sanitized"),
        (("gsm8k", None, "dev"), "task 'gsm8k' has no split 'dev'; choose one of test, train"),
        (("arithmetic", "a.jsonl"), "procedural; leave data 'a.jsonl' out"),
        (("gsm8k", "absent.jsonl"), "no data file 'absent.jsonl'"),
    ],
)
def test_bad_calls_are_one_line_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message) as found:
        load_task(*call)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("dupes",)}, "can't drop 'dupes'; choose of duplicates, contradictions"),
        ({"drop": "twins"}, "can't drop 'twins'"),
        ({"template": "Solve it"}, "no {prompt}"),
        ({"count": 0}, "count is 0"),
    ],
)
def test_bad_options_are_told_before_the_data_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        load_task("gsm8k", "absent.jsonl", **options)


def test_arithmetic_keeps_its_prompt():
    assert load_task("arithmetic", template="{prompt}") == load_task("arithmetic")
    with pytest.raises(ValueError, match="prompt of its own"):
        load_task("arithmetic", template="What is {prompt}")


def test_ids_that_repeat_and_exams_that_are_too_long_are_refused(tmp_path):
    rows = [ROW["math500"], ROW["math500"] | {"problem": "2+2?"}]
    with pytest.raises(ValueError, match="two problems with the id 'a'"):
        load_task("math500", write(tmp_path / "a.jsonl", *rows))
    exam = [ROW["aime25"] | {"id": i} for i in range(31)]
    assert len(load_task("aime25", write(tmp_path / "b.jsonl", *exam[:30]))) == 30
    with pytest.raises(ValueError, match="holds 31 problems, and AIME 2025 has 30"):
        load_task("aime25", write(tmp_path / "c.jsonl", *exam))
