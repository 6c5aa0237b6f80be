"""orthora: low-rank adaptation for reinforcement learning with verifiable rewards.

The public API, on one page. Heavy libraries are imported when a name that needs them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthora.adapters import adapt as adapt
    from orthora.adapters import export_plain as export_plain
    from orthora.adapters import init_adapter as init_adapter
    from orthora.config import EvalConfig as EvalConfig
    from orthora.config import TrainConfig as TrainConfig
    from orthora.evaluate import EvalResult as EvalResult
    from orthora.evaluate import evaluate as evaluate
    from orthora.exports import export_merged as export_merged
    from orthora.exports import export_residual as export_residual
    from orthora.linalg import both_subspaces as both_subspaces
    from orthora.linalg import bottom_subspace as bottom_subspace
    from orthora.linalg import top_subspace as top_subspace
    from orthora.methods import initialize as initialize
    from orthora.methods import names as methods
    from orthora.rewards import code_verdict as code_verdict
    from orthora.rewards import math_verdict as math_verdict
    from orthora.stats import pass_at_k as pass_at_k
    from orthora.train import AdaptiveKL as AdaptiveKL
    from orthora.train import RunResult as RunResult
    from orthora.train import steer as steer
    from orthora.train import train as train
    from orthora.types import Factors as Factors
    from orthora.types import Subspace as Subspace
    from orthora.types import Verdict as Verdict

__version__ = "0.1.0"

_CALLABLE = ("methods", "train", "evaluate")
_HOME = {
    "adapt": "adapters",
    "export_plain": "adapters",
    "init_adapter": "adapters",
    "export_merged": "exports",
    "export_residual": "exports",
    "EvalConfig": "config",
    "TrainConfig": "config",
    "EvalResult": "evaluate",
    "both_subspaces": "linalg",
    "bottom_subspace": "linalg",
    "top_subspace": "linalg",
    "initialize": "methods",
    "code_verdict": "rewards",
    "math_verdict": "rewards",
    "pass_at_k": "stats",
    "AdaptiveKL": "train",
    "RunResult": "train",
    "steer": "train",
    "Factors": "types",
    "Subspace": "types",
    "Verdict": "types",
}

__all__ = [
    "AdaptiveKL",
    "EvalConfig",
    "EvalResult",
    "Factors",
    "RunResult",
    "Subspace",
    "TrainConfig",
    "Verdict",
    "__version__",
    "adapt",
    "both_subspaces",
    "bottom_subspace",
    "code_verdict",
    "evaluate",
    "export_merged",
    "export_plain",
    "export_residual",
    "init_adapter",
    "initialize",
    "math_verdict",
    "methods",
    "pass_at_k",
    "steer",
    "top_subspace",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return import_module(f"orthora.{name}")
    if name in _HOME:
        return getattr(import_module(f"orthora.{_HOME[name]}"), name)
    raise AttributeError(f"module 'orthora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
