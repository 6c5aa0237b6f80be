"""The settings of a probe."""

from typing import ClassVar

from pydantic import Field, field_validator

from orthora.config.run import TrainConfig
from orthora.methods import compose


class ProbeConfig(TrainConfig):
    """One training step of each method, measured and taken back; the fields of a training run."""

    command: ClassVar[str] = "orthora probe"
    out: str = "unused"
    """Not used: nothing is kept but what json names."""
    methods: list[str] = Field(["lora", "rlpo", "rlmo", "pissa", "milora"], min_length=1)
    """To compare; the others are matched to the first one."""
    target_kl: float | None = Field(None, gt=0)
    """KL that a step is to cause, nats per token; left out, it is what the first method's causes at
    learning_rate."""
    rollouts: int = Field(2, ge=1)
    """Rollouts that every step is averaged over; all methods are given the same."""
    trials: int = Field(6, ge=1)
    """Learning rates to try per method, at most."""
    json_out: str | None = None
    """JSON file to write; must not exist. Until all methods are done it is called ``.partial``."""

    @field_validator("methods")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        return [compose(name).name for name in names]

    def run(self) -> TrainConfig:
        """The run that is planned."""
        fields = {key: getattr(self, key) for key in TrainConfig.model_fields}
        return TrainConfig(**fields)
