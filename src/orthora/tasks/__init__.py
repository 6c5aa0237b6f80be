"""Tasks: problems with gold answers, procedural, by name, or from files."""

from orthora.tasks.contamination import find_contamination as find_contamination
from orthora.tasks.files import load_problems as load_problems
from orthora.tasks.hygiene import audit as audit
from orthora.tasks.registry import load_task as load_task
