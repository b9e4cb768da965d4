"""Assembles a lake's report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from datas3_ray import __version__
from datas3_ray.benchmark.paper_rows import PaperCell, published
from datas3_ray.errors import UsageError, require_file_name
from datas3_ray.lake import Lake, Selection
from datas3_ray.lake.storage import public_text, public_uri
from datas3_ray.report import formats
from datas3_ray.report.board import Board, boards
from datas3_ray.report.card import Card, card, draft
from datas3_ray.report.facts import Encoder, ImageTable, Reject, image_tables
from datas3_ray.report.gallery import Album, Thumb
from datas3_ray.report.matrix import Matrix, matrices

MAX_PICTURES = 1600
"""Pictures that the galleries of one page show together."""
MAX_SAMPLES = 500

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """What the template prints."""

    title: str
    lake: str
    created: str
    code_version: str
    style: Markup
    style_hash: str
    tiles: list[tuple[str, str]]
    tables: list[ImageTable]
    rejects: list[tuple[str, Reject]]
    encoders: list[tuple[Encoder, str]]
    boards: list[Board]
    cards: list[Card]
    matrices: list[Matrix]
    thumbs: dict[str, Thumb]
    shape: str
    fewer: str


def write_report(
    lake: Lake,
    path: str | Path,
    *,
    title: str | None = None,
    selections: list[str] | None = None,
    samples: int = 24,
    seed: int = 0,
    paper: bool | str | Path | None = None,
    now: datetime | None = None,
) -> Path:
    """Write a report on a lake as one self-contained HTML page: no script, no request, pictures inside.

    Shown are the tables and what was rejected, the leaderboard, a card for each selection (parameters, counts, labels
    before and after, scores, pictures of kept and dropped rows, duplicates side by side), the overlap between
    selections and their lineage. The same lake gives the same bytes, but for the time of writing.

    Parameters
    ----------
    lake : Lake
    path : str or Path
        Where to write; missing folders are made and an earlier report is replaced in one step.
    title : str, optional
        Heading of the page; the lake's name by default.
    selections : list of str, optional
        Selections to show, in this order; all of them when none is named, in the order they were made.
    samples : int
        Pictures of kept rows, and as many of dropped rows, a selection. Fewer where the page would grow too large.
    seed : int
        Of the samples, which are chosen by a hash of (seed, id).
    paper : bool, str or Path, optional
        Published rows beside the lake's on the leaderboard: False for none, or a file with their scores. By default
        those of the lake's deployments, with the scores that are known.
    now : datetime, optional
        The time to print; the present by default.

    Returns
    -------
    Path
        The page, as given.

    Raises
    ------
    UsageError
        For a selection that is not in the lake, a number of samples that is out of range, or a folder in place of a
        file.

    Examples
    --------
    >>> import tempfile
    >>> from datas3_ray import Lake
    >>> folder = Path(tempfile.mkdtemp())
    >>> page = write_report(Lake(folder / "lake"), folder / "report.html", title="Nothing yet")
    >>> "no image table in this lake yet" in page.read_text()
    True
    """
    if not 0 <= samples <= MAX_SAMPLES:
        raise UsageError(f"samples = {samples} is not allowed: a report shows 0 to {MAX_SAMPLES} a gallery.")
    path = Path(path)
    require_file_name(path)
    chosen = _selections(lake, selections)
    shown, file = (paper, None) if paper is None or isinstance(paper, bool) else (None, paper)
    cells = published(shown, file)
    page = _page(lake, chosen, title, samples, seed, cells, now or datetime.now(timezone.utc))
    return write_page(environment().get_template("report.html.j2").render(page=page), path)


def write_page(text: str, path: Path) -> Path:
    """Write a page in one step, with the folders that are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _selections(lake: Lake, names: list[str] | None) -> list[Selection]:
    if names:
        return [lake.selection(name) for name in dict.fromkeys(names)]
    found = [lake.selection(name) for name in lake.names("selection")]
    return sorted(found, key=lambda selection: (str(selection.lineage().get("created") or ""), selection.name))


def _page(
    lake: Lake,
    selections: list[Selection],
    title: str | None,
    samples: int,
    seed: int,
    paper: list[PaperCell],
    now: datetime,
) -> Page:
    tables = image_tables(lake)
    per_gallery = min(samples, max(1, MAX_PICTURES // (2 * max(1, len(selections)))))
    drafts = [draft(lake, selection, samples=per_gallery, seed=seed) for selection in selections]
    album = Album()
    for drafted in drafts:
        if drafted.table is not None:
            album.load(drafted.table, drafted.ids())
        if drafted.query is not None:
            album.load(drafted.query, drafted.query_sample)
    cards = [card(lake, drafted, album, number) for number, drafted in enumerate(drafts, 1)]
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    fewer = f"Galleries show {per_gallery} pictures each instead of {samples}, so that the page stays small."
    results = lake.results()
    return Page(
        title=title or f"Report on {public_uri(lake.uri).rstrip('/').rpartition('/')[2]}",
        lake=public_uri(lake.uri),
        created=now.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        code_version=__version__,
        style=Markup(style),
        style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        tiles=_tiles(tables, cards, results.num_rows),
        tables=tables,
        rejects=_rejects(tables),
        encoders=_encoders(tables),
        boards=boards(results, paper),
        cards=cards,
        matrices=matrices(selections),
        thumbs=album.thumbs,
        shape=album.shape(),
        fewer=fewer if per_gallery < samples else "",
    )


def _tiles(tables: list[ImageTable], cards: list[Card], trials: int) -> list[tuple[str, str]]:
    pool = tables[0] if tables else None
    rejected = sum(table.rejected for table in tables)
    return [
        (formats.count(pool.rows if pool else 0), f"rows in {pool.name}" if pool else "rows"),
        (formats.count(rejected), "rejected row" if rejected == 1 else "rejected rows"),
        (formats.count(len(cards)), "selection" if len(cards) == 1 else "selections"),
        (formats.count(trials), "trial" if trials == 1 else "trials"),
    ]


def _rejects(tables: list[ImageTable]) -> list[tuple[str, Reject]]:
    """Rejects with their table's name, which is left out where only one table has any."""
    several = sum(bool(table.rejects) for table in tables) > 1
    return [(table.name if several else "", reject) for table in tables for reject in table.rejects]


def _encoders(tables: list[ImageTable]) -> list[tuple[Encoder, str]]:
    """Each distinct vector column once, with the tables that have it."""
    where: dict[str, tuple[Encoder, list[str]]] = {}
    for table in tables:
        for encoder in table.encoders:
            key = repr((encoder.column, encoder.dimensions, encoder.dtype, sorted(encoder.identity.items(), key=str)))
            where.setdefault(key, (encoder, []))[1].append(table.name)
    return [(encoder, ", ".join(names)) for encoder, names in where.values()]


def _facts(identity: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values to print; what is nested one level goes by both names."""
    facts = []
    for key, value in sorted(identity.items()):
        if isinstance(value, dict):
            facts += [(f"{key} {name}", inner) for name, inner in value.items()]
        else:
            facts.append((key, value))
    return [(name.replace("_", " "), public_text(formats.plain(value))) for name, value in facts]


@cache
def environment() -> Environment:
    """The templates, with what they call on."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    made.filters.update(num=formats.count, shorten=formats.shorten, facts=_facts)
    return made
