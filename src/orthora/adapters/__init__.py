"""The only door to PEFT: attach adapters to models, and export them."""

from orthora.adapters.attach import AdapterRecord as AdapterRecord
from orthora.adapters.attach import adapt as adapt
from orthora.adapters.checks import adapted_layers as adapted_layers
from orthora.adapters.checks import weight_of as weight_of
from orthora.adapters.export import export_plain as export_plain
from orthora.adapters.layers import AnchoredLinear as AnchoredLinear
from orthora.adapters.slots import Slot as Slot
from orthora.adapters.slots import slots_of as slots_of
from orthora.adapters.stream import InitResult as InitResult
from orthora.adapters.stream import Progress as Progress
from orthora.adapters.stream import init_adapter as init_adapter
