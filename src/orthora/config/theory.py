"""The settings of a check of the theory."""

from typing import ClassVar

from pydantic import Field, field_validator

from orthora.config.run import TrainConfig
from orthora.methods import Composition, compose


class TheoryConfig(TrainConfig):
    """The source paper's theorems, checked on this model's layers; the fields of a training run."""

    command: ClassVar[str] = "orthora theory"
    out: str = "unused"
    """Not used: nothing is kept but what json_out names."""
    methods: list[str] = Field(
        ["lora", "pissa", "milora", "rlpo", "rlmo", "olora", "olora-tail", "dct"], min_length=1
    )
    """Initialisations to check; rslora may be added to them, as in ``rlpo+rslora``."""
    updates: int = Field(5, ge=1)
    """T, the updates on one mini-batch over which the gap to full fine-tuning is measured."""
    gradient_rate: float | None = Field(None, gt=0)
    """Learning rate of gradient descent, which the theorems are about; left out, it is
    learning_rate, which is AdamW's."""
    json_out: str | None = None
    """JSON file to write, with the numbers of every layer; must not exist."""

    @field_validator("methods")
    @classmethod
    def _plain(cls, names: list[str]) -> list[str]:
        found = [_checked(compose(name)) for name in names]
        twice = [name for name in found if found.count(name) > 1]
        if twice:
            raise ValueError(f"methods name {twice[0]!r} twice; leave one of them out")
        return found

    def run(self) -> TrainConfig:
        """The run whose first mini-batch is looked at."""
        fields = {key: getattr(self, key) for key in TrainConfig.model_fields}
        return TrainConfig(**fields)


def _checked(method: Composition) -> str:
    """The name of a method that the theorems are about: ``s B A``, trained by one rate."""
    others = [one.name for one in method.structures if one.name != "rslora"]
    others += [method.optimizer.name] if method.optimizer else []
    if others:
        raise ValueError(
            f"method {method.name!r}: the theorems are about plain factors A and B with one "
            f"learning rate, and {others[0]} is not; choose initialisations alone, such as "
            "'rlpo' or 'pissa'"
        )
    return method.name
