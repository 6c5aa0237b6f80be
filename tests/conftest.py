"""Tiny random models and a tokenizer, built from configs: no test of this suite needs the network.

Every factory is a plain function (``from conftest import make_model``) and a fixture of that name.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen2Tokenizer

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PAD, EOS, UNK = range(3)
_BYTE = {" ": "Ġ", "\n": "Ċ"}  # as byte-level vocabularies write them
ALPHABET = "\n !$()*+,-./0123456789:;=?ABC\\^_abcdefghijklmnopqrstuvwxyz{|}"
VOCAB = 3 + len(ALPHABET)

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "head_dim": 8,
}
_TIED = {"tie_word_embeddings": True}
_MEDIUM = {  # short sides above 512, where subspaces come from Lanczos
    "hidden_size": 640,
    "intermediate_size": 1100,
    "num_hidden_layers": 1,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", _COMMON),
    "qwen2-tied": ("Qwen2", _COMMON | _TIED),
    "qwen2-medium": ("Qwen2", _COMMON | _MEDIUM),
    "qwen3": ("Qwen3", _COMMON | {"head_dim": 8}),
    "llama": ("Llama", _COMMON),
    "mistral": ("Mistral", _COMMON),
    "gemma": ("Gemma", _COMMON | _TIED | {"head_dim": 8}),
    "gemma2": ("Gemma2", _COMMON | _TIED | {"head_dim": 8}),
    "gemma3": ("Gemma3Text", _COMMON | _TIED | {"head_dim": 8}),
    "gpt2": ("GPT2", _GPT2),
    "phi3": ("Phi3", _COMMON),
    "qwen3_moe": ("Qwen3Moe", _COMMON | _EXPERTS),
    "qwen3_moe-dense": ("Qwen3Moe", _COMMON | _EXPERTS | {"mlp_only_layers": [0]}),
    "mixtral": ("Mixtral", _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
_HEADS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def some_compositions() -> list[str]:
    """Each method alone, and one pair of every kind; the others are tested under ``slow``."""
    from orthora.methods import names

    pairs = "rlpo+dora pissa+dora pissa+rslora rlmo+rslora+lora-plus geora+lora-fa rslora+dora"
    return sorted({*names(), *pairs.split()})


def few_compositions() -> list[str]:
    """One of every structure, optimizer and kind of start: what costs seconds each."""
    few = "rlpo pissa geora+lora-fa rslora+dora lora-plus adalora vera miss ia3 ln full safe-mask"
    return sorted(few.split())


def kinds_of_composition() -> list[str]:
    """`some_compositions`, and the first of every structure with every optimizer, anchored or not.

    Compositions of one kind differ in the values that A and B begin with, and in nothing else.
    """
    from orthora.methods import compose, compositions

    first: dict[object, str] = {}
    for name in compositions():
        method = compose(name)
        structures = tuple(structure.name for structure in method.structures)
        anchored = bool(method.init and method.init.anchored)
        first.setdefault((structures, str(method.optimizer), anchored), name)
    return sorted({*some_compositions(), *first.values()})


def make_model(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random causal language model of ``KINDS`` in evaluation mode; the seed fixes its weights.

    ``gpt2`` stores weights transposed (Conv1D) and ties its head, ``phi3`` fuses q, k, v and the
    two MLP inputs; ``qwen3_moe`` and ``mixtral`` stack their experts in three-dimensional tensors,
    and save them one by one under other names.
    """
    family, fields = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, _HEADS.get(family, f"{family}ForCausalLM"))(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros by default, which would hide a bias that gets lost
                torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def tokenizer() -> Qwen2Tokenizer:
    """One token per character of ``ALPHABET``; pads on the left, with ``<pad>`` and ``<eos>``."""
    vocabulary = ["<pad>", "<eos>", "<unk>", *(_BYTE.get(c, c) for c in ALPHABET)]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def save_model(
    kind: str, folder: str | Path, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write ``make_model(kind, dtype, seed)`` and the tokenizer to ``folder``."""
    make_model(kind, dtype, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Path(folder)


def save_squares(folder: str | Path, layers: int, side: int = 1024) -> Path:
    """A bfloat16 checkpoint of ``layers`` times q, k, v and o, all square, and nothing else."""
    config = make_model("qwen2").config
    config.update(
        {
            "hidden_size": side,
            "intermediate_size": 16,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "num_hidden_layers": layers,
            "layer_types": ["full_attention"] * layers,
        }
    )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(side, side, generator=generator).bfloat16()
    weights = {
        f"model.layers.{layer}.self_attn.{name}_proj.weight": weight.roll(17 * layer + i, 0)
        for layer in range(layers)
        for i, name in enumerate("qkvo")
    }
    save_file(weights, Path(folder) / "model.safetensors")
    return Path(folder)


def token_ids() -> torch.Tensor:
    """Two rows of twenty different tokens."""
    return torch.arange(UNK + 1, UNK + 41).view(2, 20)


def logits(model: Any) -> torch.Tensor:
    """What the model says of ``token_ids()``, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Gradient of the language-model loss on ``token_ids()``, left on the parameters as well."""
    model.train()
    model.zero_grad()
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def adamw_steps(model: Any, steps: int = 3, learning_rate: float = 1e-3) -> None:
    """Some AdamW updates of everything that asks for a gradient, without weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        gradients(model)
        optimizer.step()
    model.zero_grad()


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture(name="make_model", scope="session")
def _make_model() -> Callable[..., PreTrainedModel]:
    return make_model


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer() -> Callable[[], Qwen2Tokenizer]:
    return tokenizer


@pytest.fixture(name="save_model", scope="session")
def _save_model() -> Callable[..., Path]:
    return save_model


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under ``--dist loadgroup``, put the group of a test into its id, where xdist looks for it.

    xdist 3.8 writes it to an attribute that pytest 9.2 no longer reads, so that groups were spread
    over the workers without a word, and what all tests of a group look at was made by each.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    from _pytest.nodeid import coerce_node_id

    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            item._id = coerce_node_id(f"{item.nodeid}@{mark.args[0]}")


@pytest.fixture(scope="session")
def small_study(tmp_path_factory) -> tuple[Path, str]:
    """A study that was run without a disturbance: its file, and its result table.

    Who uses it belongs to the test group ``study``, so that it is run once.
    """
    from driven import results, run, write_study

    file = write_study(tmp_path_factory.mktemp("undisturbed"))
    run("run", file, "--jobs", "2")
    return file, results(file)
