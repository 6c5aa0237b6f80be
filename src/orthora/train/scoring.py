"""Log-probabilities of responses under the model as it is, in float32, through TRL's fused head."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from orthora.adapters import folded
from orthora.train.rollouts import Batch, Row, collate


class Scorer:
    """Scores rows with a model that carries TRL's fused head.

    Args:
        model: called with labels, gives log-probabilities and entropies of the tokens that follow.
        autocast: the trainer's context of mixed precision.
        device: of the model.
        pad: token id of padding.
        size: rows of one pass.
        fold: merge the adapter while scoring without gradients.
    """

    def __init__(
        self,
        model: Any,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
        pad: int,
        size: int,
        fold: bool,
    ) -> None:
        self._model, self._autocast, self._device = model, autocast, device
        self._pad, self._size, self._fold = pad, size, fold

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows as tensors; a process with fewer rows than others gets one that counts nothing."""
        return collate(rows or [_empty_row(self._pad)], self._pad, self._device)

    def score(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, T) of the tokens that follow, 0 off the response.

        Args:
            model: the policy, or a wrapper that reduces its gradients over processes.
            batch: of rows.
        """
        with self._autocast():
            output = model(
                input_ids=batch.ids,
                attention_mask=batch.attention,
                labels=batch.labels,
                fused_lm_head=True,
            )
        return output.log_probs, output.entropy

    def logps(self, rows: Sequence[Row], *, fold: bool = True) -> list[Tensor]:
        """Log-probabilities (t,) of each row's tokens, without gradients and without dropout."""
        model = self._model
        found: dict[int, Tensor] = {}
        order = sorted(range(len(rows)), key=lambda i: rows[i].length)
        training = model.training
        model.eval()
        with torch.no_grad(), folded(model) if fold and self._fold else nullcontext():
            for start in range(0, len(order), self._size):
                chosen = order[start : start + self._size]
                logps = self.score(model, self.batch([rows[i] for i in chosen]))[0].cpu()
                for place, i in enumerate(chosen):
                    begin = len(rows[i].prompt) - 1
                    found[i] = logps[place, begin : begin + len(rows[i].ids)].clone()
        model.train(training)
        return [found[i] for i in range(len(rows))]


def _empty_row(pad: int) -> Row:
    """A row without a token in the loss."""
    return Row(
        (pad,), torch.full((1,), pad, dtype=torch.int32), torch.zeros(1), None, None, 0.0, False
    )
