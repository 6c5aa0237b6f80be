import json
from pathlib import Path

import pytest

from orthora.config import to_toml
from orthora.demo import ADAPTIVE, SHARED, demo, plan


def test_the_runs_differ_in_method_and_schedule_alone():
    configs = plan(Path("x"), steps=3, eval_problems=4, seed=1, threads=1)
    assert len(configs) == len(SHARED) + len(ADAPTIVE)
    assert len({config.out for config in configs}) == len(configs)
    apart = {"method", "schedule", "out"}
    common = [config.model_dump(exclude=apart) for config in configs]
    assert all(item == common[0] for item in common)


@pytest.mark.slow
def test_the_demo_runs_resumes_and_refuses_other_settings(tmp_path, capsys):
    out = tmp_path / "demo"
    settings = {"steps": 1, "eval_problems": 4}
    page = demo(out, **settings)
    assert "Learning rate" in capsys.readouterr().out
    results = {p.parent.name: json.loads(p.read_text()) for p in out.glob("*/result.json")}
    assert len(results) == 7
    assert {r["status"] for r in results.values()} == {"finished"}
    # Same seed, same prompts, same sampling: the first rollout is the same for every method.
    first = [json.loads((out / name / "metrics.jsonl").read_text()) for name in results]
    assert len({row["reward"] for row in first}) == 1
    assert len({row["length"] for row in first}) == 1
    kept = (out / "lora-0.001" / "result.json").stat().st_mtime_ns
    (out / "rlmo-0.001" / "result.json").unlink()  # as a kill would leave it
    failed = results["rlpo-0.001"] | {"status": "failed", "reason": "x"}
    (out / "rlpo-0.001" / "result.json").write_text(json.dumps(failed))
    page.unlink()
    assert demo(out, **settings) == page
    assert page.is_file()
    for name in ("rlmo-0.001", "rlpo-0.001"):
        assert json.loads((out / name / "result.json").read_text())["status"] == "finished"
    assert (out / "lora-0.001" / "result.json").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="choose another --out"):
        demo(out, steps=2, eval_problems=4)


def test_a_foreign_folder_is_refused_and_kept(tmp_path):
    config = plan(tmp_path, steps=1, eval_problems=4, seed=42, threads=1)[0]
    folder = Path(config.out)
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="holds something else"):
        demo(tmp_path, steps=1, eval_problems=4)
    assert (folder / "mine.txt").is_file()
    assert "method" in to_toml(config)
