"""Evaluation that can be believed: every sample kept, unbiased estimates, intervals, two rules."""

from orthora.callable_module import make_callable
from orthora.evaluate.comparing import Comparison as Comparison
from orthora.evaluate.comparing import compare as compare
from orthora.evaluate.rescoring import rescore as rescore
from orthora.evaluate.result import EvalResult as EvalResult
from orthora.evaluate.run import evaluate as evaluate
from orthora.evaluate.run import score as score
from orthora.evaluate.series import series as series

make_callable(__name__, evaluate)
