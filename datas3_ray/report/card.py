"""Everything one selection's card shows, gathered before any markup is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import yaml
from markupsafe import Markup

from datas3_ray.errors import Datas3Error
from datas3_ray.lake import Lake, Selection, Table
from datas3_ray.lake.storage import public_text
from datas3_ray.report import formats
from datas3_ray.report.facts import pretty
from datas3_ray.report.figures import Segment, histogram, paired_bar, stacked_bar
from datas3_ray.report.gallery import Album, Picture
from datas3_ray.report.labels import LabelMix, label_mix
from datas3_ray.report.profile import PARTNER, SIMILARITY, Pairs, Profile, profile, sample_ids

PAIRS = 6
"""Duplicate pairs of each kind."""
QUERIES = 12
"""Pictures of the query, for methods that look at one."""
MAX_JSON = 60_000
"""Characters of lineage shown on the page."""

_PAIR_GROUPS = (
    ("highest", "Most alike", "removed; the highest cosines"),
    ("just_removed", "Just removed", "removed; the lowest cosines above the threshold"),
    ("just_kept", "Just kept", "kept; the highest cosines below the threshold"),
)


@dataclass(frozen=True)
class Shot:
    """A picture in a gallery, with what the selection says about it."""

    picture: Picture
    note: str


@dataclass(frozen=True)
class Pair:
    """A row beside the earlier row it resembles."""

    row: Picture
    partner: Picture
    cosine: str
    verdict: str


@dataclass(frozen=True)
class PairGroup:
    """Pairs of one kind."""

    title: str
    explanation: str
    pairs: list[Pair]
    css: str


@dataclass(frozen=True)
class LabelRow:
    """One line of the table of labels, ready to print."""

    label: str
    special: bool
    eligible: str
    eligible_share: str
    kept: str
    kept_share: str
    change: str
    direction: str
    bar: Markup


@dataclass
class Card:
    """One selection, ready to print."""

    anchor: str
    name: str
    method: str
    within: str
    eligible: int
    kept: int
    dropped: int
    bar: Markup
    segments: list[Segment]
    parameters: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    figures: list[tuple[str, str]]
    tables: list[FigureTable]
    labels: LabelMix | None
    label_rows: list[LabelRow]
    histogram: Markup | None
    histogram_notes: list[str]
    kept_shots: list[Shot]
    dropped_shots: list[Shot]
    query: str
    query_rows: int
    query_shots: list[Shot]
    pair_groups: list[PairGroup]
    cut: str
    pictureless: bool
    notes: list[str]
    lineage: str
    recipe: str

    @property
    def share(self) -> str:
        """Kept rows in per cent of the eligible ones."""
        return formats.share(self.kept, self.eligible)


@dataclass(frozen=True)
class FigureTable:
    """A method's own figures that are many: a title, column names and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    more: int


@dataclass
class Draft:
    """A selection as far as it is known before thumbnails are read."""

    selection: Selection
    lineage: dict[str, Any]
    profile: Profile
    table: Table | None
    query: Table | None
    query_sample: list[str]
    notes: list[str] = field(default_factory=list)

    def ids(self) -> Iterable[str]:
        """Ids whose pictures the card shows, galleries first."""
        for sample in (self.profile.kept_sample, self.profile.dropped_sample):
            yield from sample.column("id").to_pylist()
        if self.profile.pairs:
            for group, _, _ in _PAIR_GROUPS:
                rows: pa.Table = getattr(self.profile.pairs, group)
                for column in ("id", PARTNER):
                    yield from rows.column(column).to_pylist()


def draft(lake: Lake, selection: Selection, *, samples: int, seed: int) -> Draft:
    """Read a selection's own table and find the image table it chose from, which may be gone, or another one now."""
    lineage = selection.lineage()
    query = str(lineage.get("query") or "")
    asked = lake.table(query) if query and lake.exists(query) else None
    found = profile(selection, samples=samples, pairs=PAIRS, seed=seed)
    made = Draft(
        selection, lineage, found, None, asked, sample_ids(asked, min(samples, QUERIES), seed) if asked else []
    )
    name = str(lineage.get("table") or "")
    if name and lake.exists(name):
        table = lake.table(name)
        if selection.is_of(table):
            made.table = table
        else:
            made.notes.append(
                f"The table it chose from was deleted, and {name} is another one now, whose labels and pictures are "
                "not shown here."
            )
    else:
        made.notes.append(f"The table it chose from, {name or 'which is not recorded'}, is no longer in the lake.")
    return made


