"""What every cell's process needs, imported once and shared by all that are forked from it."""

from orthora import evaluate as evaluate
from orthora import train as train
