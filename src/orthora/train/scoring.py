"""Log-probabilities of responses under the model as it is, in float32, through TRL's fused head."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orthora.adapters import folded
from orthora.train.batches import Batch, collate
from orthora.train.dealing import share_pays
from orthora.train.rollouts import Row

_SAME = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}  # nats


class Scorer:
    """Scores rows with a model that carries TRL's fused head.

    Args:
        model: called with labels, gives log-probabilities and entropies of the tokens that follow.
        autocast: the trainer's context of mixed precision.
        device: of the model.
        pad: token id of padding.
        fold: merge the adapter while scoring without gradients.
        share: let a group's rows share their prompt where that pays.
    """

    def __init__(
        self,
        model: Any,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
        pad: int,
        *,
        fold: bool,
        share: bool,
    ) -> None:
        self._model, self._autocast, self._device = model, autocast, device
        self._pad, self._fold = pad, fold
        self._share = share and _takes_masks(model)
        self._checked = False

    def check(self, rows: Sequence[Row]) -> None:
        """Find out, once, whether the model scores groups as it scores their rows one by one.

        A model that reads its mask or its positions otherwise shares no prompts from then on.

        Args:
            rows: of a whole rollout, the same on every process, so that all decide alike.
        """
        if self._share and not self._checked:
            self._checked, self._share = True, self._agrees(rows)

    def shares(self, shared: Sequence[Sequence[Row]], plain: Sequence[Sequence[Row]]) -> bool:
        """Whether rows are scored group by group: the model allows it, and it pays.

        Args:
            shared: micro-batches as they would be then.
            plain: the same rows' as they would be else.
        """
        if not (self._share and self._checked):
            return False
        config = self._model.config.get_text_config()
        layers = max(1, config.num_hidden_layers)
        embeddings = config.vocab_size * config.hidden_size
        body = max(1.0, sum(p.numel() for p in self._model.parameters()) - embeddings)
        return share_pays(shared, plain, config.hidden_size, body / layers)

    def _agrees(self, rows: Sequence[Row]) -> bool:
        """On two short responses to one prompt, and on two groups that share a sequence."""
        bare = {"old": None, "sampled": None, "reference": None}
        first = [row for row in rows if row.group == rows[0].group][:2]
        few = [replace(r, prompt=r.prompt[-16:], ids=r.ids[:16], **bare) for r in first]
        last = replace(rows[-1], prompt=rows[-1].prompt[-3:], ids=rows[-1].ids[:4], **bare)
        few += [replace(last, group=number) for number in (-2, -1)]
        one, other = (self.logps([few], shared=shared) for shared in (True, False))
        gap = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
        return gap <= _SAME.get(self._dtype, 0.0)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._model.parameters()).dtype

    def batch(self, rows: Sequence[Row], *, shared: bool) -> Batch:
        """Rows as tensors; a process with fewer rows than others gets one that counts nothing."""
        rows = rows or [_empty_row(self._pad)]
        return collate(rows, self._pad, self._device, shared=shared, dtype=self._dtype)

    def score(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (S, T) of each response's tokens.

        Where a response is shorter than T stands what is 0 in `Batch.mask`.

        Args:
            model: the policy, or a wrapper that reduces its gradients over processes.
            batch: of rows.
        """
        with self._autocast():
            output = model(
                input_ids=batch.ids,
                attention_mask=batch.attention,
                position_ids=batch.positions,
                labels=batch.labels,
                fused_lm_head=True,
            )
        return output.log_probs.flatten()[batch.take], output.entropy.flatten()[batch.take]

    def logps(
        self, micro_batches: Sequence[Sequence[Row]], *, shared: bool, fold: bool = True
    ) -> list[Tensor]:
        """Log-probabilities (t,) of each row's tokens, without gradients and without dropout.

        Args:
            micro_batches: of rows.
            shared: score them group by group.
            fold: allow the adapter to be merged meanwhile.

        Returns:
            One tensor per row, in their order.
        """
        if not micro_batches:
            return []
        model = self._model
        found: list[Tensor] = []
        training = model.training
        model.eval()
        with torch.no_grad(), folded(model) if fold and self._fold else nullcontext():
            for rows in micro_batches:
                logps = self.score(model, self.batch(rows, shared=shared))[0].cpu()
                pairs = zip(rows, logps[: len(rows)], strict=True)  # none of an empty micro-batch
                found += [values[: len(row.ids)].clone() for row, values in pairs]
        model.train(training)
        return found


def _takes_masks(model: Any) -> bool:
    """Whether all takes a mask of any shape: no flash kernels, sliding windows, hybrids.

    Nor a loss on a router's logits, which counts tokens by a mask of (B, L).
    """
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        return False
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", window is not None)
    return kinds == {"full_attention"} and not (used and window)


def _empty_row(pad: int) -> Row:
    """A row without a token in the loss."""
    ids, nothing = torch.full((1,), pad, dtype=torch.int32), torch.zeros(1)
    return Row(-1, (pad,), ids, nothing, None, None, 0.0, False)
