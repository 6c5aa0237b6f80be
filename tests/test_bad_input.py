"""Bad input to the commands: one line that names the remedy, exit code 2, nothing left behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ALPHABET, VOCAB, make_model, save_model, tokenizer
from safetensors.torch import save_file

from orthora import models
from orthora.adapters import adapt, check_adapter, export_plain, init_adapter
from orthora.cli import main
from orthora.strict import read_toml
from orthora.tasks import arithmetic
from orthora.tasks.files import load_problems

ADAPTER = "adapter_model.safetensors"
SMALL = {"rank": 4, "alpha": 8, "seed": 42}
TRAIN = [
    "--steps",
    "1",
    "--prompts-per-step",
    "2",
    "--mini-batch-prompts",
    "1",
    "--group-size",
    "2",
    "--max-prompt-tokens",
    "60",
    "--max-response-tokens",
    "8",
    "--overlong-buffer",
    "4",
    "--rank",
    "4",
    "--alpha",
    "8",
    "--threads",
    "1",
    "--save-every",
    "0",
]
EVAL = ["--samples", "1", "--max-response-tokens", "8", "--device", "cpu"]
BOTH = pytest.mark.parametrize("command", ["train", "eval"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model("qwen2", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy of the model, to be broken."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder as a finished run leaves it, as far as exports read it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    export_plain(adapt(make_model("qwen2"), "rlpo", **SMALL), run / "adapter")
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run folder, to be broken."""
    return shutil.copytree(trained, tmp_path / "run")


def write_data(folder: Path, *prompts) -> str:
    rows = [{"prompt": prompt, "answer": "7"} for prompt in prompts or ("3+4=", "10-3=")]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "data.jsonl")


