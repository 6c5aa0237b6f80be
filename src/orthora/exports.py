"""Exports that need the base model: merged weights, and the residual form, of a model or a run."""

from pathlib import Path
from typing import Any

import torch

from orthora import models
from orthora.adapters import write_merged, write_residual
from orthora.trained import adapted, check_finished, config_of, trained_model

_DTYPES = ("float32", "bfloat16", "float16")


def export_merged(model_or_run: Any, out_dir: str | Path, *, dtype: str | None = None) -> Path:
    """Write the whole model with the adapter merged into its weights, as transformers does.

    Args:
        model_or_run: a model from `orthora.adapt`, or a run folder of `orthora.train`, whose base
            is loaded again; of a run the tokenizer is written as well.
        out_dir: a folder that does not exist yet or is empty.
        dtype: of the written weights, e.g. ``"float32"``; the base's if None. Rounding to bfloat16
            loses updates of less than 1/256 of an entry.

    Returns:
        ``out_dir``, for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ValueError: if ``out_dir`` holds files, the run is not finished or its adapter damaged, the
            dtype is unknown, or an adapted weight is tied to another module.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose {', '.join(_DTYPES)}")
    kind = None if dtype is None else getattr(torch, dtype)
    if not isinstance(model_or_run, str | Path):
        return write_merged(model_or_run, out_dir, kind)
    config = config_of(Path(model_or_run))
    write_merged(trained_model(Path(model_or_run), config.dtype, "cpu"), out_dir, kind)
    models.load_tokenizer(config.model).save_pretrained(str(out_dir))
    return Path(out_dir)


def export_residual(model: Any, out_dir: str | Path) -> Path:
    """Write ``base/`` with the weights W - s B0 A0 and ``adapter/`` with A, B of rank r.

    As `orthora.adapters.write_residual`.

    Raises:
        ValueError: as that; and for a run folder, whose adapter is kept as rank 2r: the trained A
            and B are in its last checkpoint, or in the model that `orthora.adapt` gave.
    """
    if isinstance(model, str | Path):
        return write_residual(_restarted(Path(model)), out_dir)
    return write_residual(model, out_dir)


def _restarted(run: Path) -> Any:
    """The trained model of a finished run with its anchors, from the rank-2r form."""
    config = config_of(run).model_copy(update={"start": None})  # which may have gone
    check_finished(run)
    model = adapted(models.load_model(config.model, config.dtype, "cpu"), config)
    model.load_adapter(str(run / "adapter"), "default")
    return model
