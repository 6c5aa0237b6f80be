"""Runs measured from their folders: every number against a dense float64 reference."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import orthora
from orthora.adapters import export_plain, write_merged
from orthora.adapters.fold import merged_parameters
from orthora.checkpoint import open_checkpoint
from orthora.cli import main
from orthora.config import read_toml
from orthora.linalg.geometry import principal_angles
from orthora.measure import measure
from orthora.measure.subjects import find
from orthora.measure.weights import Options
from orthora.table import BASE, QUANTITIES, read_table
from orthora.trained import checkpoint_model

pytestmark = pytest.mark.xdist_group("measure")  # the runs are trained once

METHODS = ("lora", "pissa", "rlpo", "rlmo", "rlpo+dora", "full")
HEAD, SHARE, RANK, ALPHA = 5, 0.3, 3, 6
CONFIG = {
    "steps": 2, "save_every": 1, "keep_checkpoints": 9, "rank": RANK, "alpha": ALPHA,
    "learning_rate": 1e-3, "prompts_per_step": 4, "mini_batch_prompts": 2, "group_size": 4,
    "eval_problems": 0, "max_response_tokens": 24, "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One short run per method."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        extra = {"target_modules": ["q_proj", "down_proj"]} if method == "full" else {}
        config = {"method": method, "out": str(folder / method), **CONFIG, **extra}
        orthora.train(read_toml("tiny") | config)
    return folder


@pytest.fixture(scope="module")
def table(runs):
    made = measure([runs], options=Options(HEAD, SHARE), workers=2)
    assert made.out == runs / "geometry.parquet"
    assert (made.weights, made.resumed) == (21, 0)
    assert set(made.subjects) == set(METHODS)
    return read_table(made.out)


def number(table, run, step, name, quantity, at=None):
    """One value, or the series of them at these places."""
    _, _, layer, module = name.split(".", 3)
    rows = table[
        (table["run"] == run) & (table["step"] == step) & (table["layer"] == int(layer))
        & (table["module"] == module) & (table["quantity"] == quantity)
    ]  # fmt: skip
    if at is None:
        assert len(rows) == 1, (run, step, name, quantity, len(rows))
        return float(rows["value"].iloc[0])
    assert rows["at"].tolist() == list(at)
    return torch.tensor(rows["value"].tolist(), dtype=torch.float64)


NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture(scope="module")
def base():
    checkpoint = open_checkpoint("tiny")
    return {name: checkpoint.read(f"{name}.weight").double() for name in NAMES}


@pytest.fixture(scope="module")
def trained(runs):
    """Merged weights after both steps of every run."""
    found = {}
    for method in METHODS:
        folders = sorted((runs / method / "checkpoints").glob("checkpoint-*"), key=step_of)
        assert len(folders) == 2
        for step, folder in enumerate(folders, start=1):
            model = checkpoint_model(folder, "float32", "cpu")
            weights = {n: v.double().clone() for n, v in merged_parameters(model)}
            found[method, step] = {name: weights[f"{name}.weight"] for name in NAMES}
    return found


def step_of(folder):
    return int(folder.name.split("-")[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_every_number_equals_its_dense_reference(method, step, name, table, base, trained):
    W, after = base[name], trained[method, step][name]
    D = after - W

    def found(quantity, at=None):
        return number(table, method, step, name, quantity, at)

    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    P, T, Rh = torch.linalg.svd(after, full_matrices=False)
    V, R = Vh.mT, Rh.mT
    size = float(D.norm())
    close = {"rel": 1e-4}  # merging rounds the update to float32 of the weight
    assert size > 1e-3
    assert found("update_norm") == pytest.approx(size, **close)
    assert found("update_relative") == pytest.approx(size / float(W.norm()), **close)
    spectral = float(torch.linalg.matrix_norm(D, 2))
    assert found("update_spectral") == pytest.approx(spectral, **close)
    assert found("stable_rank") == pytest.approx((size / spectral) ** 2, **close)
    shares = (U.mT @ D @ V).diagonal() ** 2
    shares = shares / shares.sum()
    k = len(S)
    energy = found("energy", [*range(1, HEAD + 1), *range(k - HEAD + 1, k + 1)])
    expected = torch.cat([shares[:HEAD], shares[k - HEAD :]])
    torch.testing.assert_close(energy, expected, rtol=1e-3, atol=1e-6)
    cumulative = found("energy_cumulative", [i / 64 for i in range(65)])
    torch.testing.assert_close(cumulative[::32], torch.tensor(
        [0.0, float(shares[: k // 2].sum()), 1.0], dtype=torch.float64), rtol=1e-3, atol=1e-9
    )  # fmt: skip
    assert float(cumulative.diff().min()) >= 0
    head = float((D @ V[:, :HEAD]).norm() / size) ** 2
    assert found("head_energy") == pytest.approx(head, rel=1e-3)
    tail = float((D @ V[:, k - HEAD :]).norm() / size) ** 2
    assert found("tail_energy") == pytest.approx(tail, rel=1e-3, abs=1e-6)
    assert found("chance_energy") == HEAD / W.shape[1]
    alignment = found("alignment", range(1, HEAD + 1))
    expected = (D @ V[:, :HEAD]).norm(dim=0) / size
    torch.testing.assert_close(alignment, expected, rtol=1e-3, atol=1e-6)
    nss = float((T - S).norm() / S.norm())
    assert found("nss") == pytest.approx(nss, **close)
    assert found("nss_low") == found("nss") <= found("nss_high")
    for side, one, other in (("left", U, P), ("right", V, R)):
        angles = principal_angles(one[:, :HEAD], other[:, :HEAD])
        torch.testing.assert_close(
            found(f"angle_{side}", range(1, HEAD + 1)), angles.rad2deg(), rtol=1e-3, atol=1e-4
        )
        distance = float((angles.sin() ** 2).mean().sqrt())
        assert found(f"projector_{side}") == pytest.approx(distance, rel=1e-3)
    shift = (T[:HEAD] - S[:HEAD]) / S[:HEAD]
    torch.testing.assert_close(
        found("sigma_shift", range(1, HEAD + 1)), shift, rtol=1e-3, atol=1e-8
    )
    changed = after.bfloat16() != W.bfloat16()
    assert found("changed") == pytest.approx(float(changed.double().mean()), abs=2e-4)
    rebuilt = ((U[:, :HEAD] * S[:HEAD]) @ Vh[:HEAD]).abs()
    princ = rebuilt > rebuilt.flatten().kthvalue(math.ceil((1 - SHARE) * W.numel())).values
    low = W.abs() <= W.abs().flatten().kthvalue(math.ceil(SHARE * W.numel())).values
    for kind, mask in (("princ", princ), ("low", low)):
        overlap = float((changed & mask).sum() / changed.sum())
        assert found(f"{kind}_overlap") == pytest.approx(overlap, abs=5e-4)
        lift = overlap / float(mask.double().mean())
        assert found(f"{kind}_lift") == pytest.approx(lift, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_base_stands_under_its_own_name(name, table, base):
    S = torch.linalg.svdvals(base[name])
    sigma = number(table, BASE, 0, name, "sigma", range(1, len(S) + 1))
    torch.testing.assert_close(sigma, S, rtol=1e-9, atol=1e-12)
    assert number(table, BASE, 0, name, "weight_norm") == pytest.approx(float(S.norm()))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_has_moved_at_step_0(method, table):
    zero = table[(table["run"] == method) & (table["step"] == 0)]
    assert len(zero)
    kinds = set(zero["quantity"])
    still = ["update_norm", "update_sigma", "energy", "energy_cumulative", "alignment", "nss",
             "nss_low", "nss_high", "changed", "sigma_shift", "head_energy", "projector_right",
             "angle_left", "angle_right", "projector_left"]  # fmt: skip
    for quantity in still:
        values = zero.loc[zero["quantity"] == quantity, "value"]
        assert len(values)
        assert float(values.abs().max()) < 1e-6, quantity
    assert not {"princ_overlap", "low_lift", "subspace_similarity"} & kinds
    if method not in ("full", "rlpo+dora"):
        kept = zero.loc[zero["quantity"] == "row_space_kept", "value"]
        assert float((kept - 1).abs().max()) < 1e-9


def test_starts_are_what_the_methods_say(table, base):
    """RLPO begins in the top, RLMO in the bottom; PiSSA carries W's top part over s."""
    for name, W in base.items():
        S = torch.linalg.svdvals(W)
        assert number(table, "rlpo", 0, name, "row_alignment_top") == pytest.approx(1, abs=1e-6)
        assert number(table, "rlmo", 0, name, "row_alignment_bottom") == pytest.approx(1, abs=1e-6)
        assert number(table, "rlmo", 0, name, "row_alignment_top") < 1e-5
        chance = math.sqrt(RANK / W.shape[1])
        assert number(table, "lora", 0, name, "row_alignment_top") == pytest.approx(chance, rel=0.8)
        norm = float(S[:RANK].norm()) / (ALPHA / RANK)
        for step in (0, 1, 2):
            assert number(table, "pissa", step, name, "start_norm") == pytest.approx(norm, rel=1e-5)
            assert number(table, "rlpo", step, name, "start_norm") == 0
        for method in ("rlpo", "lora", "pissa"):
            kept = [number(table, method, step, name, "row_space_kept") for step in (0, 1, 2)]
            assert 1 - 1e-9 < kept[0] <= 1 + 1e-9
            assert 0.3 < kept[2] < 1 - 1e-7


