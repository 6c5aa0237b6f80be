"""The only door to PEFT: attach adapters to models, and export them."""

from orthora.adapters.attach import AdapterRecord as AdapterRecord
from orthora.adapters.attach import adapt as adapt
from orthora.adapters.checks import adapted_layers as adapted_layers
from orthora.adapters.checks import weight_of as weight_of
from orthora.adapters.dense import dense_of as dense_of
from orthora.adapters.dense import safe_mask as safe_mask
from orthora.adapters.export import export_plain as export_plain
from orthora.adapters.export import write_merged as write_merged
from orthora.adapters.export import write_residual as write_residual
from orthora.adapters.fold import folded as folded
from orthora.adapters.fold import folds_exactly as folds_exactly
from orthora.adapters.fold import merged_parameters as merged_parameters
from orthora.adapters.layers import AnchoredLinear as AnchoredLinear
from orthora.adapters.slots import ADAPTER as ADAPTER
from orthora.adapters.slots import Slot as Slot
from orthora.adapters.slots import slots_of as slots_of
from orthora.adapters.stream import InitResult as InitResult
from orthora.adapters.stream import Progress as Progress
from orthora.adapters.stream import init_adapter as init_adapter
from orthora.adapters.upkeep import after_update as after_update
from orthora.adapters.upkeep import base_policy as base_policy
from orthora.adapters.upkeep import load_upkeep_state as load_upkeep_state
from orthora.adapters.upkeep import orthogonality as orthogonality
from orthora.adapters.upkeep import own_parameters as own_parameters
from orthora.adapters.upkeep import ranks as ranks
from orthora.adapters.upkeep import upkeep_state as upkeep_state
