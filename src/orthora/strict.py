"""Strict, typed, frozen configuration: TOML files, dicts and command lines give the same object."""

import difflib
import json
import tomllib
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import pydantic
from pydantic import BaseModel, ConfigDict

Config = TypeVar("Config", bound="Strict")


class Strict(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    command: ClassVar[str] = ""
    """That takes it as a file of its own; "" for a part of another config."""


def preset_names() -> list[str]:
    """Names of the packaged presets."""
    folder = resources.files("orthora") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if ".toml" in p.name)


def read_toml(name: str | Path) -> dict[str, Any]:
    """The table in a TOML file, or in the packaged preset of that name.

    Raises:
        ValueError: if there is neither, or the file is not TOML in UTF-8.
    """
    path = Path(name)
    if not path.is_file() and str(name) in preset_names():
        text = (resources.files("orthora") / "presets" / f"{name}.toml").read_text()
    elif path.is_file():
        text = _text(path)
    else:
        raise ValueError(
            f"no config file {str(name)!r}; give a TOML file or a preset: "
            f"{', '.join(preset_names())}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not valid TOML: {error}") from error


def _text(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark before it
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error


def build(kind: type[Config], source: Config | dict[str, Any] | str | Path) -> Config:
    """A validated config from itself, a dict, a TOML file, or a preset's name.

    Raises:
        ValueError: one line per mistake; an unknown key comes with the nearest known one.
    """
    if isinstance(source, kind):
        return source
    if isinstance(source, str | Path):
        source = read_toml(source)
    if not isinstance(source, dict):
        raise ValueError(f"{kind.__name__} can't be made of a {type(source).__name__}")
    table = source
    unknown = [key for key in table if key not in kind.model_fields]
    if unknown:
        for other in Strict.__subclasses__() if kind.command else ():
            if other.command and table.keys() <= other.model_fields.keys():
                raise ValueError(
                    f"unknown config key {unknown[0]!r}: this is a config of {other.command}, "
                    f"and {kind.command} takes other keys (see its --help)"
                )
        near = difflib.get_close_matches(unknown[0], kind.model_fields, n=1, cutoff=0.65)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown config key {unknown[0]!r}.{hint}")
    for key, value in table.items():
        if isinstance(value, bool) and _number(kind.model_fields[key].annotation):
            raise ValueError(f"{key}: should be a number, got {str(value).lower()}")
    try:
        return kind(**table)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_plain(item) for item in error.errors())) from error


def _number(annotation: Any) -> bool:
    """Whether a field takes numbers and no truth values, which Python counts among them."""
    kinds = {annotation, *get_args(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


def _plain(item: Any) -> str:
    """One validation mistake as `key: what is wrong, got value`."""
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if not key or item["type"] == "value_error":  # ours say it all
        return message
    value = "" if item["type"] == "missing" else f", got {item['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{value}"


def differences(before: dict[str, Any], now: Strict, free: Collection[str] = ("out",)) -> str:
    """The settings that are not what they were, with both values; "" if there are none.

    Args:
        before: the config as it was, as JSON; what it lacks came later, and was its default.
        now: the config.
        free: settings that don't count.
    """
    fields = type(now).model_fields.items()
    defaults = {key: info.get_default() for key, info in fields if not info.is_required()}
    old, new = json.loads(json.dumps(defaults)) | before, now.model_dump(mode="json")
    keys = [key for key in new | old if old.get(key) != new.get(key) and key not in free]
    return ", ".join(f"{key} ({old.get(key)!r} then, {new.get(key)!r} now)" for key in keys)


def to_toml(config: BaseModel) -> str:
    """The config as TOML that `build` reads back to an equal object; None is left out."""
    lines = []
    for key, value in config.model_dump(mode="json").items():
        if value is not None:
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"
