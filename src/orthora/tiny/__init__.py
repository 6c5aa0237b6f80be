"""The embedded model: a Qwen2 network small enough to ship, imperfect enough to train.

It was pretrained by `orthora.tiny.pretrain` on a sloppy demonstrator of `orthora.tasks.arithmetic`;
`orthora.tiny.card` measured it, and its numbers lie beside the weights in ``card.json``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer


def path() -> Path:
    """Return the folder of the embedded model.

    Returns:
        A folder that ``from_pretrained`` of transformers reads: weights, configuration, tokenizer.
    """
    return Path(__file__).parent / "model"


def load(
    dtype: "torch.dtype | None" = None, folder: Path | None = None
) -> "tuple[Qwen2ForCausalLM, Qwen2Tokenizer]":
    """Load a tiny model and its tokenizer, without network access.

    Args:
        dtype: data type of the weights in memory; float32 if None. They are stored as bfloat16.
        folder: what `orthora.tiny.pretrain` wrote; the embedded model if None.

    Returns:
        The model in evaluation mode on the CPU, and the tokenizer, which pads on the left.

    Raises:
        FileNotFoundError: if the folder holds no weights.
    """
    # Here and not above: naming the folder must not cost the seconds that these imports take.
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

    folder = folder or path()
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no weights in {folder}; reinstall orthora, or run python -m orthora.tiny.pretrain"
        )
    model = Qwen2ForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if dtype is None else dtype, local_files_only=True
    )
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer
