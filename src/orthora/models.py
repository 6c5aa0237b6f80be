"""Loading causal language models and tokenizers, with errors a person can act on."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthora import tiny
from orthora.types import Problem


def resolve(model: str) -> str:
    """The folder or hub name behind ``model``; ``tiny`` is the embedded one."""
    return str(tiny.path()) if model == "tiny" else model


def _check_folder(name: str) -> None:
    """Refuse what is plainly a path but not a saved model; anything else may be a hub name."""
    path = Path(name)
    if path.is_file():
        raise ValueError(f"model {name!r} is a file; give the folder that holds config.json")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"model folder {name!r} has no config.json; it is not a saved model")
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ValueError(f"no model folder {name!r}; check the path")


def load_model(model: str, dtype: str, device: str) -> Any:
    """The causal language model in evaluation mode.

    Args:
        model: folder, hub name, or ``tiny``.
        dtype: ``"float32"`` or ``"bfloat16"``.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: missing or corrupt folder or files, or weights with NaN or Inf.
    """
    name = resolve(model)
    _check_folder(name)
    try:
        pair: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, dtype), output_loading_info=True
        )
        loaded, info = pair
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"can't load model {model!r}: {line} (missing, truncated or corrupt; give a model "
            "folder or hub name, or fetch it again)"
        ) from error
    absent = [*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])]
    if absent:
        raise ValueError(
            f"model {model!r}: {len(absent)} tensors are missing or of another shape, e.g. "
            f"{sorted(absent)[0]!r}, and would stay random; fetch the checkpoint again"
        )
    for key, parameter in loaded.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"model {model!r}: {key} holds NaN or Inf; the checkpoint is corrupt, fetch it "
                "again or load it in float32"
            )
    return loaded.to(device).eval()


def load_tokenizer(model: str) -> Any:
    """The tokenizer, padding on the left, with a pad token.

    Raises:
        ValueError: if there is none, or it has no end-of-sequence token.
    """
    _check_folder(resolve(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(model), padding_side="left")
    except Exception as error:  # tokenizers raises bare Exception on a corrupt file
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"can't load the tokenizer of {model!r}: {line} (see tokenizer.json and "
            "tokenizer_config.json)"
        ) from error
    if not tokenizer("1")["input_ids"]:
        raise ValueError(
            f"the tokenizer of {model!r} gives no tokens: its files are missing or empty; save the "
            "tokenizer beside the model"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {model!r} has no eos token; set one and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_text(problem: Problem, tokenizer: Any, *, plain: bool = False) -> str:
    """The prompt as the model will read it, the chat template's marks included.

    Args:
        problem: with plain text or chat messages.
        tokenizer: with or without a chat template.
        plain: leave the template aside; messages are joined by blank lines.

    Raises:
        ValueError: if the prompt is chat messages and there is no template for them.
    """
    prompt = problem.prompt
    if plain:
        if isinstance(prompt, str):
            return prompt
        return "\n\n".join(message["content"] for message in prompt)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if isinstance(prompt, str):
        return prompt
    raise ValueError(
        f"problem {problem.id!r} is a list of chat messages, and the tokenizer has no chat "
        "template; set one in its tokenizer_config.json, or plain_prompts = true to join their text"
    )


def prompt_ids(problem: Problem, tokenizer: Any, *, plain: bool = False) -> list[int]:
    """Token ids of the prompt as the model will see it.

    Raises:
        ValueError: as `prompt_text`.
    """
    text = prompt_text(problem, tokenizer, plain=plain)
    templated = bool(tokenizer.chat_template) and not plain  # the template writes its own marks
    return list(tokenizer(text, add_special_tokens=not templated)["input_ids"])


def pick_device(device: str) -> str:
    """``"cpu"`` or ``"cuda"``; ``"auto"`` takes the GPU where there is one.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available here; use 'cpu' or 'auto'")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def load_adapter(model: Any, adapter: str) -> Any:
    """``model`` with a plain PEFT adapter, from its folder or from a run folder.

    Raises:
        ValueError: if there is no adapter, or it does not fit the model.
    """
    from peft import PeftModel

    folder = Path(adapter) / "adapter" if (Path(adapter) / "adapter").is_dir() else Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{adapter!r} holds no adapter (no adapter_config.json)")
    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"adapter {adapter!r} does not fit the model: {line} (is this the base it was "
            "trained on?)"
        ) from error
