"""The tidy table of measurements: what its columns and quantities mean, reading and writing.

One row is one number. As Parquet or CSV it opens in pandas, R or DuckDB without a word of orthora.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from orthora.store import replacing

NAME = "geometry.parquet"
"""Of the table that `orthora measure` leaves beside what it measured."""
BASE = "base"
"""The run under which the base model's own weights stand, at step 0."""
COLUMNS: Mapping[str, str] = {
    "run": f"name of the run or adapter; {BASE!r} for the base model's own weights",
    "method": "method of the run, empty where unknown",
    "step": "training steps done; -1 where a folder does not say",
    "layer": "index of the layer; -1 outside the layers",
    "module": "path of the weight inside its layer, e.g. self_attn.q_proj",
    "quantity": "what was measured",
    "at": "place in a series: an index from 1, or a share; empty for a single number",
    "value": "the number, in the quantity's unit",
}


class Row(NamedTuple):
    """One number; see `COLUMNS`."""

    run: str
    method: str
    step: int
    layer: int
    module: str
    quantity: str
    at: float
    value: float


@dataclass(frozen=True)
class Quantity:
    """What a quantity means.

    Attributes:
        unit: of the value.
        meaning: a sentence.
        at: what the place in the series is; empty for a single number.
        source: paper and equation, where there is one.
    """

    unit: str
    meaning: str
    at: str = ""
    source: str = ""


_RL, _NOT, _GEO = "arXiv 2606.31813", "arXiv 2511.08567", "arXiv 2601.09361"

QUANTITIES: Mapping[str, Quantity] = {
    # of the base weight W, run "base"
    "weight_norm": Quantity("norm", "|W|_F"),
    "weight_stable_rank": Quantity("number", "|W|_F^2 / |W|_2^2"),
    "weight_effective_rank": Quantity("number", "exp of the entropy of sigma_i / sum sigma"),
    "sigma": Quantity(
        "singular value", "spectrum of W, descending", "index i from 1", f"{_RL}, Fig. 9"
    ),
    # of the start
    "start_norm": Quantity(
        "norm", "|B0 A0|_F, without the scale; 0 for methods that start at B = 0", "",
        f"{_RL}, Table 4",
    ),
    "row_alignment_top": Quantity(
        "share", "|A V|_F / |A|_F with the top-r right singular vectors V of W, r the rank of A",
        "", f"{_RL}, Fig. 7",
    ),
    "row_alignment_bottom": Quantity(
        "share", "the same with the bottom-r right singular vectors", "", f"{_RL}, Fig. 7"
    ),
    "row_space_kept": Quantity(
        "share", "mean squared cosine between the row spaces of A and of A0: 1 if A kept it"
    ),
    # of the update dW
    "update_norm": Quantity("norm", "|dW|_F"),
    "update_relative": Quantity("share", "|dW|_F / |W|_F"),
    "update_spectral": Quantity("norm", "|dW|_2"),
    "update_sigma": Quantity("singular value", "spectrum of dW, descending", "index i from 1"),
    "stable_rank": Quantity("number", "|dW|_F^2 / |dW|_2^2", "", "arXiv 2606.07082"),
    "effective_rank": Quantity("number", "exp of the entropy of dW's sigma_i / sum sigma"),
    "energy": Quantity(
        "share", "c_i^2 / sum c_j^2 with c_i = |u_i' dW v_i|, of the leading and the last pairs",
        "index i from 1", f"{_RL}, Fig. 3",
    ),
    "energy_cumulative": Quantity(
        "share", "running sum of c_i^2 / sum c_j^2 over W's spectrum from the top",
        "share of W's singular pairs, 0 to 1", f"{_RL}, Fig. 3",
    ),
    "alignment": Quantity(
        "share", "|dW v_j| / |dW|_F for the leading right singular vectors of W",
        "index j from 1", f"{_GEO}, eq. 10",
    ),
    "head_energy": Quantity(
        "share", "|dW V|_F^2 / |dW|_F^2 with W's leading right singular vectors V", "", _GEO
    ),
    "tail_energy": Quantity("share", "the same with the last ones"),
    "chance_energy": Quantity("share", "what a random direction has of either: head / n"),
    "subspace_similarity": Quantity(
        "share", "mean squared cosine between the leading right vectors of dW now and at the end",
        "", "arXiv 2606.07082",
    ),
    # of W + dW
    "angle_left": Quantity(
        "degrees", "principal angles between the leading left subspaces of W and W + dW, ascending",
        "index from 1", _NOT,
    ),
    "angle_right": Quantity("degrees", "the same of the right subspaces", "index from 1", _NOT),
    "projector_left": Quantity(
        "share", "distance of the two left subspaces' projectors: root mean square sine"
    ),
    "projector_right": Quantity("share", "the same of the right subspaces"),
    "sigma_shift": Quantity(
        "share", "(sigma_i(W + dW) - sigma_i(W)) / sigma_i(W) of the leading ones",
        "index i from 1",
    ),
    "nss": Quantity(
        "share", "normalised spectral shift |sigma(W + dW) - sigma(W)|_2 / |sigma(W)|_2", "", _NOT
    ),
    "nss_low": Quantity("share", "a lower bound on nss, equal to it where it is known"),
    "nss_high": Quantity("share", "an upper bound on nss, |dW|_F / |W|_F (Mirsky 1960)"),
    "changed": Quantity(
        "share", "entries that differ in bfloat16 before and after; the sparsity is 1 - changed",
        "", _NOT,
    ),
    "princ_overlap": Quantity(
        "share", "changed entries inside M_princ, the largest of W's rank-k reconstruction", "",
        _NOT,
    ),
    "princ_lift": Quantity("ratio", "the overlap over M_princ's share of all entries", "", _NOT),
    "low_overlap": Quantity("share", "changed entries inside M_low, W's smallest", "", _NOT),
    "low_lift": Quantity("ratio", "the overlap over M_low's share of all entries", "", _NOT),
}  # fmt: skip
"""Every quantity that `orthora measure` writes, by name."""


