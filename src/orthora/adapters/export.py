"""What leaves orthora: adapters in the ecosystem's own format, written whole or not at all."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel

from orthora.adapters.model import STATE_NAME
from orthora.store import new_folder

RECORD_NAME = "orthora.json"


def export_plain(model_or_run: PeftModel | str | Path, out_dir: str | Path) -> Path:
    """Write the trained adapter as plain PEFT LoRA: rank r, or rank 2r for anchored methods.

    ``PeftModel.from_pretrained(base, out_dir)`` on the untouched base is then the trained function.

    Args:
        model_or_run: a model from `orthora.adapt`, or a run folder of `orthora.train`.
        out_dir: a folder that does not exist yet or is empty.

    Returns:
        ``out_dir``, holding ``adapter_config.json``, ``adapter_model.safetensors``, and
        ``orthora.json`` with how the adapter was started.

    Raises:
        ValueError: if ``out_dir`` holds files, or the run has no finished adapter.
    """
    with new_folder(out_dir) as temporary:
        if isinstance(model_or_run, PeftModel):
            model_or_run.save_pretrained(str(temporary), selected_adapters=["default"])
            (temporary / "README.md").unlink(missing_ok=True)  # PEFT's unfilled model card
            (temporary / STATE_NAME).unlink(missing_ok=True)  # for resuming, not for others
            record = getattr(model_or_run, "orthora", None)
            if record is not None:
                text = json.dumps(asdict(record), indent=2) + "\n"
                (temporary / RECORD_NAME).write_text(text)
        else:
            source = Path(model_or_run) / "adapter"
            if not (source / "adapter_config.json").is_file():
                raise ValueError(
                    f"{model_or_run} has no finished adapter (no adapter/adapter_config.json); "
                    "let the run finish, or pass a model from orthora.adapt"
                )
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    return Path(out_dir)
