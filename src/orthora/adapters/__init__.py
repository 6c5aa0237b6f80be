"""The only door to PEFT: attach adapters to models, and export them."""

from orthora.adapters.attach import AdapterRecord as AdapterRecord
from orthora.adapters.attach import adapt as adapt
from orthora.adapters.checks import adapted_layers as adapted_layers
from orthora.adapters.checks import weight_of as weight_of
from orthora.adapters.export import export_plain as export_plain
from orthora.adapters.layers import AnchoredLinear as AnchoredLinear
