"""Rewards: what a verifier says of a response, and the number that training gets from it."""

from orthora.rewards.dapo import dapo_score
from orthora.rewards.maths import gold_of, math_verdict

__all__ = ["dapo_score", "gold_of", "math_verdict"]