def call(capfd, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def arguments_of(command: str, model, data: str, tmp_path: Path) -> list[str]:
    common = [command, "--model", str(model), "--data", data]
    if command == "eval":
        return [*common, *EVAL]
    return [*common, "--out", str(tmp_path / "out"), *TRAIN]


def assert_refused(capfd, tmp_path, arguments, *words) -> str:
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = call(capfd, *arguments)
    assert code == 2, (out, err)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith(f"orthora {arguments[0]}: ")
    for word in words:
        assert word in err
    assert {path.name for path in tmp_path.iterdir()} == before
    return err


def edit_json(file: Path, **fields) -> None:
    table = json.loads(file.read_text()) | fields
    table = {key: value for key, value in table.items() if value is not None}
    file.write_text(json.dumps(table))


# Tokens


def added_pad(folder: Path) -> None:
    made = tokenizer()
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(folder)


def no_pad(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token=None)


@BOTH
@pytest.mark.parametrize("change", [added_pad, no_pad])
def test_a_pad_token_beyond_the_embeddings_is_replaced(change, command, model, tmp_path, capfd):
    change(model)
    pad = models.load_tokenizer(str(model)).pad_token_id
    assert pad >= VOCAB or change is no_pad
    arguments = arguments_of(command, model, write_data(tmp_path), tmp_path)
    code, _, err = call(capfd, *arguments)
    assert code == 0, err


def test_a_pad_token_that_fits_stays(saved):
    made, base = tokenizer(), make_model("qwen2")
    models.fit(base, made, [[3, 4]], 8, name="m")
    assert made.pad_token == "<pad>"
    made.add_special_tokens({"pad_token": "[PAD]"})
    models.fit(base, made, [[3, 4]], 8, name="m")
    assert made.pad_token == made.eos_token == "<eos>"


def test_no_token_to_pad_with_is_refused():
    made, base = tokenizer(), make_model("qwen2")
    made.add_special_tokens({"pad_token": "[PAD]", "eos_token": "[EOS]"})
    with pytest.raises(ValueError, match=f"{VOCAB} embeddings; use the tokenizer that belongs"):
        models.fit(base, made, [[3, 4]], 8, name="m")


@BOTH
def test_a_token_beyond_the_embeddings_is_refused(command, model, tmp_path, capfd):
    made = tokenizer()
    made.add_tokens(["seven"])
    made.save_pretrained(model)
    data = write_data(tmp_path, "seven=", "3+4=")
    arguments = arguments_of(command, model, data, tmp_path)
    assert_refused(capfd, tmp_path, arguments, f"token id {VOCAB}", "embeddings", "belongs")


@BOTH
def test_a_template_that_raises_is_refused_with_the_remedy(command, model, tmp_path, capfd):
    (model / "chat_template.jinja").write_text("{{ raise_exception('no user') }}")
    arguments = arguments_of(command, model, write_data(tmp_path), tmp_path)
    words = ("the chat template refuses problem '0': no user;", "plain_prompts = true")
    assert_refused(capfd, tmp_path, arguments, *words)


# Positions and counts


@BOTH
def test_responses_beyond_the_positions_are_refused(command, saved, tmp_path, capfd):
    arguments = arguments_of(command, saved, write_data(tmp_path), tmp_path)
    longer = [*arguments, "--max-response-tokens", "125"]
    if command == "eval":
        assert_refused(capfd, tmp_path, longer, "5 + max_response_tokens 125", "128 positions")
    else:
        assert_refused(capfd, tmp_path, longer, "max_prompt_tokens 60 + ", "128 positions")


def test_held_out_prompts_beyond_the_positions_are_refused_before_the_run(saved, tmp_path, capfd):
    (tmp_path / "held").mkdir()
    held = write_data(tmp_path / "held", "1+" * 62)
    arguments = arguments_of("train", saved, write_data(tmp_path), tmp_path)
    arguments += ["--eval-data", held, "--eval-problems", "1"]
    assert_refused(capfd, tmp_path, arguments, "longest prompt, 124", "128 positions")


@pytest.mark.parametrize("split", arithmetic.SPLITS)
def test_more_problems_than_the_split_holds_are_refused_at_once(split):
    with pytest.raises(ValueError, match=r"count is 100000000, but .* ask for fewer"):
        arithmetic.problems(split, 100_000_000)


def test_eval_refuses_more_problems_than_there_are(tmp_path, capfd):
    arguments = ["eval", "--model", "tiny", "--task", "arithmetic", "--problems", "100000000"]
    assert_refused(capfd, tmp_path, arguments, "count is 100000000", "test split")


def test_prompts_are_counted_exactly():
    every = [
        f"{a}{sign}{b}="
        for a in range(1, 100)
        for b in range(1, 50)
        for sign in "+-"
        if 0 <= arithmetic.apply(a, sign, b) <= 99
    ]
    assert arithmetic._chains(2) == len(every)
    deep = sum(
        1 for p in every for b in range(1, 50) for s in (-1, 1) if 0 <= ends(p) + s * b < 100
    )
    assert arithmetic._chains(3) == deep


def ends(prompt: str) -> int:
    return int(arithmetic.answer(prompt))


# Checkpoints and adapters


@BOTH
@pytest.mark.parametrize("how", ["bitsandbytes", "gptq"])
def test_quantised_checkpoints_are_refused(how, command, model, tmp_path, capfd):
    quantised = {"quant_method": how, "load_in_4bit": True, "bits": 4}
    edit_json(model / "config.json", quantization_config=quantised)
    arguments = arguments_of(command, model, write_data(tmp_path), tmp_path)
    assert_refused(capfd, tmp_path, arguments, f"is quantised ({how})", "original")


def truncated(adapter: Path) -> str:
    data = (adapter / ADAPTER).read_bytes()
    (adapter / ADAPTER).write_bytes(data[:-100])
    return ADAPTER


def cut_in_the_header(adapter: Path) -> str:
    (adapter / ADAPTER).write_bytes((adapter / ADAPTER).read_bytes()[:40])
    return ADAPTER


def absent(adapter: Path) -> str:
    (adapter / ADAPTER).unlink()
    return ADAPTER


def hollow(adapter: Path) -> str:
    save_file({}, adapter / ADAPTER)
    return "holds no tensors"


def half_a_config(adapter: Path) -> str:
    text = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(text[: len(text) // 2])
    return "adapter_config.json"


def no_type(adapter: Path) -> str:
    edit_json(adapter / "adapter_config.json", peft_type="NOSUCH")
    return "adapter_config.json"


DAMAGES = [truncated, cut_in_the_header, absent, hollow, half_a_config, no_type]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_not_exported(damage, run, tmp_path, capfd):
    word = damage(run / "adapter")
    assert_refused(capfd, tmp_path, ["export", "--run", run, "--out", tmp_path / "out"], word)


@pytest.mark.parametrize("damage", DAMAGES)
def test_eval_blames_the_damaged_adapter_not_the_base(damage, run, saved, tmp_path, capfd):
    word = damage(run / "adapter")
    arguments = arguments_of("eval", saved, write_data(tmp_path), tmp_path)
    err = assert_refused(capfd, tmp_path, [*arguments, "--adapter", run], word)
    assert "does not fit" not in err


@pytest.mark.parametrize("damage", DAMAGES)
def test_merged_and_residual_exports_refuse_it_too(damage, run, saved, tmp_path, capfd):
    word = damage(run / "adapter")
    (run / "config.toml").write_text(
        f'model = "{saved}"\nout = "{run}"\ndata = "x.jsonl"\nrank = 4\nalpha = 8.0\n'
    )
    for form in ("merged", "residual"):
        arguments = ["export", "--run", run, "--out", tmp_path / "out", "--form", form]
        assert_refused(capfd, tmp_path, arguments, word)


def test_a_whole_adapter_is_exported_as_it_is(run, tmp_path, capfd):
    check_adapter(run / "adapter")
    code, _, err = call(capfd, "export", "--run", run, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    names = sorted(path.name for path in (run / "adapter").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_trained_adapter_is_no_start(run, saved, tmp_path, capfd):
    arguments = arguments_of("train", saved, write_data(tmp_path), tmp_path)
    words = (f"{run}/adapter is a trained adapter, not a start of `orthora init`", "orthora eval")
    assert_refused(capfd, tmp_path, [*arguments, "--start", run / "adapter"], *words)


def test_a_truncated_start_is_refused(saved, tmp_path, capfd):
    folder = init_adapter(str(saved), "rlpo", out=tmp_path / "start", **SMALL).out
    truncated(folder)
    arguments = arguments_of("train", saved, write_data(tmp_path), tmp_path)
    assert_refused(capfd, tmp_path, [*arguments, "--start", folder], ADAPTER, "truncated")


@pytest.mark.parametrize("method", ["rlpo", "miss", "lora+dora"])
@pytest.mark.parametrize("targets", [[".*(q_proj|lm_head)"], ["q_proj", "lm_head"], ["lm_head"]])
def test_an_adapter_on_the_head_is_refused(method, targets, saved, tmp_path, capfd):
    arguments = arguments_of("train", saved, write_data(tmp_path), tmp_path)
    arguments += ["--method", method, "--target-modules", *targets]
    assert_refused(capfd, tmp_path, arguments, "'lm_head'", "take it out of target_modules")


def test_train_offers_no_option_that_it_lacks(saved, tmp_path, capfd):
    arguments = arguments_of("train", saved, write_data(tmp_path), tmp_path)
    err = assert_refused(capfd, tmp_path, [*arguments, "--rank", "1000"], "rank 1000", "at most 16")
    assert "unfit" not in err
    with pytest.raises(ValueError, match="unfit='lower' or 'skip'"):
        adapt(make_model("qwen2"), rank=1000)


# Configs, names, data files


@pytest.mark.parametrize(
    ("command", "other", "text"),
    [
        ("eval", "train", 'model = "m"\nout = "o"\nrank = 4\n'),
        ("train", "eval", 'model = "m"\nsamples = 4\n'),
    ],
)
def test_a_config_of_the_other_command_is_named(command, other, text, tmp_path, capfd):
    (tmp_path / "config.toml").write_text(text)
    arguments = [command, "--config", tmp_path / "config.toml"]
    words = (f"this is a config of orthora {other}, and orthora {command} takes",)
    err = assert_refused(capfd, tmp_path, arguments, *words)
    assert "Did you mean" not in err


@BOTH
def test_a_config_that_is_not_utf8_is_named(command, tmp_path, capfd):
    (tmp_path / "config.toml").write_bytes(b'model = "caf\xe9"\n')
    arguments = [command, "--config", tmp_path / "config.toml"]
    assert_refused(capfd, tmp_path, arguments, "config.toml", "UTF-8", "save it as UTF-8")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbfrank = 4\n")
    assert read_toml(tmp_path / "config.toml") == {"rank": 4}


@pytest.mark.parametrize(
    ("method", "meant"), [("foo", None), ("pisa", "pissa"), ("disa", "pissa"), ("xyz", None)]
)
def test_only_near_names_are_offered(method, meant, saved, tmp_path, capfd):
    arguments = arguments_of("train", saved, write_data(tmp_path), tmp_path)
    err = assert_refused(capfd, tmp_path, [*arguments, "--method", method], "Available: ")
    assert ("Did you mean" in err) == (meant is not None)
    assert meant is None or f"Did you mean {meant!r}?" in err


@BOTH
@pytest.mark.parametrize(
    ("name", "content"),
    [("data.jsonl", b'{"prompt": "3+4=", "ans'), ("data.parquet", b"PAR1 is not enough" * 9)],
)
def test_a_corrupt_data_file_is_one_line(name, content, command, saved, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    arguments = arguments_of(command, saved, str(tmp_path / name), tmp_path)
    assert_refused(capfd, tmp_path, arguments, name)


def test_whole_data_files_are_read(tmp_path):
    assert [p.answer for p in load_problems(write_data(tmp_path))] == ["7", "7"]


def test_a_method_that_is_no_name_is_refused():
    code = (  # in an interpreter of its own: here every call's types are checked
        "import orthora\n"
        "for method in (None, 3, ['rlpo']):\n"
        "    try:\n"
        "        orthora.adapt(None, method)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    start = "method must be a name such as 'rlpo+dora', got "
    assert lines == [start + shown for shown in ("None", "3", "['rlpo']")]


def test_these_prompts_are_within_the_alphabet():
    assert set("3+4=10-seven") <= set(ALPHABET)
