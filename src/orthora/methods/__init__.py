"""Initialisations: pure functions of a weight matrix. One import line per family."""

from orthora.callable_module import make_callable
from orthora.methods import datafree as datafree
from orthora.methods import geora as geora
from orthora.methods import lora as lora
from orthora.methods import minor as minor
from orthora.methods import principal as principal
from orthora.methods.registry import Method as Method
from orthora.methods.registry import get as get
from orthora.methods.registry import initialize as initialize
from orthora.methods.registry import names as names

make_callable(__name__, names)
