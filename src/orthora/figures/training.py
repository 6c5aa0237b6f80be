"""Figures of training: what runs record at every step, by method and setting."""

from orthora.figures.lines import lines, of_training
from orthora.figures.panels import Drawing, Panel
from orthora.figures.source import Frame
from orthora.figures.style import DOUBLE, SINGLE

_SMOOTH = 12
"""Parts of a run over which the running mean of noisy quantities goes."""


def window_of(table: Frame, quantity: str) -> int:
    """Window of the running mean: a twelfth of the longest run."""
    counts = of_training(table, quantity).groupby("run").size()
    return max(1, int(counts.max()) // _SMOOTH)


def _panel(
    table: Frame, quantity: str, title: str, ylabel: str, log: bool, noisy: bool
) -> tuple[Panel, tuple[str, ...]]:
    smooth = window_of(table, quantity) if noisy else 1
    drawn = lines(table, of_training(table, quantity), smooth=smooth)
    panel = Panel(title, "training step", ylabel, drawn.series, log=log, whole=True)
    return panel, drawn.notes


def curve(
    table: Frame,
    quantity: str,
    title: str,
    ylabel: str,
    *,
    log: bool = False,
    noisy: bool = True,
    says: str = "",
) -> Drawing:
    """One quantity of the metrics log against the training step, a line per method and setting.

    Args:
        table: as `orthora.figures.source.collect` gives it.
        quantity: key of the metrics log.
        title: heading.
        ylabel: name and unit.
        log: logarithmic axis.
        noisy: draw a running mean.
        says: what the caption begins with.
    """
    panel, notes = _panel(table, quantity, title, ylabel, log, noisy)
    return Drawing(title, (panel,), (says, *notes) if says else notes)


def reward(table: Frame) -> Drawing:
    """Mean reward of the groups trained on, length penalty included."""
    return curve(table, "reward", "Reward", "mean reward", says="Reward of the groups trained on.")


def accuracy(table: Frame) -> Drawing:
    """Share of correct responses among all that were drawn for training."""
    return curve(
        table, "pass_rate", "Training accuracy", "share correct",
        says="Share of correct responses to training problems, not held-out.",
    )  # fmt: skip


def kl(table: Frame) -> Drawing:
    """How far a step's updates moved the policy."""
    return curve(
        table, "kl_update_k3", "KL per step", "nats per token", log=True,
        says="KL of the rollout policy to the updated policy, estimator k3.",
    )  # fmt: skip


def kl_base(table: Frame) -> Drawing:
    """How far the policy is from the base model."""
    return curve(
        table, "kl_base_k1", "KL to the base model", "nats per token",
        says="KL of the rollout policy to the base model, estimator k1.",
    )  # fmt: skip


def grad_norm(table: Frame) -> Drawing:
    """Gradient norm before clipping."""
    return curve(
        table, "grad_norm", "Gradient norm", "norm", log=True,
        says="Norm before clipping, mean over a step's updates.",
    )  # fmt: skip


def entropy(table: Frame) -> Drawing:
    """Entropy of the policy at the tokens."""
    return curve(table, "entropy", "Entropy", "nats per token")


def length(table: Frame) -> Drawing:
    """Mean length of a response."""
    return curve(table, "length", "Response length", "tokens")


def truncated(table: Frame) -> Drawing:
    """Share of responses cut at the limit."""
    return curve(table, "truncated", "Responses cut at the limit", "share")


def lr(table: Frame) -> Drawing:
    """Learning rate of each step's last update."""
    return curve(table, "lr", "Learning rate", "of the last update", log=True, noisy=False)


def distance(table: Frame) -> Drawing:
    """How far the weights are from the start."""
    return curve(
        table, "delta_norm", "Distance from the start", "norm", noisy=False,
        says="|W_t - W_0|_F over all adapted weights.",
    )  # fmt: skip


def step_norm(table: Frame) -> Drawing:
    """How far a step moved the weights."""
    return curve(
        table, "update_norm", "Change per step", "norm", log=True,
        says="|W_t - W_(t-1)|_F over all adapted weights.",
    )  # fmt: skip


def clipped(table: Frame) -> Drawing:
    """Share of tokens at which a clip of the ratio held the loss."""
    parts = (("clip_low", "Lower clip"), ("clip_high", "Upper clip"))
    return _several(table, [(key, title, "share of tokens", False) for key, title in parts],
                    "Clipped tokens")  # fmt: skip


OVERVIEW = (
    ("reward", "Reward", "mean reward", False),
    ("pass_rate", "Training accuracy", "share correct", False),
    ("kl_update_k3", "KL per step", "nats per token", True),
    ("grad_norm", "Gradient norm", "norm", True),
    ("entropy", "Entropy", "nats per token", False),
    ("length", "Response length", "tokens", False),
)
"""Quantity, title, vertical axis and whether it is logarithmic, of the overview's panels."""


def overview(table: Frame) -> Drawing:
    """Six curves of training in one figure: reward, accuracy, KL, gradient, entropy, length."""
    return _several(table, list(OVERVIEW), "Training", columns=3)


def _several(
    table: Frame, parts: list[tuple[str, str, str, bool]], title: str, columns: int = 2
) -> Drawing:
    known = [part for part in parts if len(of_training(table, part[0]))]
    drawn = [_panel(table, *part, noisy=True) for part in known]
    notes = dict.fromkeys(note for _, several in drawn for note in several)
    width = DOUBLE if columns > 1 else SINGLE
    return Drawing(title, tuple(panel for panel, _ in drawn), tuple(notes), columns, width)
