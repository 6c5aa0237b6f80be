"""A small study that was run once; who uses it belongs to the test group ``study``."""

from pathlib import Path

import pytest
from driven import results, run, write_study


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> tuple[Path, str]:
    """The small study, run without a disturbance, and its result table."""
    file = write_study(tmp_path_factory.mktemp("undisturbed"))
    run("run", file, "--jobs", "2")
    return file, results(file)