def test_the_last_update_is_like_itself_and_every_quantity_is_known(table):
    end = table[(table["quantity"] == "subspace_similarity") & (table["step"] == 2)]
    assert len(end)
    assert float((end["value"] - 1).abs().max()) < 1e-6
    assert set(table["quantity"]) == set(QUANTITIES)
    assert not table["value"].isna().any()
    keys = ["run", "step", "layer", "module", "quantity", "at"]
    assert not table.duplicated(keys).any()
    assert set(table["method"]) == {BASE, *METHODS}


def test_an_interrupted_measurement_goes_on_and_ends_the_same(runs, table, tmp_path):
    out = tmp_path / "t.csv"

    class Stop(Exception):
        pass

    def stop_at(count):
        def report(progress):
            if progress.done >= count:
                raise Stop

        return report

    for count in (4, 11):
        with pytest.raises(Stop):
            measure([runs], out=out, options=Options(HEAD, SHARE), workers=1, report=stop_at(count))
        assert not out.exists()
    seen = []
    made = measure([runs], out=out, options=Options(HEAD, SHARE), workers=1, report=seen.append)
    assert made.resumed >= 11
    assert seen[0].done == made.resumed
    assert seen[-1].done == seen[-1].total == 21
    assert seen[-1].work_done == seen[-1].work
    assert read_table(out).equals(table)  # however many work side by side, Parquet or CSV
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_another_question_does_not_go_on_with_the_old_parts(runs, tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.done == 3:
            raise Stop

    with pytest.raises(Stop):
        measure([runs / "lora"], out=tmp_path / "t.csv", options=Options(HEAD), report=stop)
    made = measure([runs / "lora"], out=tmp_path / "t.csv", options=Options(4))
    assert made.resumed == 0


def test_adapters_checkpoints_and_models_are_the_run(runs, table, tmp_path):
    checkpoints = runs / "pissa" / "checkpoints"
    export_plain(runs / "pissa", tmp_path / "plain")
    last = sorted(checkpoints.glob("checkpoint-*"), key=step_of)[-1]
    write_merged(checkpoint_model(last, "float32", "cpu"), tmp_path / "whole")
    made = measure(
        [checkpoints, tmp_path / "plain", tmp_path / "whole"],
        model="tiny", out=tmp_path / "t.csv", options=Options(HEAD, SHARE),
    )  # fmt: skip
    assert made.subjects == ("pissa", "plain", "whole")
    found = read_table(made.out)
    assert set(found.loc[found["run"] == "pissa", "step"]) == {1, 2}  # training steps, not updates
    for name in NAMES:
        for quantity in ("update_norm", "head_energy", "nss", "changed"):
            expected = number(table, "pissa", 2, name, quantity)
            for run, step in (("pissa", 2), ("plain", -1), ("whole", -1)):
                tolerance = 1e-4 if run == "whole" else 1e-6
                value = number(found, run, step, name, quantity)
                assert value == pytest.approx(expected, rel=tolerance), (run, quantity)
        start = number(table, "pissa", 2, name, "start_norm")
        assert number(found, "plain", -1, name, "start_norm") == pytest.approx(start, rel=1e-5)


def test_the_last_moment_alone(runs, tmp_path):
    made = measure([runs / "lora"], out=tmp_path / "t.csv", options=Options(HEAD), last=True)
    assert set(read_table(made.out)["step"]) == {0, 2}  # the base's, and the end


def test_the_command_prints_a_summary(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = str(tmp_path / "t.parquet")
    assert main(["measure", str(runs / "lora"), str(runs / "full"), "--out", out]) == 0
    text, progress = capsys.readouterr()
    assert "lora" in text
    assert f"{out}: 21 weights, 2 runs" in text
    assert "100 %  21/21 weights" in progress
    assert main(["measure", str(runs / "lora"), "--out", out]) == 2
    assert "exists; remove it" in capsys.readouterr().err


# Bad input


def copied(runs, tmp_path, method="lora"):
    return shutil.copytree(runs / method, tmp_path / method)


def no_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "adapter")


def nan(run):
    for path in run.rglob("adapter_model.safetensors"):
        tensors = load_file(path)
        tensors[min(tensors)][0, 0] = math.nan
        save_file(tensors, path, metadata={"format": "pt"})


def other_base(run):
    path = run / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_fingerprint": "0" * 64}))


def cut(run):
    for path in run.rglob("adapter_model.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_checkpoints, "has no checkpoint and no adapter, .* --resume"),
        (nan, "holds NaN or Inf; the run diverged, measure an earlier step"),
        (other_base, "was trained on other files than those of"),
        (cut, "truncated or corrupt"),
        (lambda run: (run / "config.toml").unlink(), "is no run .*, no adapter .*, no model"),
    ],
)
def test_a_broken_run_is_one_line(change, words, runs, tmp_path, capsys):
    run = copied(runs, tmp_path)
    change(run)
    assert main(["measure", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(words, error), error
    assert error.startswith("orthora measure: ")
    assert not list(run.glob(".*unfinished"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{runs}/nothing"], "no folder .*nothing"),
        (["{runs}/lora", "--head", "0"], "head must be at least 1"),
        (["{runs}/lora", "--mask-share", "1"], "mask_share must lie between 0 and 1"),
        (["{runs}/lora", "--out", "x.txt"], "neither .parquet nor .csv"),
        (["{runs}/lora", "--workers", "0"], "workers must be at least 1"),
        (["{runs}/lora", "--model", "other/model"], "was trained on 'tiny', and the model is"),
        (["{runs}/lora/adapter/nothing"], "no folder"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["measure", *(a.format(runs=runs) for a in arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, error), error


def test_an_adapter_that_names_no_base(runs, tmp_path):
    export_plain(runs / "lora", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not say its base model; give --model"):
        measure([tmp_path / "a"])


def test_names_are_unique_and_steps_are_read_from_folders(runs, tmp_path):
    for seed in (1, 2):
        for step in (50, 100):
            folder = tmp_path / "lora" / f"seed{seed}" / f"global_step_{step}"
            shutil.copytree(runs / "lora" / "adapter", folder)
    found = find([*(tmp_path / "lora").glob("seed*"), runs / "lora" / "adapter"])
    assert sorted(s.name for s in found) == ["lora", "seed1", "seed2"]
    steps = {s.name: [m.step for m in s.moments] for s in found}
    assert steps == {"lora": [2], "seed1": [50, 100], "seed2": [50, 100]}
    shutil.copytree(runs / "lora" / "adapter", tmp_path / "a" / "mine")
    shutil.copytree(runs / "lora" / "adapter", tmp_path / "b" / "mine")
    twice = find([tmp_path / "a" / "mine", tmp_path / "b" / "mine"])
    assert [(s.name, s.moments[0].step) for s in twice] == [("a/mine", -1), ("b/mine", -1)]


# What belongs together, and what does not


def names_and_steps(found):
    return {subject.name: [moment.step for moment in subject.moments] for subject in found}


def test_what_is_given_twice_is_taken_once(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    (tmp_path / "link").symlink_to(runs / "lora")
    parts = [runs / "lora" / "adapter", *(runs / "lora" / "checkpoints").glob("checkpoint-*")]
    found = find(["lora", "lora/", runs / "lora", tmp_path / "link", *parts])
    assert names_and_steps(found) == {"lora": [0, 1, 2]}
    assert names_and_steps(find([runs, "pissa"])) == {key: [0, 1, 2] for key in METHODS}


def test_runs_named_like_steps_stay_apart(runs, tmp_path):
    for number, method in enumerate(("lora", "pissa"), start=1):
        shutil.copytree(runs / method, tmp_path / f"step-{number}")
    found = find([tmp_path])
    assert names_and_steps(found) == {"step-1": [0, 1, 2], "step-2": [0, 1, 2]}
    assert [subject.method for subject in found] == ["lora", "pissa"]


def test_a_run_called_base_is_not_the_base(runs, tmp_path):
    shutil.copytree(runs / "lora", tmp_path / "a" / "base")
    made = measure([tmp_path / "a" / "base"], options=Options(HEAD), last=True)
    table = read_table(made.out)
    assert set(table["run"]) == {"base", "a/base"}
    assert set(table.loc[table["run"] == "base", "method"]) == {BASE}


def test_a_run_that_has_nothing_yet_is_left_out_aloud(runs, tmp_path, capsys):
    copied(runs, tmp_path)
    no_checkpoints(copied(runs, tmp_path, "pissa"))
    assert main(["measure", str(tmp_path), "--last"]) == 0
    assert re.search(r"left out: .*pissa has no checkpoint", capsys.readouterr().err)
    assert set(read_table(tmp_path / "lora" / "geometry.parquet")["run"]) == {BASE, "lora"}
    shutil.rmtree(tmp_path / "lora")
    with pytest.raises(ValueError, match="has no checkpoint"):
        measure([tmp_path])


def test_the_table_stands_beside_what_it_measures(runs, tmp_path):
    checkpoints = copied(runs, tmp_path) / "checkpoints"
    other = copied(runs, tmp_path / "b", "pissa")
    assert measure([checkpoints]).out == checkpoints.resolve() / "geometry.parquet"
    assert measure([tmp_path / "lora", other]).out == tmp_path.resolve() / "geometry.parquet"


class Stop(Exception):
    """Of a test's own making."""


def stop(progress):
    if progress.done == 3:
        raise Stop


@pytest.mark.parametrize("change", ["last", "seed", "files"])
def test_another_plan_does_not_go_on(change, runs, tmp_path):
    run = copied(runs, tmp_path)
    with pytest.raises(Stop):
        measure([run], report=stop)
    if change == "seed":
        path = run / "config.toml"
        path.write_text(path.read_text().replace("seed = 1\n", "seed = 2\n"))
    if change == "files":
        for file in run.rglob("adapter_model.safetensors"):
            file.touch()
    made = measure([run], last=change == "last")
    assert made.resumed == 0


def test_leftovers_of_a_killed_write_do_not_count(runs, tmp_path):
    adapter = shutil.copytree(runs / "lora" / "adapter", tmp_path / "mine")
    with pytest.raises(Stop):
        measure([adapter], report=stop)
    (adapter / ".geometry.parquet.abc").write_bytes(b"half")
    assert measure([adapter]).resumed == 3


# Odd weights


def whole_model(tmp_path, change):
    """The embedded model and a copy of it, one weight of both changed."""
    from orthora import models

    folders = []
    for name in ("one", "two"):
        model = models.load_model("tiny", "float32", "cpu")
        weight = model.get_submodule("model.layers.0.self_attn.q_proj").weight
        with torch.no_grad():
            change(weight, name)
        model.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    made = measure([folders[1]], model=str(folders[0]), out=tmp_path / "t.csv", any_base=True)
    table = read_table(made.out)
    mine = (table["layer"] == 0) & (table["module"] == "self_attn.q_proj")
    return table, table[mine & (table["run"] == "two")]


def test_a_weight_of_zeros_has_sizes_alone(tmp_path):
    def change(weight, name):
        weight.zero_()
        weight[3, 4] = 2.0 if name == "two" else 0.0

    table, mine = whole_model(tmp_path, change)
    found = mine.set_index("quantity")["value"]
    assert found["update_norm"] == 2
    assert set(found.index) == {
        "update_norm", "update_spectral", "stable_rank", "effective_rank", "update_sigma"
    }  # fmt: skip
    still = table[(table["run"] == "two") & (table["layer"] > 0)]
    assert float(still.loc[still["quantity"] == "nss", "value"].max()) == 0
    assert float(still.loc[still["quantity"] == "angle_left", "value"].max()) == 0


def test_the_last_pairs_are_those_with_a_singular_value(tmp_path):
    def change(weight, name):
        weight[:, 30:] = 0
        if name == "two":
            weight[:, :30] += 0.01 * torch.randn(
                weight.shape[0], 30, generator=torch.Generator().manual_seed(0)
            )

    _, mine = whole_model(tmp_path, change)
    energy = mine[mine["quantity"] == "energy"]
    assert energy["at"].tolist() == list(range(1, 31))  # 16 leading ones, and the rest to the rank
    assert float(energy["value"].min()) > 0
    assert float(energy["value"].sum()) == pytest.approx(1.0)
