"""What trains, as it was before a step's updates, to take them back."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from orthora.adapters import load_upkeep_state, upkeep_state


class Snapshot:
    """Copies of the trained parameters, the optimizer's moments and AdaLoRA's importances.

    Memory: three times the trained parameters, where they are.

    Args:
        model: from `orthora.adapt`, without wrappers.
        optimizer: over its parameters.
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._trained = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
        self._moments = {p: _copied(entry) for p, entry in optimizer.state.items()}
        tensors, values = upkeep_state(model)
        self._values = deepcopy(values)
        self._upkeep = {name: tensor.clone() for name, tensor in tensors.items()}

    def distance(self) -> float:
        """How far the trained parameters have moved, in Frobenius norm."""
        moved = [float((p.detach() - before).norm()) for p, before in self._trained]
        return math.hypot(*moved)

    def restore(self) -> None:
        """Put everything back, bit for bit; once."""
        with torch.no_grad():
            for parameter, before in self._trained:
                parameter.copy_(before)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._moments)
        load_upkeep_state(self._model, self._upkeep, self._values)


def _copied(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
