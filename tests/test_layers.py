"""The package's import order, its doors to heavy libraries, and its public names."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import orthora

ROOT = Path(orthora.__file__).parent

ROWS = [  # from low to high; a unit imports from itself and from lower rows only
    ["types", "callable_module", "quiet", "signals", "failures"],
    ["linalg"],
    ["methods"],
    ["strict", "watch", "bar", "pool"],
    ["store", "stats", "voting", "rewards"],
    ["tasks", "table"],
    ["config"],
    ["tiny"],
    ["checkpoint"],
    ["adapters"],
    ["models", "sampling"],
    ["trained"],
    ["evaluate", "exports", "starting", "measure"],
    ["train"],
    ["runs"],
    ["evaluations"],
    ["findings", "figures"],
    ["report"],
    ["study"],
    ["demo", "flags"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
LEVEL = {unit: level for level, row in enumerate(ROWS) for unit in row}
DOORS = {  # library: the units that may import it
    "peft": {"adapters", "models", "train"},
    "trl": {"train"},
    "matplotlib": {"figures"},
    "ray": {"study"},
}
HEAVY = ("transformers", "peft", "trl", "matplotlib", "ray")


class Import(NamedTuple):
    """One import: where it stands, and the dotted name of what it may bind."""

    file: str
    line: int
    unit: str
    target: str


def units() -> set[str]:
    """Modules and packages directly inside orthora; the root itself is none."""
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in ROOT.glob("*/__init__.py")}


def imports_of(source: str, file: str) -> list[Import]:
    """Every import of a file relative to the package root, wherever it stands in the file."""
    parts = Path(file).with_suffix("").parts
    unit = parts[0]
    package = ["orthora", *parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(file, node.lineno, unit, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [
                Import(file, node.lineno, unit, f"{module}.{alias.name}") for alias in node.names
            ]
    return found


def all_imports() -> list[Import]:
    return [
        found
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "__init__.py"
        for found in imports_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]


def upward(found: Import) -> str | None:
    """The complaint about an import that breaks the order, if it does."""
    parts = found.target.split(".")
    if parts[0] != "orthora" or len(parts) < 2 or parts[1] == found.unit:
        return None
    if parts[1] not in LEVEL:  # a name of the root, such as __version__
        return None
    if LEVEL[parts[1]] < LEVEL[found.unit]:
        return None
    return f"{found.file}:{found.line}: {found.unit} imports {found.target}, which is not below it"


def smuggled(found: Import) -> str | None:
    """The complaint about an import of a library outside its doors."""
    library = found.target.split(".")[0]
    if found.unit in DOORS.get(library, {found.unit}):
        return None
    return f"{found.file}:{found.line}: {library} belongs in {', '.join(sorted(DOORS[library]))}"


def test_every_module_has_a_place_in_the_order():
    assert units() == set(LEVEL), "place new modules in ROWS, and drop those that are gone"


def test_no_module_imports_from_its_own_row_or_above():
    assert [complaint for found in all_imports() if (complaint := upward(found))] == []


def test_heavy_libraries_come_in_through_their_doors_only():
    assert [complaint for found in all_imports() if (complaint := smuggled(found))] == []


def test_every_door_is_used():
    used = {found.target.split(".")[0] for found in all_imports()}
    assert set(DOORS) <= used


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("linalg/x.py", "from orthora.methods import names"),
        ("linalg/x.py", "import orthora.methods.registry"),
        ("linalg/x.py", "from orthora import methods"),
        ("linalg/x.py", "from .. import methods"),
        ("linalg/x.py", "from ..methods import names"),
        ("stats.py", "def f():\n    from orthora.store import write_json"),
        ("tasks/x.py", "if True:\n    from orthora.tiny import load"),
    ],
)
def test_the_order_check_can_fail(file, source):
    assert [complaint for found in imports_of(source, file) if (complaint := upward(found))]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("linalg/x.py", "from orthora.linalg.bases import dct_rows"),
        ("linalg/x.py", "from .bases import dct_rows"),
        ("linalg/x.py", "from ..types import Subspace"),
        ("store.py", "from orthora import __version__"),
        ("tiny/x.py", "from orthora.tasks.arithmetic import draw"),
        ("linalg/x.py", "import torch, orthora"),
    ],
)
def test_the_order_check_lets_downward_imports_pass(file, source):
    assert not [complaint for found in imports_of(source, file) if (complaint := upward(found))]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("evaluate.py", "import peft"),
        ("adapters/x.py", "from trl.trainer import utils"),
        ("report.py", "def f():\n    import matplotlib.pyplot as plt"),
    ],
)
def test_the_door_check_can_fail(file, source):
    assert [complaint for found in imports_of(source, file) if (complaint := smuggled(found))]


def python(code: str) -> str:
    """What a fresh interpreter prints; the package under test comes first on its path."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*(x for x in {HEAVY} if x in sys.modules))"
    return set(python(code).split())


def test_the_mathematics_loads_no_model_library():
    assert loaded_by("import orthora.linalg, orthora.methods; orthora.methods()") == set()


def test_the_root_loads_nothing_heavy_not_even_torch():
    assert python("import sys, orthora; print('torch' in sys.modules)") == "False"


def test_the_load_check_can_fail():
    assert {"peft", "transformers"} <= loaded_by("import orthora.adapters")


CALLABLE = "print(all(map(callable, (orthora.methods, orthora.train, orthora.evaluate))))"


@pytest.mark.parametrize(
    "first",
    [
        "import orthora.train.rlvr",
        "import orthora.evaluate, orthora.methods.registry, orthora.train.progress",
    ],
)
def test_methods_train_and_evaluate_are_callable_whatever_came_first(first):
    check = "assert 'rlpo' in orthora.methods(); from orthora import train; assert callable(train)"
    assert python(f"{first}\nimport orthora\n{CALLABLE}\n{check}") == "True"


def test_every_public_name_resolves():
    code = (
        "import orthora\n"
        "missing = [x for x in orthora.__all__ if getattr(orthora, x, None) is None]\n"
        "star = {}\n"
        "exec('from orthora import *', star)\n"
        "assert all(callable(star[x]) for x in ('methods', 'train', 'evaluate'))\n"
        "print(missing, sorted(set(orthora.__all__) - set(star)), dir(orthora) == orthora.__all__)"
    )
    assert python(code) == "[] [] True"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'orthora' has no attribute 'trian'"):
        _ = orthora.trian
