"""Whether the files of an adapter are whole, before they are copied or loaded."""

from pathlib import Path

from peft import PeftConfig

from orthora.checkpoint import json_object, tensors_in

_CONFIG, _WEIGHTS, _PICKLED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def check_adapter(folder: Path) -> None:
    """Read the config of a PEFT adapter and the header of its weights.

    Args:
        folder: with ``adapter_config.json``.

    Raises:
        ValueError: naming the file that is missing, truncated, corrupt or empty.
    """
    json_object(folder / _CONFIG)
    try:
        PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder / _CONFIG} is no PEFT config ({line}); fetch the adapter again"
        ) from error
    weights = folder / _WEIGHTS
    if not weights.is_file():
        if (folder / _PICKLED).is_file():  # which PEFT reads as well
            return
        raise ValueError(f"{folder} has no {_WEIGHTS}; fetch the adapter again")
    if not tensors_in(weights):
        raise ValueError(f"{weights} holds no tensors; fetch the adapter again")
