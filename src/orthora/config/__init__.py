"""Settings of runs, probes and evaluations; TOML, dicts and flags give the same object."""

from orthora.config.evaluation import EvalConfig as EvalConfig
from orthora.config.probe import ProbeConfig as ProbeConfig
from orthora.config.run import TrainConfig as TrainConfig
from orthora.config.theory import TheoryConfig as TheoryConfig
from orthora.strict import Strict as Strict
from orthora.strict import build as build
from orthora.strict import preset_names as preset_names
from orthora.strict import read_toml as read_toml
from orthora.strict import to_toml as to_toml
