"""What the page says of its numbers."""

NOTES = {
    "KL": "On the tokens of the rollouts, in nats per token. KL per update: rollout policy to "
    "updated policy, estimator k3; the table has the mean over the run. KL to base: rollout "
    "policy, so before the step's updates, to the base model, estimator k1 (few unlikely tokens "
    "make k3 leap there); the table has the mean over the last ten steps.",
    "Held-out pass@1": "Mean share of correct samples over held-out problems, after training.",
    "Interval": "Bootstrap over the held-out problems. It says how much the choice of problems "
    "moves the number, and nothing of the training seed.",
    "Clear": "The two intervals, as printed, do not overlap. This is a cautious rule: a difference "
    "that is not clear may still be real.",
    "Peak grad norm": "The largest gradient norm of the run.",
    "Seconds": "Wall time of the run.",
    "Reward and pass rate in the charts": "On the training rollouts of each step, not held-out.",
}
EVAL_NOTES = {
    "Pass@1": "Mean over problems of the share of correct samples (mean@n), with a 95 % bootstrap "
    "interval over problems.",
    "Pass@k": "Unbiased, for k as large as there are samples.",
    "No answer": "Responses in which the verifier found no answer, cut at the limit or not.",
    "No score": "Samples whose sandbox failed; they count neither as right nor as wrong.",
    "Rules differ on": "Samples that the rule that counts and dapo (or robust) judge differently.",
    "In training data": "Problems found in the training data: word for word, by half of their word "
    "10-grams, or by their opening.",
}
