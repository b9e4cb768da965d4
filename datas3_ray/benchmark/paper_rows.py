"""Rows of the DataS3 paper's Table 1, to stand beside a lake's own.

The package knows the sizes of the reference rows and none of the scores; a file of the same form brings those.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.training.metrics import METRICS

TABLE = Path(__file__).parent / "paper" / "table1.csv"
COLUMNS = ("dataset", "deployment", "method", "metric", "score", "subset_size", "note")
MAX_BYTES = 1 << 20

_SHARES = ("accuracy", "macro_accuracy", "map50", "map50_95")


@dataclass(frozen=True)
class PaperCell:
    """A published score of one method in one deployment; ``score`` and ``subset_size`` are None where not known."""

    dataset: str
    deployment: str
    method: str
    metric: str
    score: float | None
    subset_size: int | None
    note: str


@dataclass(frozen=True)
class PaperRow:
    """One published method: a cell for each deployment of the lake that the paper has, by the lake's own names."""

    method: str
    cells: Mapping[str, PaperCell]

    def mean(self, deployments: Iterable[str]) -> float | None:
        """Mean score over these deployments; None unless every one has a score, all of one metric."""
        found = [self.cells.get(name) for name in deployments]
        scores = [cell.score for cell in found if cell is not None and cell.score is not None]
        one_metric = len({cell.metric for cell in found if cell is not None}) == 1
        return math.fsum(scores) / len(scores) if one_metric and len(scores) == len(found) else None


def read_paper(path: str | Path | None = None) -> list[PaperCell]:
    """The published rows that the package ships, with those of a user's file of the same form laid over them.

    A row of the file takes the place of the shipped row of the same dataset, deployment and method; where it leaves the
    size out, the shipped one stays. Other rows are added.

    Raises
    ------
    UsageError
        When the file is not there, lacks a column, or holds a value that cannot be meant; one sentence with the line.

    Examples
    --------
    >>> cells = read_paper()
    >>> len(cells), cells[0].method, cells[0].score
    (60, 'everything', None)
    """
    cells = {_key(cell): cell for cell in _read(TABLE)}
    for cell in _read(Path(path)) if path is not None else []:
        known = cells.get(_key(cell))
        size = cell.subset_size if cell.subset_size is not None or known is None else known.subset_size
        cells[_key(cell)] = PaperCell(**{**vars(cell), "subset_size": size})
    return list(cells.values())


def published(shown: bool | None, file: str | Path | None) -> list[PaperCell]:
    """The published rows that a user asks for: none where ``shown`` is False, else the package's and the file's.

    Raises
    ------
    UsageError
        When a file is given and its rows are not to be shown, or :func:`read_paper` complains.
    """
    if shown is False and file is not None:
        raise UsageError(
            f"published rows are left out (--no-paper), and the file {file} has some: give one or the other."
        )
    return [] if shown is False else read_paper(file)


def paper_rows(cells: Iterable[PaperCell], deployments: Iterable[str]) -> tuple[PaperRow, ...]:
    """The published rows for a lake's deployments, in the file's order; none where the paper has none of them.

    Names are matched without regard to case, and to whether spaces, hyphens or underscores part the words; the data
    set's name may stand before the deployment's.

    >>> [row.method for row in paper_rows(read_paper(), ["Los-Angeles", "my_garden"])]
    ['everything', 'query_set', 'expert']
    >>> sorted(paper_rows(read_paper(), ["geode_nigeria", "my_garden"])[0].cells)
    ['geode_nigeria']
    """
    ours: dict[str, list[str]] = {}
    for name in deployments:
        ours.setdefault(_plain(name), []).append(name)
    found: dict[str, dict[str, PaperCell]] = {}
    for cell in cells:
        for known in (_plain(cell.deployment), _plain(f"{cell.dataset} {cell.deployment}")):
            for name in ours.get(known, []):
                found.setdefault(cell.method, {})[name] = cell
    return tuple(PaperRow(method, by_deployment) for method, by_deployment in found.items())


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def _key(cell: PaperCell) -> tuple[str, str, str]:
    return _plain(cell.dataset), _plain(cell.deployment), cell.method


def _read(path: Path) -> list[PaperCell]:
    where = f"paper file {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: it cannot be read as text: {' '.join(str(error).split())}.") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where}: it is larger than {MAX_BYTES >> 20} MB, which no table of a paper is.")
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    reader = csv.reader([line for _, line in numbered])
    header = [name.strip() for name in next(reader, [])]
    if sorted(header) != sorted(COLUMNS):
        raise UsageError(f"{where}: its columns must be {', '.join(COLUMNS)}, got {', '.join(header) or 'none'}.")
    cells: list[PaperCell] = []
    seen: set[tuple[str, str, str]] = set()
    for (number, _), values in zip(numbered[1:], reader, strict=False):
        if len(values) != len(header):
            raise UsageError(f"{where}, line {number}: it has {len(values)} values and needs {len(header)}.")
        cell = _cell(dict(zip(header, (value.strip() for value in values), strict=True)), f"{where}, line {number}")
        if _key(cell) in seen:
            raise UsageError(f"{where}, line {number}: '{cell.method}' in {cell.deployment} is there twice.")
        seen.add(_key(cell))
        cells.append(cell)
    return cells


def _cell(row: Mapping[str, str], where: str) -> PaperCell:
    for name in ("dataset", "deployment", "method"):
        if not row[name]:
            raise UsageError(f"{where}: {name} is empty.")
    metric = row["metric"]
    if metric not in METRICS:
        known = ", ".join(METRICS)
        raise UsageError(f"{where}: no metric '{metric}'; there are: {known}.{did_you_mean(metric, METRICS)}")
    score = _number(row["score"], f"{where}: score")
    if score is not None and metric in _SHARES and not 0 <= score <= 1:
        raise UsageError(f"{where}: score = {row['score']} is not allowed: {metric} is a share of 1 (write 0.812).")
    size = _number(row["subset_size"], f"{where}: subset_size")
    if size is not None and (size < 0 or size != int(size)):
        raise UsageError(f"{where}: subset_size = {row['subset_size']} is not allowed: it is a whole number of rows.")
    return PaperCell(
        dataset=row["dataset"],
        deployment=row["deployment"],
        method=row["method"],
        metric=metric,
        score=score,
        subset_size=None if size is None else int(size),
        note=row["note"],
    )


def _number(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where} = '{text}' is not allowed: write a plain number such as 0.812 or 2900, or nothing.")
    return value
