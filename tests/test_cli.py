import json
import subprocess
import sys
import warnings

import pytest

from orthora import methods
from orthora.cli import COMMANDS, main
from orthora.config import TrainConfig
from orthora.flags import config_of_flags


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        assert f"orthora {command}" in out


def test_the_command_line_is_frozen():
    """A new flag is a decision: it is a config field, and it is listed here."""
    assert sorted(COMMANDS) == [
        "compare", "contamination", "demo", "eval", "export", "figure", "init", "measure",
        "methods", "probe", "report", "rescore", "study", "theory", "train",
    ]  # fmt: skip
    assert len(TrainConfig.model_fields) == 92


def test_methods_lists_the_registry(capsys):
    code, out, _ = run(capsys, "methods", "--markdown")
    assert code == 0
    for name in methods():
        assert f"| `{name}`" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command 'trian'", "'train'"]),
        (["train", "--config", "nofile"], ["nofile"]),
        (["train", "--config"], ["--config"]),
        (["train", "--config", "tiny", "--method", "pisa"], ["'pisa'", "'pissa'"]),
        (["train", "--config", "tiny", "--rank", "0"], ["rank", "0"]),
        (["train", "--config", "tiny", "--model", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["train", "--config", "tiny", "--rank", "999"], ["999", "q_proj", "at most 128"]),
        (["train", "--config", "tiny", "--method", "vera+rlpo"], ["rlpo", "vera", "random"]),
        (["train", "--config", "tiny", "--engine", "vllm"], ["vLLM", "not installed"]),
        (["train", "--config", "tiny", "--processes", "3"], ["3 processes", "torchrun"]),
        (["init", "tiny", "--method", "full", "--out", "{tmp}/a"], ["full", "adapt"]),
        (["init", "tiny", "--method", "rlpo+dora", "--out", "{tmp}/a"], ["dora", "start="]),
        (["export", "--run", "/nowhere", "--out", "{tmp}/a"], ["/nowhere"]),
        (["export", "--run", "/nowhere", "--out", "{tmp}/a", "--form", "merged"], ["/nowhere"]),
        (["eval", "--model", "tiny", "--data", "/nowhere.jsonl"], ["/nowhere.jsonl"]),
        (["report", "--runs", "/nowhere"], ["/nowhere"]),
        (["figure", "reward", "/nowhere"], ["/nowhere", "not a folder"]),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_no_output(capsys, tmp_path, arguments, words):
    arguments = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    if "--config" in arguments[:-1]:
        arguments += ["--out", str(tmp_path / "run")]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_refused_with_a_suggestion():
    done = subprocess.run(
        [sys.executable, "-m", "orthora", "train", "--config", "tiny", "--learnin-rate", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--learnin-rate" in done.stderr
    assert "--learning-rate" in done.stderr


def test_flags_override_the_file_and_the_result_lands_on_disk(capsys, tmp_path):
    out = tmp_path / "run"
    code, text, err = run(
        capsys,
        *["train", "--config", "tiny", "--out", str(out), "--method", "pissa", "--steps", "1"],
        *["--prompts-per-step", "4", "--group-size", "4", "--mini-batch-prompts", "2"],
        *["--micro-batch", "8", "--eval-problems", "4", "--eval-samples", "2"],
    )
    assert code == 0, err
    assert "1 steps" in text
    result = json.loads((out / "result.json").read_text())
    assert (result["status"], result["method"], result["steps"]) == ("finished", "pissa", 1)
    code, text, err = run(capsys, "export", "--run", str(out), "--out", str(tmp_path / "plain"))
    assert code == 0, err
    assert json.loads((tmp_path / "plain" / "adapter_config.json").read_text())["r"] == 16
    for form, expected in (("merged", "config.json"), ("residual", "base")):
        arguments = ["--run", str(out), "--out", str(tmp_path / form), "--form", form]
        code, text, err = run(capsys, "export", *arguments)
        assert code == 0, err
        assert (tmp_path / form / expected).exists()
    code, text, err = run(
        capsys,
        *["eval", "--model", "tiny", "--adapter", str(out), "--task", "arithmetic"],
        *["--problems", "4", "--samples", "2", "--max-response-tokens", "40"],
    )
    assert code == 0, err
    assert "pass@1" in text


FOUND = 'learning_rate = 5e-4\nlearning_rate_match = "kl:lora@0.001"\n'  # of a run
MATCHED = 'learning_rate = "match-kl:lora@1e-3"\nwatch = ["default", "entropy > 9"]\n'


@pytest.mark.parametrize(
    ("text", "flags", "rate", "match"),
    [
        (MATCHED, [], 1e-3, "kl:lora@0.001"),
        ("", ["--learning-rate", "match-norm:lora@1e-5"], 1e-5, "norm:lora@1e-05"),
        (MATCHED, ["--learning-rate", "2e-4"], 2e-4, None),
        ("learning_rate = 1e-4", ["--learning-rate", "2e-4"], 2e-4, None),
        (FOUND, [], 5e-4, "kl:lora@0.001"),
        (FOUND, ["--learning-rate", "2e-4"], 2e-4, None),
        (MATCHED, ["--learning-rate-match", "norm:lora@1e-5"], 1e-5, "norm:lora@1e-05"),
        ("", ["--learning-rate-match", "norm:lora@1e-5"], 1e-5, "norm:lora@1e-05"),
    ],
)
def test_a_learning_rate_is_a_number_or_a_match(text, flags, rate, match, tmp_path, recwarn):
    file = tmp_path / "mine.toml"
    file.write_text(f'model = "tiny"\nout = "x"\ntask = "arithmetic"\n{text}')
    config = config_of_flags(TrainConfig, ["--config", str(file), *flags], "train")
    assert (config.learning_rate, config.learning_rate_match) == (rate, match)
    assert config.watch == (("default", "entropy > 9") if text == MATCHED else ("default",))
    assert not recwarn.list  # a list in a file is no mistake


def test_of_a_number_and_a_match_one_is_given(tmp_path):
    flags = ["--learning-rate", "2e-4", "--learning-rate-match", "kl:lora@1e-3"]
    with pytest.raises(ValueError, match="not both"):
        config_of_flags(TrainConfig, ["--config", "tiny", "--out", "x", *flags], "train")


def test_a_learning_rate_that_is_neither_is_one_line(capsys):
    code, _, err = run(capsys, "train", "--config", "tiny", "--out", "x", "--learning-rate", "fast")
    assert code == 2
    assert "learning_rate" in err
    assert err.count("\n") == 1


def test_a_warning_of_ours_is_one_line_without_its_place_in_the_code(capsys, tmp_path, monkeypatch):
    from orthora.adapters import structures

    def warn(arguments):
        warnings.warn_explicit("watch out", UserWarning, structures.__file__, 1)
        warnings.warn_explicit("deprecated", UserWarning, "/elsewhere/other.py", 1)

    monkeypatch.setitem(COMMANDS, "methods", warn)
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", _printed)
        code, _, err = run(capsys, "methods")
    assert code == 0
    assert err == "watch out\n/elsewhere/other.py: UserWarning: deprecated\n"
    assert warnings.formatwarning is before


def _printed(message, category, filename, lineno, file=None, line=None):
    """As Python does outside pytest."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
