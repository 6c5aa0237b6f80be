"""Weights that are sharded over processes: what is refused there, and gathering what trains."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from orthora.adapters import own_parameters
from orthora.config import TrainConfig
from orthora.methods import compose


def check_sharded(config: TrainConfig) -> None:
    """Refuse what would be wrong, or wait for ever, where processes hold parts of the weights.

    Raises:
        ValueError: with the remedy.
    """
    method = compose(config.method)
    for part, why in _WHOLE.items():
        if method.structure == part or (method.optimizer and method.optimizer.name == part):
            raise ValueError(
                f"{method.name} needs whole weights ({why}), and they are sharded over processes; "
                "use plain data parallelism (torchrun without FSDP or DeepSpeed)"
            )
    plain = method.structure == "lora" and not method.has("dora") and not method.init.anchored
    if config.engine == "vllm" and not plain:
        raise ValueError(
            f"vLLM can't be given the weights of {method.name} while they are sharded over "
            "processes: TRL merges plain B A alone there; use engine 'transformers', or no sharding"
        )
    if config.eval_problems:
        raise ValueError(
            "held-out problems are scored by one process, and sharded weights need all; "
            "eval_problems = 0, and orthora eval on the finished run"
        )
    if config.schedule == "adaptive-kl" and config.kl_undo:
        raise ValueError(
            "steps can't be taken back while weights are sharded over processes; kl_undo = 0"
        )
    if config.old_logps == "sampled":
        raise ValueError("sharded weights give no sampled log-probabilities; use old_logps 'auto'")


_WHOLE = {
    "adalora": "it ranks the importances of all layers against each other",
    "safe-mask": "its masks are of whole matrices",
    "full": "the base policy is kept as a copy of whole weights",
    "lora-fa": "it projects whole gradients of B",
}


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Inside, every process holds whole what the adapter adds to its base; all must enter.

    FSDP2's DTensors are exchanged for plain tensors meanwhile, ZeRO-3's partitions are gathered.
    Changes made inside are lost.

    Args:
        model: from `orthora.adapt`, sharded or not.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):  # the outermost stays whole after a forward pass, and
            module.reshard()  # state_dict() would shard it in our midst
    own = list(own_parameters(model))
    with ExitStack() as stack:
        partitioned = [p for _, p in own if hasattr(p, "ds_id")]
        if partitioned:
            from deepspeed.zero import GatheredParameters  # pyright: ignore[reportMissingImports]

            stack.enter_context(GatheredParameters(partitioned))
        for name, parameter in own:
            if isinstance(parameter, DTensor):
                path, _, leaf = name.rpartition(".")
                owner = model.get_submodule(path)
                stack.callback(owner._parameters.__setitem__, leaf, parameter)
                whole = nn.Parameter(whole_of(parameter.detach()), parameter.requires_grad)
                owner._parameters[leaf] = whole
        yield


def whole_of(value: Tensor) -> Tensor:
    """A tensor that is whole on every process; a collective where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def norms(values: list[Tensor]) -> list[float]:
    """Frobenius norms; of the whole tensors where they are sharded."""
    if not values:
        return []
    return torch.stack([whole_of(torch.linalg.vector_norm(value)) for value in values]).tolist()