_TYPES = {
    name: {"step": "int64", "layer": "int64", "at": "float64", "value": "float64"}.get(name, "str")
    for name in COLUMNS
}


def frame(rows: Iterable[Row | Sequence[Any]]) -> pd.DataFrame:
    """Rows as a data frame with the columns and types of the table."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(_TYPES)


def write_table(path: str | Path, parts: Iterable[pd.DataFrame], story: Mapping[str, Any]) -> Path:
    """Write a table, whole or not at all, a part at a time.

    Args:
        path: ``.parquet``, which also keeps the meaning of everything in its metadata, or ``.csv``.
        parts: as `frame` gives them.
        story: how it came about, for the metadata.

    Raises:
        ValueError: for another ending.
    """
    path = Path(path)
    check_ending(path)
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            frame([]).to_csv(temporary, index=False)
            for part in parts:
                part.to_csv(temporary, index=False, header=False, mode="a")
        else:
            _write_parquet(temporary, parts, story)
    return path


def _write_parquet(path: Path, parts: Iterable[pd.DataFrame], story: Mapping[str, Any]) -> None:
    about = {
        "orthora": json.dumps(dict(story)),
        "columns": json.dumps(dict(COLUMNS)),
        "quantities": json.dumps({k: vars(q) for k, q in QUANTITIES.items()}),
    }
    types = {"step": pa.int64(), "layer": pa.int64(), "at": pa.float64(), "value": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS], metadata=about)
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            writer.write_table(pa.Table.from_pandas(part, schema, preserve_index=False))


def check_ending(path: Path) -> None:
    """The table's format can be told.

    Raises:
        ValueError: for another ending than ``.parquet`` or ``.csv``.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path} is neither .parquet nor .csv; give the table one of these ends")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table.

    Raises:
        ValueError: naming the file, if it is missing, damaged, or no such table.
    """
    path = Path(path)
    check_ending(path)
    if not path.is_file():
        raise ValueError(f"no table {path}; write it with orthora measure")
    try:
        table = _read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} can't be read: {line}; measure again") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path} is no table of orthora measure: it has no column {missing[0]!r}")
    texts = dict.fromkeys(("run", "method", "module", "quantity"), "")
    try:
        return table.loc[:, list(COLUMNS)].fillna(texts).astype(_TYPES)
    except (ValueError, TypeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} holds what is no number: {line}; measure again") from error


def _read_csv(path: Path) -> pd.DataFrame:
    """Text as it stands: a run may be called ``NA``."""
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    for name in ("at", "value"):
        if name in table.columns:
            table[name] = table[name].replace("", "nan")
    return table


def quantities_markdown() -> str:
    """The quantities as a Markdown table, for the documentation."""
    lines = ["| quantity | unit | meaning | at | source |", "|---|---|---|---|---|"]
    for name, q in QUANTITIES.items():
        meaning = q.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {q.unit} | {meaning} | {q.at} | {q.source} |")
    return "\n".join(lines)


def columns_markdown() -> str:
    """The columns as a Markdown table, for the documentation."""
    lines = ["| column | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items()]
    return "\n".join(lines)
