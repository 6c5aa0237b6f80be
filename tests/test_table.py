"""The tidy table goes to disk and back unchanged, explains itself, and says what is wrong."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orthora.table import (
    COLUMNS,
    Row,
    columns_markdown,
    frame,
    quantities_markdown,
    read_table,
    write_table,
)

ROWS = [
    Row("a", "lora", 1, 0, "self_attn.q_proj", "nss", math.nan, 0.1),
    Row("a", "", -1, -1, "lm_head", "sigma", 3.0, 1 / 3),
    Row("NA", "null", -1, -1, "nan", 'a,"b"', 3.0, 1e-300),
]


HEAD = ",".join(COLUMNS).encode() + b"\n"


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_round_trip(tmp_path, end):
    path = write_table(tmp_path / "new" / f"t.{end}", [frame(ROWS[:1]), frame(ROWS[1:])], {})
    found = read_table(path)
    assert found.equals(frame(ROWS))
    assert list(found.columns) == list(COLUMNS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("parts", [[], [frame([])]])
@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_an_empty_table_is_one(tmp_path, parts, end):
    assert read_table(write_table(tmp_path / f"t.{end}", parts, {})).equals(frame([]))


def test_parquet_explains_itself(tmp_path):
    write_table(tmp_path / "t.parquet", [frame(ROWS)], {"model": "tiny"})
    about = pq.read_schema(tmp_path / "t.parquet").metadata
    assert json.loads(about[b"orthora"]) == {"model": "tiny"}
    assert json.loads(about[b"columns"]) == dict(COLUMNS)
    assert json.loads(about[b"quantities"])["nss"]["unit"] == "share"


def test_a_failed_write_leaves_the_old_table(tmp_path):
    path = write_table(tmp_path / "t.parquet", [frame(ROWS)], {})
    with pytest.raises(TypeError):
        write_table(path, [frame(ROWS[:1])], {"no": object()})
    assert len(read_table(path)) == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.txt", None, "neither .parquet nor .csv"),
        ("t.csv", None, "no table .*; write it with orthora measure"),
        ("t.csv", b"run,step\na,1\n", "no column 'method'"),
        ("t.csv", b"", "can't be read"),
        ("t.csv", HEAD + b"a,,x,0,m,nss,,1\n", "t.csv holds what is no number"),
        ("t.csv", HEAD + b"a,,1,0,m,nss,,high\n", "t.csv holds what is no number"),
        ("t.parquet", b"PAR1", "can't be read: .*; measure again"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_table(tmp_path / name)
    assert "\n" not in str(error.value)


DOCS = Path(__file__).resolve().parents[1] / "docs" / "measure.md"


@pytest.mark.parametrize(
    ("part", "rendered"), [("columns", columns_markdown), ("quantities", quantities_markdown)]
)
def test_the_documentation_is_rendered_from_the_table(part, rendered):
    """Regenerate with ``python -c "from orthora.table import *; print(quantities_markdown())"``."""
    text = DOCS.read_text(encoding="utf-8")
    shown = text.split(f"<!-- {part} -->\n", 1)[1].split(f"<!-- /{part} -->", 1)[0]
    assert shown.strip() == rendered()
