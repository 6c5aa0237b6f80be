"""Loading causal language models and tokenizers, with errors a person can act on."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from orthora import tiny
from orthora.checkpoint import refuse_quantised
from orthora.types import Problem


def resolve(model: str) -> str:
    """The folder or hub name behind ``model``; ``tiny`` is the embedded one."""
    return str(tiny.path()) if model == "tiny" else model


_GENERIC = ("model", "base", "merged", "final", "checkpoint")  # what every run calls its models


def short_name(model: str) -> str:
    """What tells models apart by name, whatever folder they are in.

    The last part of a model's name or path in lower case; of a hub cache's folder, the model's own.
    """
    path = Path(resolve(model))
    cached = [part for part in path.parts if part.startswith("models--")]
    name = cached[-1].rsplit("--", 1)[-1] if cached else path.name
    if name.lower() in _GENERIC:
        name = f"{path.absolute().parent.name}/{name}"
    return name.lower()


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
        ValueError: missing or corrupt folder or files, quantised weights, or NaN or Inf in them.
    """
    name = resolve(model)
    _check_folder(name)
    config: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # loading says what is wrong with it
        config = PretrainedConfig.get_config_dict(name)[0]
    refuse_quantised(config, f"model {model!r}")
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
        ValueError: if the prompt is chat messages and there is no template for them, or the
            template refuses it.
    """
    prompt = problem.prompt
    if plain:
        if isinstance(prompt, str):
            return prompt
        return "\n\n".join(message["content"] for message in prompt)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            return tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:  # templates are programs
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the chat template refuses problem {problem.id!r}: {line}; give prompts in the "
                "roles it wants, or plain_prompts = true"
            ) from error
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
    return text_ids(prompt_text(problem, tokenizer, plain=plain), tokenizer, plain=plain)


def text_ids(text: str, tokenizer: Any, *, plain: bool = False) -> list[int]:
    """Token ids of a prompt's text as `prompt_text` gives it."""
    templated = bool(tokenizer.chat_template) and not plain  # the template writes its own marks
    return list(tokenizer(text, add_special_tokens=not templated)["input_ids"])


def fit(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    response_tokens: int,
    *,
    name: str,
    prompt_tokens: int | None = None,
) -> None:
    """Check that prompts and responses are within the model, and let it pad with a token it has.

    Args:
        model: the base, or a PEFT model around it.
        tokenizer: whose pad token becomes the end token where the model has no embedding for it:
            padding is masked, but must be looked up.
        prompts: token ids of each.
        response_tokens: the limit, ``max_response_tokens``.
        name: of the model, for messages.
        prompt_tokens: the limit, ``max_prompt_tokens``; None takes the longest prompt.

    Raises:
        ValueError: if they exceed the model's positions or vocabulary, or a prompt has no tokens.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} has no token that the tokenizer knows; leave it out")
    check_positions(model.config, prompts, response_tokens, name=name, prompt_tokens=prompt_tokens)
    rows = model.get_input_embeddings().weight.shape[0]
    pad = tokenizer.pad_token_id
    if pad is None or pad >= rows:
        tokenizer.pad_token, pad = tokenizer.eos_token, tokenizer.eos_token_id
    largest = max(pad, *(max(prompt) for prompt in prompts))
    if largest >= rows:
        raise ValueError(
            f"the tokenizer gives token id {largest}, and {name!r} has {rows} embeddings; use the "
            "tokenizer that belongs to the model"
        )


def check_positions(
    settings: Any,
    prompts: Sequence[Sequence[int]],
    response_tokens: int,
    *,
    name: str,
    prompt_tokens: int | None = None,
) -> None:
    """Prompts and responses are within a model's positions.

    Args:
        settings: the model's config.
        prompts: token ids of each.
        response_tokens: the limit, ``max_response_tokens``.
        name: of the model, for messages.
        prompt_tokens: the limit, ``max_prompt_tokens``; None takes the longest prompt.

    Raises:
        ValueError: if they are not.
    """
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
    longest = prompt_tokens or max(map(len, prompts))
    if positions and longest + response_tokens > positions:
        what = "max_prompt_tokens" if prompt_tokens else "the tokens of the longest prompt,"
        remedy = "lower them" if prompt_tokens else "lower it, or leave long prompts out"
        raise ValueError(
            f"{what} {longest} + max_response_tokens {response_tokens} exceed the {positions} "
            f"positions of {name!r}; {remedy}"
        )


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


def load_config(model: str) -> Any:
    """The transformers config of a model.

    Raises:
        ValueError: if there is none.
    """
    name = resolve(model)
    _check_folder(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"can't load the config of {model!r}: {line}") from error


def load_adapter(model: Any, adapter: str) -> Any:
    """``model`` with a plain PEFT adapter, from its folder or from a run folder.

    Raises:
        ValueError: if there is no adapter, its files are damaged, or it does not fit the model.
    """
    from peft import PeftConfig, PeftModel

    from orthora.adapters import check_adapter

    folder = Path(adapter) / "adapter" if (Path(adapter) / "adapter").is_dir() else Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{adapter!r} holds no adapter (no adapter_config.json)")
    check_adapter(folder)
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        if settings.is_prompt_learning or getattr(settings, "alora_invocation_tokens", None):
            raise ValueError(
                f"{settings.peft_type} changes prompts, not weights, and is not evaluated here"
            )
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        loaded: Any = adapted.peft_config["default"]
        if loaded.peft_type == "ADALORA":
            loaded.rank_pattern = None  # its layers are cut to their ranks, and would be again
        found = adapted.load_adapter(str(folder), "default")  # once more, for what was left over
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"adapter {adapter!r} does not fit the model: {line} (is this the base it was "
            "trained on?)"
        ) from error
    _check_all_used(settings, found, adapter)
    return adapted.eval()


def _check_all_used(settings: Any, found: Any, adapter: str) -> None:
    """Every tensor of the adapter has a place, and every place a tensor: PEFT only warns."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(settings.peft_type, "lora_")
    missing = sorted(key for key in found.missing_keys if prefix in key)
    odd = sorted(found.unexpected_keys) + missing
    if odd:
        what = "is missing for" if odd[0] in missing else "has no place in"
        raise ValueError(
            f"adapter {adapter!r} does not fit the model: {odd[0]!r} {what} it, and {len(odd) - 1} "
            "more (is this the base it was trained on?)"
        )
