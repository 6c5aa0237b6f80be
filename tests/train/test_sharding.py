"""FSDP2 on two CPU processes, without accelerate, which shards on GPUs alone.

Adapters are attached before the weights are sharded; training, gradient norms, KL measurements and
the export are then those of one process.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file

import orthora
from orthora.config import TrainConfig, read_toml
from orthora.train.sharding import check_sharded, gathered, norms

METHODS = ["rlpo", "pissa", "geora+rslora", "rlpo+dora", "vera", "miss", "ia3", "ln", "lora-plus"]
SCRIPT = """
import sys
from contextlib import nullcontext
from datetime import timedelta
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from conftest import make_model, token_ids
from trl.trainer.utils import add_fused_lm_head
import orthora
from orthora.adapters import base_policy
from orthora.config import TrainConfig, read_toml
from orthora.methods import compose
from orthora.train.measure import Gradients
from orthora.train.optimizers import make_optimizer
from orthora.train.rollouts import Row
from orthora.train.scoring import Scorer
from orthora.train.sharding import gathered

folder, rank, methods = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
    timeout=timedelta(seconds=60),
)
mesh = init_device_mesh("cpu", (2,))
ids = token_ids()
seen = {}


def trained(method, shard):
    config = TrainConfig(**read_toml("tiny") | {"method": method, "learning_rate": 1e-2})
    base = make_model("qwen2")
    add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
    model = orthora.adapt(base, method, rank=4, alpha=4.0)
    if shard:
        for layer in base.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
    optimizer = make_optimizer(model, compose(method), config)
    gradients = Gradients()
    batch = ids[rank : rank + 1] if shard else ids
    for _ in range(3):
        model(input_ids=batch, labels=batch).loss.backward()
        gradients.read(model)
        optimizer.step()
        optimizer.zero_grad()
    cpu = torch.device("cpu")
    scorer = Scorer(model, nullcontext, cpu, 0, fold=False, share=False)
    rows = [Row(i, tuple(line[:5].tolist()), line[5:], None, None, None, 0.0, True)
            for i, line in enumerate(ids)]
    # one process has one row and an empty micro-batch, the other has both rows
    mine = ([[rows[0]], []] if rank == 0 else [[rows[0]], [rows[1]]]) if shard else [rows]
    logps = scorer.logps(mine, shared=False)
    with base_policy(model):
        base_logps = scorer.logps(mine, shared=False)
    return model, gradients.metrics(), logps, base_logps


for method in methods:
    try:
        model, found, logps, base_logps = trained(method, shard=True)
        with gathered(model):
            assert not any(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
            if rank == 0:
                orthora.export_plain(model, f"{folder}/{method}-sharded")
        assert all(isinstance(p, DTensor) for p in model.parameters())
        seen[method] = {"gradients": found, "logps": logps, "base": base_logps}
        model, found, logps, base_logps = trained(method, shard=False)  # adapt() needs both
        if rank == 0:
            orthora.export_plain(model, f"{folder}/{method}-whole")
        seen[method] |= {"expected": found, "whole": logps, "whole base": base_logps}
    except Exception as error:
        raise RuntimeError(method) from error

models = [orthora.adapt(make_model("qwen2", torch.bfloat16), "pissa", rank=4) for _ in range(2)]
for layer in models[0].get_base_model().model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(models[0], mesh=mesh)
with torch.no_grad():
    one, other = (model(input_ids=ids).logits for model in models)
seen["bfloat16"] = torch.equal(one, other)
torch.save(seen, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""

pytestmark = pytest.mark.xdist_group("fsdp")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    running = [
        subprocess.Popen([*command, str(rank), *METHODS], stderr=subprocess.PIPE, env=environment)
        for rank in (0, 1)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()[-4000:]
    finally:
        for process in running:
            process.kill()
    seen = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    return SimpleNamespace(folder=folder, seen=seen)


@pytest.mark.parametrize("method", METHODS)
def test_sharded_training_is_that_of_one_process(method, ranks):
    whole = load_file(ranks.folder / f"{method}-whole" / "adapter_model.safetensors")
    sharded = load_file(ranks.folder / f"{method}-sharded" / "adapter_model.safetensors")
    assert whole.keys() == sharded.keys()
    assert whole
    for name, value in whole.items():
        assert value.shape == sharded[name].shape
        torch.testing.assert_close(sharded[name], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_norms_are_those_of_whole_tensors_on_every_process(method, ranks):
    expected = ranks.seen[0][method]["expected"]
    assert expected["grad_norm"] > 0
    for seen in ranks.seen:
        assert seen[method]["gradients"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_scores_agree_where_micro_batches_are_empty(method, ranks):
    """And the base policy's are the base's, whatever was trained."""
    for kind, name in (("logps", "whole"), ("base", "whole base")):
        one, two = ranks.seen[0][method][name]
        assert [len(seen[method][kind]) for seen in ranks.seen] == [1, 2]
        torch.testing.assert_close(ranks.seen[0][method][kind][0], one, atol=1e-3, rtol=0)
        torch.testing.assert_close(ranks.seen[1][method][kind][1], two, atol=1e-3, rtol=0)


def test_a_bfloat16_base_and_its_float32_adapter_are_sharded_together(ranks):
    assert all(seen["bfloat16"] for seen in ranks.seen)


def test_gathering_changes_nothing_where_nothing_is_sharded():
    model = orthora.adapt(make_model("qwen2"), "pissa", rank=4)
    before = dict(model.named_parameters())
    with gathered(model):
        assert all(p is before[name] for name, p in model.named_parameters())
    assert norms([]) == []
    assert norms([torch.ones(4), torch.zeros(3)]) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "adalora"}, "ranks the importances"),
        ({"method": "full"}, "copy of whole weights"),
        ({"method": "safe-mask"}, "masks"),
        ({"method": "rlpo+lora-fa"}, "projects whole gradients"),
        ({"method": "pissa", "engine": "vllm"}, "TRL merges plain B A alone"),
        ({"method": "rlpo+dora", "engine": "vllm"}, "TRL merges plain B A alone"),
        ({"method": "vera", "engine": "vllm"}, "TRL merges plain B A alone"),
        ({"eval_problems": 4}, "orthora eval"),
        ({"old_logps": "sampled"}, "use old_logps 'auto'"),
    ],
    ids=str,
)
def test_what_would_be_wrong_or_hang_is_refused(changes, words):
    config = TrainConfig(**read_toml("tiny") | {"eval_problems": 0} | changes)
    with pytest.raises(ValueError, match=words) as error:
        check_sharded(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [*METHODS, "rlmo+rslora+lora-plus"])
def test_the_others_are_not(method):
    check_sharded(TrainConfig(**read_toml("tiny") | {"eval_problems": 0, "method": method}))
    check_sharded(TrainConfig(**read_toml("tiny") | {"eval_problems": 0, "engine": "vllm"}))
