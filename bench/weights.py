"""Weights to measure on: three kinds of spectrum, and a checkpoint of a real model's shapes.

Real checkpoints can't be fetched here, so matrices are drawn with the features that matter to the
algorithms: the bulk edge, the heavy top, the scales of rows and columns. All are rounded to
bfloat16, as checkpoints are.

- ``mp``: Gaussian, sigma 0.02; the Marchenko-Pastur bulk and no more. Hard for the top: no gaps.
- ``llm``: Student t (5) entries, log-normal row and column scales, and k / 4 spikes that fall as
  j^-0.8 from six times the bulk edge.
- ``spiky``: the same with spikes from sixty times the bulk edge. Hard for the bottom: a wide range.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

KINDS = ("llm", "mp", "spiky")
_SPIKES = {"llm": 6.0, "spiky": 60.0}
_DEGREES = 5

SHAPES = {
    "1.5B": {"hidden": 1536, "kv": 256, "mlp": 8960, "layers": 28, "vocab": 151936},
    "4B": {"hidden": 2560, "kv": 1024, "mlp": 9728, "layers": 36, "vocab": 151936},
    "7B": {"hidden": 3584, "kv": 512, "mlp": 18944, "layers": 28, "vocab": 152064},
    "14B": {"hidden": 5120, "kv": 1024, "mlp": 13824, "layers": 48, "vocab": 152064},
}


def weight(m: int, n: int, kind: str, seed: int = 0) -> Tensor:
    """An (m, n) bfloat16 matrix of one kind."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "mp":
        return (0.02 * torch.randn(m, n, generator=generator)).bfloat16()
    W = torch.randn(m, n, generator=generator)
    chi = torch.zeros(m, n)
    for _ in range(_DEGREES):
        chi += torch.randn(m, n, generator=generator).square_()
    W /= chi.div_(_DEGREES).sqrt_()
    W *= 0.02 * torch.exp(0.3 * torch.randn(m, 1, generator=generator))
    W *= torch.exp(0.3 * torch.randn(1, n, generator=generator))
    spikes = min(m, n) // 4
    edge = 0.02 * 1.4 * (math.sqrt(m) + math.sqrt(n))
    U = torch.randn(m, spikes, generator=generator) / math.sqrt(m)
    V = torch.randn(n, spikes, generator=generator) / math.sqrt(n)
    falling = torch.arange(1, spikes + 1, dtype=torch.float32) ** -0.8
    return (W + (U * (_SPIKES[kind] * edge * falling)) @ V.mT).bfloat16()


def shapes(size: str) -> dict[str, tuple[int, int]]:
    """The adapted matrices of one layer, (out, in), by module."""
    of = SHAPES[size]
    h, kv, mlp = of["hidden"], of["kv"], of["mlp"]
    return {
        "self_attn.q_proj": (h, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h),
        "mlp.gate_proj": (mlp, h),
        "mlp.up_proj": (mlp, h),
        "mlp.down_proj": (h, mlp),
    }


def write_checkpoint(folder: Path, size: str = "1.5B", layers: int | None = None) -> Path:
    """A Qwen2 checkpoint of ``size``, every layer drawn anew, in shards of a few layers.

    Args:
        folder: to create; one that is complete is left as it is.
        size: key of `SHAPES`.
        layers: fewer than the model has, for a quick run.
    """
    index = folder / "model.safetensors.index.json"
    of = SHAPES[size] | ({"layers": layers} if layers else {})
    if index.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    shards = -(-of["layers"] // 7) + 1
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        tensors = _ends(of) if shard == 0 else _layers(of, size, 7 * (shard - 1))
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
        print(f"wrote {folder / name}", file=sys.stderr)
    (folder / "config.json").write_text(json.dumps(_config(of), indent=1))
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))  # last: it is complete
    return folder


def _layers(of: dict[str, int], size: str, first: int) -> dict[str, Tensor]:
    """All tensors of seven layers."""
    tensors: dict[str, Tensor] = {}
    for layer in range(first, min(first + 7, of["layers"])):
        root = f"model.layers.{layer}"
        for number, (module, (m, n)) in enumerate(shapes(size).items()):
            tensors[f"{root}.{module}.weight"] = weight(m, n, "llm", seed=100 * layer + number)
            if module.split(".")[1] in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{root}.{module}.bias"] = torch.zeros(m, dtype=torch.bfloat16)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{root}.{norm}.weight"] = torch.ones(of["hidden"], dtype=torch.bfloat16)
    return tensors


def _ends(of: dict[str, int]) -> dict[str, Tensor]:
    """Embeddings, tied to the head, and the last norm."""
    generator = torch.Generator().manual_seed(1)
    table = 0.02 * torch.randn(of["vocab"], of["hidden"], generator=generator)
    return {
        "model.embed_tokens.weight": table.bfloat16(),
        "model.norm.weight": torch.ones(of["hidden"], dtype=torch.bfloat16),
    }


def _config(of: dict[str, int]) -> dict[str, object]:
    """A Qwen2 config of these shapes."""
    head = 128
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": of["hidden"],
        "intermediate_size": of["mlp"],
        "num_hidden_layers": of["layers"],
        "num_attention_heads": of["hidden"] // head,
        "num_key_value_heads": of["kv"] // head,
        "vocab_size": of["vocab"],
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
