"""A run's learning rate, found by a probe before it."""

from pathlib import Path
from typing import Any

from orthora.config import TrainConfig, build, read_toml
from orthora.config.match import parse_match
from orthora.train.probing import as_json, probe
from orthora.train.rewards import OwnReward
from orthora.train.trials import Probe
from orthora.train.world import World


def matched(
    config: TrainConfig,
    world: World,
    out: Path,
    *,
    resume: bool,
    reward: OwnReward | str | None = None,
) -> tuple[TrainConfig, list[dict[str, Any]]]:
    """The config with its learning rate found, and the probes that found it.

    A resumed run keeps what was found when it began.

    Args:
        config: as given.
        world: the processes.
        out: run folder.
        resume: go on with what is there.
        reward: own one of the run.

    Raises:
        ValueError: if it can't be found, or there are several processes.
    """
    if config.learning_rate_match is None:
        return config, []
    if resume and (out / "config.toml").is_file():
        before = build(TrainConfig, read_toml(out / "config.toml"))
        if before.learning_rate_match == config.learning_rate_match:
            return _with_rate(config, before.learning_rate), []
    if world.size > 1:
        raise ValueError(
            "a learning rate is matched by one process; run orthora probe alone, and give "
            "learning_rate the number that it finds"
        )
    match = parse_match(config.learning_rate_match)
    start = _with_rate(config, match.rate)
    by_kl, both = match.what == "kl", [match.method, config.method]
    found = probe(start, both, trials=8 if by_kl else 1, reward=reward, matching=by_kl)
    rate = found[1].matched_learning_rate if by_kl else _by_norm(*found)
    if rate is None:
        tried = ", ".join(f"{lr:.2g}: {kl:.2g}" for lr, kl in found[1].trials)
        raise ValueError(
            f"no learning rate was found at which a step of {config.method} causes the KL of "
            f"{match.method} at {match.rate:g}, {found[0].kl:.2g} (tried {tried}); give a number, "
            "or use schedule 'adaptive-kl'"
        )
    return _with_rate(config, rate), as_json(found)


def _by_norm(reference: Probe, own: Probe) -> float:
    """The first update's norm grows in proportion to the learning rate."""
    if not reference.first_update_norm or not own.first_update_norm:
        names = f"{reference.method} and {own.method}"
        raise ValueError(f"the first update of {names} is not above 0 for both; give a number")
    return own.learning_rate * reference.first_update_norm / own.first_update_norm


def _with_rate(config: TrainConfig, rate: float) -> TrainConfig:
    return build(TrainConfig, config.model_dump() | {"learning_rate": rate})
