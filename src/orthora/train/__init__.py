"""The only door to TRL: RLVR training."""

from orthora.callable_module import make_callable
from orthora.train.own_script import AdaptiveKL as AdaptiveKL
from orthora.train.own_script import steer as steer
from orthora.train.rlvr import RunResult as RunResult
from orthora.train.rlvr import train as train

make_callable(__name__, train)
