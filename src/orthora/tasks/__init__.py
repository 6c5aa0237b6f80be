"""Tasks: problems with gold answers, procedural or from files."""

from orthora.tasks.files import load_problems as load_problems
