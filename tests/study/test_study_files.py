"""The papers' studies: every file expands, has a twin, and says what it must."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import make_model

from orthora import adapt
from orthora.study import load_study, plan
from orthora.study.arms import arms_of, check_claims

FOLDER = Path(__file__).parents[2] / "studies"
FILES = sorted(FOLDER.glob("*.toml"))
TINY = [file for file in FILES if file.stem.endswith("-tiny")]
PAPERS = [file for file in FILES if file not in TINY]
FIVE = {"lora", "pissa", "milora", "rlpo", "rlmo"}


def test_the_studies_that_the_project_promises_are_there():
    assert {file.stem for file in PAPERS} == {
        "paper-table1", "paper-table6", "paper-ablation-orthonormal", "paper-lr", "perl-methods",
        "geora",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_expands_and_its_claims_speak_of_what_it_has(file):
    spec = load_study(file)
    cells = plan(spec)
    check_claims(spec, cells)
    assert spec.name == file.stem
    assert len({cell.name for cell in cells}) == len(cells)
    assert spec.claims
    assert spec.selected() != spec.reported()  # a rate is not picked by what is reported
    seeds = {cell.seed for cell in cells}
    assert len(seeds) >= 5
    by_arm: dict[str, set[int]] = {}
    for cell in cells:
        by_arm.setdefault(arms_of(spec, cells)[cell.name].label, set()).add(cell.seed)
    assert set(map(frozenset, by_arm.values())) == {frozenset(seeds)}


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_a_papers_study_has_a_twin_with_the_same_methods_and_claims(file):
    twin = load_study(FOLDER / f"{file.stem}-tiny.toml")
    spec = load_study(file)
    assert {cell.method for cell in plan(spec)} == {cell.method for cell in plan(twin)}
    assert [claim.says for claim in spec.claims] == [claim.says for claim in twin.claims]
    assert {cell.settings["model"] for cell in plan(twin)} == {"tiny"}


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_every_method_of_a_papers_study_starts_with_its_settings(file):
    """The tiny twin runs other settings: dropout, dtype and targets that a method refuses."""
    seen = {}
    for cell in plan(load_study(file)):
        config = cell.config(Path("runs"))
        seen[config.method, config.rank, config.dtype, config.dropout] = config
    for config in seen.values():
        base = copy.deepcopy(make_model("qwen2")).to(getattr(torch, config.dtype))
        model = adapt(
            base, config.method, rank=min(config.rank, 4), alpha=config.alpha,
            target_modules=config.target_modules, dropout=config.dropout,
        )  # fmt: skip
        assert any(p.requires_grad for p in model.parameters()), config.method


def test_table_1_has_the_papers_settings_and_both_schedules():
    cells = plan(load_study(FOLDER / "paper-table1.toml"))
    assert {cell.method for cell in cells} == FIVE
    (model,) = {cell.settings["model"] for cell in cells}
    assert model == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    configs = [cell.config(Path("runs")) for cell in cells]
    assert {config.schedule for config in configs} == {"constant", "cosine"}
    assert {(c.prompts_per_step, c.group_size, c.mini_batch_prompts) for c in configs} == {
        (128, 8, 32)
    }
    assert {(c.clip_low, c.clip_high, c.dual_clip, c.beta) for c in configs} == {(0.2, 0.28, 10, 0)}
    assert {(c.rank, c.alpha, c.reward_rule) for c in configs} == {(16, 32.0, "dapo")}


def test_table_6_is_grpo_with_the_papers_beta_on_7b():
    configs = [c.config(Path("runs")) for c in plan(load_study(FOLDER / "paper-table6.toml"))]
    assert {(c.model, c.loss, c.beta) for c in configs} == {("Qwen/Qwen2.5-7B", "grpo", 0.001)}


def test_the_twelve_methods_of_perl_have_its_batch_and_rank_32():
    cells = plan(load_study(FOLDER / "perl-methods.toml"))
    configs = [cell.config(Path("runs")) for cell in cells]
    assert len({cell.method for cell in cells} - {"full"}) == 12
    assert {(c.prompts_per_step, c.group_size, c.mini_batch_prompts) for c in configs} == {
        (16, 8, 16)
    }
    assert {(c.rank, c.alpha) for c in configs} == {(32, 64.0), (1, 2.0)}


@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_tiny_studies_try_four_rates_with_five_paired_seeds(file):
    spec = load_study(file)
    cells = plan(spec)
    arms = arms_of(spec, cells)
    rates: dict[str, set[float]] = {}
    for cell in cells:
        if not arms[cell.name].finds:
            rates.setdefault(arms[cell.name].label, set()).add(cell.rate)
    assert all(len(one) >= 4 for one in rates.values())
    assert {cell.settings.get("threads") for cell in cells} == {1}
