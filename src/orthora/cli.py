"""The command line of orthora."""

import difflib
import os
import sys
from collections.abc import Sequence

from orthora.commands import COMMANDS
from orthora.quiet import short_warnings
from orthora.signals import terminable

HELP = """orthora: low-rank adaptation for reinforcement learning with verifiable rewards

  orthora methods                          list initialisations, structures, optimizers
  orthora init MODEL --out DIR [--key ...]  start an adapter from a checkpoint, in seconds
  orthora train --config FILE [--key ...]  train an adapter; presets: tiny, paper
  orthora probe --config FILE [--key ...]  before training: what one step does, by method
  orthora theory MODEL --data FILE         the papers' theorems, checked on this model's layers
  orthora eval  --config FILE [--key ...]  sample, verify, report pass@k with intervals
  orthora rescore DIR                      verify the samples of an evaluation again
  orthora compare DIR DIR                  paired difference of evaluations, exact test
  orthora contamination EVAL TRAIN         which evaluation problems a training set holds
  orthora measure RUN...                   what training did to the weights, as one table
  orthora figure NAME RUN...               a figure or table of runs; figure list says which
  orthora export --run RUN --out DIR       write a run's adapter as plain PEFT, or merged
  orthora study run|report FILE            a grid of runs, fairly compared, whatever happens
  orthora demo                             compare five initialisations on the embedded model
  orthora report --runs DIR                print the table of a folder of runs, write its page

orthora COMMAND --help explains a command. ORTHORA_DEBUG=1 shows tracebacks of errors."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; user errors are one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] in ("-V", "--version"):
        from orthora import __version__

        print(f"orthora {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    with short_warnings(), terminable(_GO_ON.get(command, "")) as settle:
        try:
            return _run(command, rest)
        except (ValueError, OSError) as error:
            settle()
            if "ORTHORA_DEBUG" in os.environ:
                raise
            print(f"orthora {command}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            settle()
            print(f"orthora {command}: {str(error) or _stopped(command)}", file=sys.stderr)
            return 130


_AGAIN = "the same command goes on"
_GO_ON = {
    "train": "go on with --resume",
    "init": _AGAIN,
    "eval": f"with --out, {_AGAIN}",
    "measure": _AGAIN,
    "study": _AGAIN,
}


def _stopped(command: str) -> str:
    """What Ctrl-C leaves to do."""
    return "; ".join(filter(None, ("interrupted", _GO_ON.get(command))))


def _run(command: str, rest: list[str]) -> int:
    """Carry out one command."""
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown command {command!r}.{hint} Commands: {', '.join(COMMANDS)}")
    try:
        COMMANDS[command](rest)
    except RuntimeError as error:
        from orthora.rewards import SandboxError, WorkersError

        if isinstance(error, SandboxError | WorkersError):
            raise OSError(str(error)) from error
        raise
    return 0
