"""Ends of a run that training itself led to, apart from mistakes in its settings."""


class TrainingFailed(ValueError):
    """An outcome of the run: it would end so again. ``result.json`` says ``ended_by_training``."""


class NotFinite(TrainingFailed):
    """A loss, a gradient, or the policy's logits or scores are NaN or infinite."""


class TooFar(TrainingFailed):
    """Every step moves the policy too far, however small the learning rate may be."""


class NoSignal(TrainingFailed):
    """There is nothing to learn from: all answers of nearly every group are right, or all wrong."""