def card(lake: Lake, drafted: Draft, album: Album, number: int) -> Card:
    """The card of a drafted selection, whose pictures are in ``album``."""
    selection, lineage, found = drafted.selection, drafted.lineage, drafted.profile
    parameters = lineage.get("parameters") or {}
    counts = {key: int(value) for key, value in (lineage.get("counts") or {}).items()}
    notes = [*drafted.notes, *_count_notes(counts, found, lineage)]
    mix = _labels(lake, drafted, notes)
    segments = [
        Segment("kept", found.kept, "kept"),
        Segment("dropped", found.dropped, "dropped"),
        Segment("invalid vector", counts.get("invalid", 0), "invalid"),
        Segment("held out", counts.get("held_out", 0), "heldout"),
        Segment("outside the parent", counts.get("outside", 0), "outside"),
    ]
    segments = [s for s in segments if s.value or s.css in ("kept", "dropped")]
    figures, tables = figure_tables(lineage.get("report") or {})
    kept_shots, dropped_shots = (_shots(drafted, album, s) for s in (found.kept_sample, found.dropped_sample))
    shots = kept_shots + dropped_shots
    return Card(
        anchor=f"selection-{number}",
        name=selection.name,
        method=selection.method,
        within=str(lineage.get("within") or ""),
        eligible=found.kept + found.dropped,
        kept=found.kept,
        dropped=found.dropped,
        bar=stacked_bar(segments),
        segments=segments,
        parameters=[
            (k.replace("_", " "), public_text(formats.plain(v))) for k, v in parameters.items() if v is not None
        ],
        facts=_facts(lineage),
        figures=figures,
        tables=tables,
        labels=mix,
        label_rows=_label_rows(mix) if mix else [],
        histogram=_histogram(selection.name, found),
        histogram_notes=_histogram_notes(found),
        query=drafted.query.name if drafted.query else "",
        query_rows=drafted.query.count_rows() if drafted.query else 0,
        query_shots=[Shot(album.picture(drafted.query.name, i), "") for i in drafted.query_sample]
        if drafted.query
        else [],
        kept_shots=kept_shots,
        dropped_shots=dropped_shots,
        pair_groups=_pair_groups(drafted, album, found.pairs) if found.pairs else [],
        cut=f"the cut lies between {found.pairs.cut[0]:.6f} and {found.pairs.cut[1]:.6f}"
        if found.pairs and found.pairs.cut
        else "",
        pictureless=bool(shots) and not any(shot.picture.thumb for shot in shots),
        notes=notes,
        lineage=_limited(public_text(pretty(lineage))),
        recipe=public_text(recipe_step(selection.name, lineage)),
    )


def recipe_step(name: str, lineage: dict[str, Any]) -> str:
    """The recipe step that makes a selection again, as YAML; for one cut to another size, the call that cuts it.

    >>> print(recipe_step("near", {"method": "random", "table": "pool", "parameters": {"size": 0.5}}), end="")
    - name: near
      select: {from: pool, random: {size: 0.5}}
    """
    if lineage.get("resized_from"):
        return f"Lake(...).selection({lineage['resized_from']!r}).resize({lineage.get('size')}, name={name!r})\n"
    kind = "combine" if lineage.get("method") == "combine" else "select"
    step: dict[str, Any] = {"from": lineage.get("table")}
    for key in ("within", "query"):
        if lineage.get(key):
            step[key] = lineage[key]
    given = {key: value for key, value in (lineage.get("parameters") or {}).items() if value is not None}
    step[str(lineage.get("method"))] = given
    step = given if kind == "combine" else step
    text = yaml.safe_dump([{"name": name, kind: step}], sort_keys=False, allow_unicode=True, width=10_000)
    flow = yaml.safe_dump(step, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=True)
    head = yaml.safe_dump({"name": name}, allow_unicode=True, width=10_000)
    return f"- {head}  {kind}: {flow}" if len(flow) < 110 else text


def figure_tables(report: dict[str, Any], limit: int = 12) -> tuple[list[tuple[str, str]], list[FigureTable]]:
    """A method's own figures: single values as (name, text), and lists and mappings as small tables."""
    single: list[tuple[str, str]] = []
    tables: list[FigureTable] = []
    for key, value in report.items():
        title = _words(key)
        if isinstance(value, dict) and value:
            rows = [[str(name), formats.plain(item) if _short(item) else pretty(item)] for name, item in value.items()]
            tables.append(FigureTable(title, ["", "value"], rows[:limit], max(0, len(rows) - limit)))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            columns = list(dict.fromkeys(name for item in value for name in item))
            rows = [[formats.plain(item.get(name)) for name in columns] for item in value]
            tables.append(FigureTable(title, [_words(c) for c in columns], rows[:limit], max(0, len(rows) - limit)))
        elif isinstance(value, list) and len(value) > 8:
            shown = formats.plain(value[:8])
            single.append((title, f"{shown}, … ({len(value):,} values)"))
        else:
            single.append((title, formats.plain(value)))
    return single, tables


def _short(value: Any) -> bool:
    return not isinstance(value, (dict, list)) or (isinstance(value, list) and len(value) <= 8)


def _words(key: str) -> str:
    return str(key).replace("_", " ")


