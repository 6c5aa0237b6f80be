"""Studies: a grid of runs that differ in what it says alone, run to the end, judged fairly."""

from orthora.study.plan import Cell as Cell
from orthora.study.plan import plan as plan
from orthora.study.run import Outcome as Outcome
from orthora.study.run import run_study as run_study
from orthora.study.spec import StudySpec as StudySpec
from orthora.study.spec import load_study as load_study
