"""Command-line flags from typed settings: dataclasses, and configs with a file beneath them."""

from typing import Any

import tyro


def parse(kind: type[Any], arguments: list[str], command: str, **kwargs: Any) -> Any:
    """Parse flags into ``kind``; tyro prints its own help and suggestions."""
    return tyro.cli(kind, args=arguments, prog=f"orthora {command}", **kwargs)


def config_of_flags(kind: type[Any], arguments: list[str], command: str) -> Any:
    """A config from ``--config FILE`` (TOML or preset) with flags on top."""
    from pydantic import Field, create_model

    from orthora.config import build, read_toml

    table: dict[str, Any] = {}
    rest = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            inline = argument.startswith("--config=")
            if not inline and index + 1 == len(arguments):
                raise ValueError("--config needs a TOML file or a preset's name")
            name = argument.split("=", 1)[1] if inline else arguments[index + 1]
            rest = arguments[:index] + arguments[index + (1 if inline else 2) :]
            table = read_toml(name)
            break
    # Mistakes in the file, before those in the flags.
    built = build(kind, _required(kind, table) | table)
    short = getattr(kind, "flag_types", {})
    defaults = {
        name: tyro.MISSING if info.is_required() else info.get_default()
        for name, info in kind.model_fields.items()
    }
    defaults |= {name: table[name] if name in short else getattr(built, name) for name in table}
    # The same fields without the cross-field checks, so that `build` alone words every mistake.
    fields: dict[str, Any] = {
        name: (
            short.get(name, info.annotation),
            Field(defaults[name], description=info.description),
        )
        for name, info in kind.model_fields.items()
    }
    note = "--config FILE reads a TOML file or preset; flags override it."
    if command == "train":
        note += " --resume goes on with an unfinished run, or starts it where there is none."
    flags = create_model(kind.__name__, __doc__=f"{kind.__doc__}\n\n{note}", **fields)
    parsed = parse(flags, rest, command, default=flags.model_construct(**defaults))
    values = parsed.model_dump()
    given = {name for name, value in values.items() if value != defaults[name]}
    settled = getattr(kind, "settled", lambda values, given: values)
    return build(kind, settled(values, given))


def _required(kind: type[Any], table: dict[str, Any]) -> dict[str, Any]:
    """Stand-ins for what a config must have, to check a file that leaves them to the flags."""
    needed = [name for name, info in kind.model_fields.items() if info.is_required()]
    if table.get("task", "file") == "file":  # other tasks refuse it
        needed.append("data")
    if "any_base" in kind.model_fields:  # of an evaluation
        needed += ["adapter", "out"] if table.get("checkpoints") else []
        needed += [] if table.get("adapter") else ["model"]
    return dict.fromkeys(needed, "?")
