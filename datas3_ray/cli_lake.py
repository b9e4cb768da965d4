"""The commands that make a lake's tables grow and keep them: embed, optimize, index, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from datas3_ray.errors import UsageError
from datas3_ray.texts import json_text, load_yaml

if TYPE_CHECKING:
    from datas3_ray.lake import Lake

LakeOption = Annotated[
    str, typer.Option("--lake", help="The lake: a folder or an object-store uri.", envvar="DATAS3_LAKE")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of sentences for people.")]
TablesArgument = Annotated[list[str] | None, typer.Argument(help="Tables; every table of the lake by default.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(embed)
    app.command()(optimize)
    app.command()(index)
    app.command()(gc)


def embed(
    table: Annotated[str, typer.Argument(help="An image table.")],
    encoder: Annotated[
        list[str],
        typer.Option("--encoder", help="NAME={timm: MODEL, weights: ...}, as in a recipe. Repeatable."),
    ],
    lake: LakeOption = "./lake",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try rows again of which no vector could be made before.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Actors; one a GPU, or one a CPU, by default.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add the vectors of another encoder to an image table, or those that it lacks. Run it again to resume."""
    from datas3_ray.embed import embed as run_embed
    from datas3_ray.embed import parse_config, plan_embed

    encoders = dict(_encoder(text) for text in encoder)
    config = parse_config({"encoders": encoders, "retry_failed": retry_failed, "workers": workers})
    opened = _lake(lake)
    if dry_run:
        plan = plan_embed(opened, table, config)
        _say([{"table": table, "plan": plan.describe()}], [f"{table}: {plan.describe()}"], as_json)
        return
    summary = run_embed(opened, table, config, progress=not as_json)
    _say([vars(summary)], [summary.sentence()], as_json)


def optimize(
    tables: TablesArgument = None,
    lake: LakeOption = "./lake",
    keep_days: Annotated[float, typer.Option(min=0, help="Old versions younger than this many days stay.")] = 7.0,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Remove old versions nothing refers to.")] = True,
    target_rows: Annotated[int, typer.Option(min=1, help="Rows of a fragment at most.")] = 1 << 20,
    target_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a fragment at most.")] = 256,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join small fragments and let old versions go; those that selections, splits or results refer to stay."""
    from datas3_ray.lake.optimize import OptimizeConfig, optimize_lake

    config = OptimizeConfig(target_rows=target_rows, target_bytes=target_mb << 20, prune=prune, keep_days=keep_days)
    reports = optimize_lake(_lake(lake), tables or None, config, dry_run=dry_run)
    _say([vars(report) for report in reports], [f"{report.table}: {report.sentence()}" for report in reports], as_json)


def index(
    table: Annotated[str, typer.Argument(help="An image table.")],
    column: Annotated[
        list[str] | None, typer.Option("--column", help="A column; vectors, id and caption by default. Repeatable.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="auto, ivf_sq, ivf_pq, ivf_flat, ivf_rq, btree, bitmap or fts.")
    ] = "auto",
    every: Annotated[bool, typer.Option("--all", help="Every column that a filter is likely to name.")] = False,
    lake: LakeOption = "./lake",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build the indexes that searches and filters use, or bring them up to date; says what was chosen and why."""
    from datas3_ray.lake.indexes import build_indexes

    if column and every:
        raise UsageError("--column and --all exclude each other.")
    if kind != "auto" and not column:
        raise UsageError(f"--kind {kind} needs a --column to be of that kind.")
    reports = build_indexes(_lake(lake), table, column or None, kind, every=every, dry_run=dry_run)
    _say([vars(report) for report in reports], [report.sentence() for report in reports], as_json)


def gc(
    tables: TablesArgument = None,
    lake: LakeOption = "./lake",
    older_than: Annotated[str, typer.Option("--older-than", help="Only older files: 30m, 12h, 7d, or 0.")] = "1d",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the files that killed runs left behind and no version of a table refers to."""
    from datas3_ray.lake.orphans import parse_age, remove_orphans

    reports = remove_orphans(_lake(lake, empty=True), tables or None, older_than=parse_age(older_than), dry_run=dry_run)
    rows, lines = [], []
    for report in reports:
        files = [vars(orphan) for orphan in report.orphans]
        rows.append({"table": report.table, "files": files, "bytes": report.bytes, "dry_run": report.dry_run})
        lines.append(f"{report.table}: {report.sentence()}")
        if dry_run:
            lines += [f"  {orphan.path}  {orphan.bytes}" for orphan in report.orphans]
    total = sum(report.bytes for report in reports) / 1e6
    count = sum(len(report.orphans) for report in reports)
    done = "would be removed" if dry_run else "removed"
    lines.append(f"{count} files, {total:.1f} MB {done} in all." if reports else "nothing is left over.")
    _say(rows, lines, as_json)


def _encoder(text: str) -> tuple[str, dict[str, Any]]:
    """``dino={timm: ...}`` as the alias and the encoder's mapping."""
    import yaml

    alias, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--encoder {text!r}: write NAME={{timm: MODEL, ...}}.")
    try:
        spec = load_yaml(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--encoder {text!r}: what follows '=' is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(spec, dict):
        raise UsageError(f"--encoder {text!r}: expected a mapping such as {{timm: resnet18}}, got {spec!r}.")
    return alias.strip(), spec


def _lake(uri: str, *, empty: bool = False) -> Lake:
    """The lake; one without a table is a mistake, unless ``empty`` and its folder is there: a killed run left it."""
    from datas3_ray.lake import Lake

    opened = Lake(uri)
    if not opened.names() and not (empty and _has_folder(opened)):
        raise UsageError(f"no lake at {opened.uri}: there is no table there; name yours with --lake.")
    return opened


def _has_folder(lake: Lake) -> bool:
    from datas3_ray.lake.orphans import lake_filesystem

    filesystem, root = lake_filesystem(lake.uri, lake.options)
    return bool(filesystem.isdir(root))


def _say(rows: list[dict[str, Any]], lines: list[str], as_json: bool) -> None:
    if as_json:
        print(json_text(rows, indent=2))
        return
    for line in lines:
        typer.echo(line)
