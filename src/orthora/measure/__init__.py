"""Runs, adapters and whole models -> one tidy table of what training did to the weights."""

from orthora.measure.run import Measured as Measured
from orthora.measure.run import measure as measure