def _facts(lineage: dict[str, Any]) -> list[tuple[str, str]]:
    """Where it came from, in the order a person asks."""
    read = ", ".join(f"{name} v{version}" for name, version in (lineage.get("inputs") or {}).items())
    facts = [
        ("chosen from", lineage.get("table")),
        ("within", lineage.get("within")),
        ("query", lineage.get("query")),
        ("resized from", lineage.get("resized_from")),
        ("read", read),
        ("took", formats.seconds(lineage["seconds"]) if lineage.get("seconds") is not None else None),
        ("made", str(lineage.get("created") or "").replace("T", " ").replace("+00:00", " UTC")),
        ("code version", lineage.get("code_version")),
        ("fingerprint", lineage.get("fingerprint")),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _count_notes(counts: dict[str, int], found: Profile, lineage: dict[str, Any]) -> list[str]:
    notes = []
    if counts.get("shortfall"):
        notes.append(
            f"{counts['shortfall']:,} fewer rows than the {lineage.get('size') or 0:,} asked for were eligible; "
            "every eligible row is kept."
        )
    for name, actual in (("kept", found.kept), ("eligible", found.kept + found.dropped)):
        if name in counts and counts[name] != actual:
            notes.append(f"The lineage says {counts[name]:,} rows {name}, and the table has {actual:,}.")
    return notes


def _labels(lake: Lake, drafted: Draft, notes: list[str]) -> LabelMix | None:
    if drafted.table is None:
        return None
    table, read = drafted.table, (drafted.lineage.get("inputs") or {}).get(drafted.table.name)
    if read is not None and read != table.version:
        try:
            table = lake.table(table.name, version=int(read))
        except Datas3Error:
            notes.append(f"Version {read} of {table.name} is gone; labels are those of version {table.version}.")
    mix = label_mix(drafted.selection, table)
    if mix is not None and mix.gone:
        notes.append(f"{mix.gone:,} of its rows are no longer in {table.name}; their labels are not counted.")
    return mix


def _label_rows(mix: LabelMix) -> list[LabelRow]:
    eligible, kept = sum(row.eligible for row in mix.rows), sum(row.kept for row in mix.rows)
    before = [row.eligible / eligible if eligible else 0.0 for row in mix.rows]
    after = [row.kept / kept if kept else 0.0 for row in mix.rows]
    widest = max([*before, *after, 1e-12])
    rows = []
    for row, old, new in zip(mix.rows, before, after, strict=True):
        points = 100 * (new - old)
        flat = abs(points) < 0.05
        rows.append(
            LabelRow(
                label=row.label,
                special=row.special,
                eligible=formats.count(row.eligible),
                eligible_share=formats.share(row.eligible, eligible),
                kept=formats.count(row.kept),
                kept_share=formats.share(row.kept, kept),
                change="—" if not kept else "same" if flat else f"{'▲' if points > 0 else '▼'} {abs(points):.1f}",
                direction="" if flat or not kept else "up" if points > 0 else "down",
                bar=paired_bar(old / widest, new / widest),
            )
        )
    return rows


def _histogram(name: str, found: Profile) -> Markup | None:
    if found.histogram is None:
        return None
    h = found.histogram
    return histogram(h.edges, h.kept, h.dropped, title=f"Scores of {name}")


def _histogram_notes(found: Profile) -> list[str]:
    notes = []
    if found.histogram and found.histogram.beyond:
        notes.append(f"{found.histogram.beyond:,} rows beyond the axis are counted in the outermost bars.")
    if found.histogram and found.histogram.missing:
        notes.append(f"{found.histogram.missing:,} rows have no finite score.")
    return notes


def _shots(drafted: Draft, album: Album, sample: pa.Table) -> list[Shot]:
    name = drafted.table.name if drafted.table else ""
    ids = sample.column("id").to_pylist()
    scores = sample.column("score").to_pylist() if "score" in sample.schema.names else [None] * len(ids)
    notes = [f"score {formats.score(score)}" if score is not None else "" for score in scores]
    return [Shot(album.picture(name, i), note) for i, note in zip(ids, notes, strict=True)]


def _pair_groups(drafted: Draft, album: Album, pairs: Pairs) -> list[PairGroup]:
    name = drafted.table.name if drafted.table else ""
    groups = []
    for key, title, explanation in _PAIR_GROUPS:
        rows: pa.Table = getattr(pairs, key)
        digits = 4 if key == "highest" else 6
        made = [
            Pair(
                row=album.picture(name, row["id"]),
                partner=album.picture(name, row[PARTNER]),
                cosine=f"{row[SIMILARITY]:.{digits}f}" if pairs.has_similarity else "",
                verdict="kept" if key == "just_kept" else "removed",
            )
            for row in rows.to_pylist()
        ]
        if made:
            what = explanation if pairs.has_similarity else "removed; a sample"
            css = "kept" if key == "just_kept" else "dropped"
            groups.append(PairGroup(title if pairs.has_similarity else "Duplicates", what, made, css))
    return groups


def _limited(text: str) -> str:
    if len(text) <= MAX_JSON:
        return text
    return f"{text[:MAX_JSON]}\n… {len(text) - MAX_JSON:,} more characters are in the lake's own table."
