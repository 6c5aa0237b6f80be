"""Methods: initialisations (pure functions W -> A, B), structures and optimizers.

One import line per family of initialisations.
"""

from orthora.callable_module import make_callable
from orthora.methods import datafree as datafree
from orthora.methods import geora as geora
from orthora.methods import lora as lora
from orthora.methods import minor as minor
from orthora.methods import principal as principal
from orthora.methods.compose import Composition as Composition
from orthora.methods.compose import compose as compose
from orthora.methods.compose import compositions as compositions
from orthora.methods.compose import names as names
from orthora.methods.registry import Method as Method
from orthora.methods.registry import get as get
from orthora.methods.start import initialize as initialize
from orthora.methods.structural import OptimizerRecord as OptimizerRecord
from orthora.methods.structural import Structure as Structure

make_callable(__name__, names)
