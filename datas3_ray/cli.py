"""The command ``datas3``: parses and calls, nothing else. Exit status 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from datas3_ray.cli_benchmark import register as register_benchmark
from datas3_ray.cli_lake import register
from datas3_ray.cli_scores import register as register_scores
from datas3_ray.errors import Datas3Error, UsageError, ended
from datas3_ray.texts import json_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Choose the training images that make a model best in one deployment, and prove it.\n\n"
        "Start with [bold]datas3 quickstart[/bold]; then write a recipe and run it with "
        "[bold]datas3 run RECIPE[/bold]."
    ),
)

LakeOption = Annotated[
    str, typer.Option("--lake", help="The lake: a folder or an object-store uri.", envvar="DATAS3_LAKE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]
_ANY_WIDTH = 1 << 16
_INTERRUPTED = 130
"""What typer makes of Ctrl-C in a command; releases before that raise Abort."""
out = Console()
err = Console(stderr=True)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, such as pipelines/quickstart.yaml.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value: key=value, or steps.NAME.path=value. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and what is skipped.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take shards and files anew that changed since they were ingested.")
    ] = False,
) -> None:
    """Run a recipe. Steps whose inputs and parameters have not changed are skipped."""
    from datas3_ray.recipe import load_recipe, run_recipe

    loaded = load_recipe(recipe, set_ or [])
    if not dry_run:
        _line(f"{loaded.name}: lake {loaded.lake.uri}")
    run_recipe(loaded, dry_run=dry_run, replace=replace, say=_line)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where the data, the lake and the report go.")] = Path("quickstart"),
    images: Annotated[int, typer.Option(min=600, help="Images to draw.")] = 2400,
) -> None:
    """Draw a small camera-trap world and run the whole path on it: no download, under three minutes on two cores."""
    from datas3_ray.recipe import load_recipe, run_recipe

    settings = [f"folder={folder}", f"steps.world.synthetic.images={images}"]
    recipe = load_recipe("pipelines/quickstart.yaml", settings)
    outcomes = run_recipe(recipe, say=_line)
    page = next(outcome.details["page"] for outcome in outcomes if "page" in outcome.details)
    out.print("\n[bold]Where to look[/bold]")
    for what, where in (
        ("the report", page),
        ("the lake's tables", f"datas3 ls --lake {recipe.lake.uri}"),
        ("the leaderboard", f"datas3 leaderboard --lake {recipe.lake.uri}"),
        ("the sweep, live or after", f"tensorboard --logdir {recipe.output}/tune"),
        ("search in plain LanceDB", f"lancedb.connect({recipe.lake.uri!r}).open_table('pool').search(vector)"),
        ("the recipe it ran", "pipelines/quickstart.yaml"),
    ):
        _line(f"  {what:<26} {where}")


@app.command("ls")
def list_tables(lake: LakeOption = "./lake", as_json: JsonOption = False) -> None:
    """List the tables of a lake: images, selections, results and the rest."""
    opened = _lake(lake)
    rows: list[dict[str, Any]] = []
    for table in opened.tables():
        vectors = ", ".join(f"{column} ({size})" for column, size in table.vector_columns().items())
        row = {"name": table.name, "kind": table.kind, "rows": table.count_rows(), "version": table.version}
        row["what"] = _what(table.kind, table.lineage(), vectors)
        rows.append(row)
    _print(rows, as_json, f"{opened.uri} is empty: no table has been written there yet.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A table or a selection.")],
    lake: LakeOption = "./lake",
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to print.")] = 5,
    rejects: Annotated[bool, typer.Option("--rejects", help="What could not be ingested, by reason.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a table: its columns, its lineage and its first rows; with --rejects, its quarantine by reason."""
    opened = _lake(lake)
    if rejects:
        _print(_rejects(opened, name), as_json, _no_rejects(opened, name))
        return
    table = opened.table(name)
    wide = {*table.vector_columns(), "image", "thumbnail"}
    narrow = [column for column in table.schema.names if column not in wide]
    first = table.to_arrow(narrow, limit=rows).to_pylist() if rows else []
    lineage = {key: value for key, value in table.lineage().items() if key != "parts"}
    if as_json:
        columns = {field.name: str(field.type) for field in table.schema}
        _json({"name": name, "kind": table.kind, "columns": columns, "lineage": lineage, "rows": first})
        return
    out.print(f"[bold]{name}[/bold]: {table.kind}, {table.count_rows()} rows, version {table.version}", soft_wrap=True)
    for field in table.schema:
        encoder = table.encoder(field.name)
        made = f"  [dim]{encoder.get('family')} {encoder.get('model')}[/dim]" if encoder else ""
        out.print(f"  {_escape(f'{field.name:<24} {field.type}')}{made}", highlight=False, soft_wrap=True)
    if lineage:
        out.print("[bold]lineage[/bold]")
        out.print_json(json_text(lineage))
    _print(first, False, "", tall=True)


@app.command()
def query(
    table: Annotated[str, typer.Argument(help="An image table.")],
    like: Annotated[str, typer.Option("--like", help="Id of a row of the table to look for neighbours of.")],
    column: Annotated[str | None, typer.Option(help="Vector column; the table's only one by default.")] = None,
    where: Annotated[str | None, typer.Option(help="A SQL predicate that the answers must match.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 10,
    lake: LakeOption = "./lake",
    as_json: JsonOption = False,
) -> None:
    """Rows that look like a given one, nearest first (exact cosine distance)."""
    from datas3_ray.lake.search import nearest_rows

    found = nearest_rows(_lake(lake), table, like, column=column, where=where, limit=limit)
    _print(found.to_pylist(), as_json, "no row matches.")


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A selection.")],
    second: Annotated[str, typer.Argument(help="Another selection of the same table.")],
    lake: LakeOption = "./lake",
    as_json: JsonOption = False,
) -> None:
    """What two selections keep in common and apart, and how their parameters differ."""
    from datas3_ray.lake.compare import compare

    result = compare(_lake(lake), first, second)
    _print([result], as_json, "")


@app.command()
def export(
    selection: Annotated[str, typer.Argument(help="A selection.")],
    to: Annotated[Path, typer.Argument(help="A .parquet, .csv, .jsonl or .txt file (.txt: one id a line).")],
    lake: LakeOption = "./lake",
) -> None:
    """Write a selection's kept rows, with where their images are, to a file."""
    from datas3_ray.lake.export import export_selection

    count = export_selection(_lake(lake), selection, to)
    _line(f"{count} rows of selection '{selection}' written to {to}")


@app.command()
def publish(
    selection: Annotated[str, typer.Argument(help="A selection.")],
    lake: LakeOption = "./lake",
    columns: Annotated[
        str, typer.Option("--columns", help="Of the selection's columns, with commas, such as keep,score.")
    ] = "keep",
    name: Annotated[
        str | None, typer.Option("--as", help="The column that says what is kept; the selection's name by default.")
    ] = None,
) -> None:
    """Write a selection into its image table as columns, for searches with --where or in plain LanceDB."""
    chosen = _lake(lake).selection(selection)
    made = chosen.publish([column.strip() for column in columns.split(",") if column.strip()], name)
    _line(f"table '{chosen.lineage()['table']}' has selection '{selection}' as {', '.join(made)}")


@app.command()
def report(
    lake: LakeOption = "./lake",
    to: Annotated[Path, typer.Option("--to", help="The page to write.")] = Path("report.html"),
    selection: Annotated[list[str] | None, typer.Option(help="Only these selections. Repeatable.")] = None,
) -> None:
    """Write one self-contained page: leaderboard, galleries, distributions before and after."""
    from datas3_ray.report import write_report

    path = write_report(_lake(lake), to, selections=selection)
    _line(f"page written: {path}")


register_benchmark(app)
register(app)
register_scores(app)


def main() -> None:
    """Entry point: runs a command and turns every mistake into one sentence and an exit status."""
    try:
        status = app(standalone_mode=False)
        if status == _INTERRUPTED:
            raise KeyboardInterrupt
        if isinstance(status, int) and status:  # a command that ended with typer.Exit
            sys.exit(status)
    except (typer.Exit, SystemExit) as stop:
        sys.exit(getattr(stop, "exit_code", getattr(stop, "code", 0)))
    except Datas3Error as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # the disk, a store, or what a file's owner allows
        from datas3_ray.retry import failure

        _fail(failure("the command", error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; run the same command again to go on where it stopped.", 1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            _fail(f"{ended(message)} Try 'datas3 --help'.", 2)
        raise


def _fail(sentence: str, status: int) -> None:
    err.print(f"[bold red]error:[/bold red] {_escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(status)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _line(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _lake(uri: str) -> Any:
    from datas3_ray.lake import Lake

    lake = Lake(uri)
    if not lake.names():
        raise UsageError(f"no lake at {lake.uri}: there is no table there; name yours with --lake.")
    return lake


def _what(kind: str, lineage: dict[str, Any], vectors: str) -> str:
    if kind == "selection":
        return f"{lineage['method']} of {lineage['table']}, keeps {lineage['counts']['kept']}"
    if lineage.get("method") == "split":
        return f"split of {lineage['table']}; vectors {vectors}"
    if kind == "image":
        return f"vectors {vectors}"
    return ""


def _rejects(lake: Any, name: str) -> list[dict[str, Any]]:
    from collections import Counter

    from datas3_ray.lake.ledger import quarantine_name
    from datas3_ray.sources import REASONS

    lake.table(name)
    if not lake.exists(quarantine_name(name)):
        return []
    rows = lake.table(quarantine_name(name)).to_arrow(["reason", "key", "shard"])
    counts = Counter(rows.column("reason").to_pylist())
    example = dict(zip(rows.column("reason").to_pylist(), rows.column("key").to_pylist(), strict=True))
    return [
        {"reason": reason, "rows": count, "example": example[reason], "meaning": REASONS.get(reason, "")}
        for reason, count in counts.most_common()
    ]


def _no_rejects(lake: Any, name: str) -> str:
    from datas3_ray.lake.ledger import ledger_name

    if lake.exists(ledger_name(name)):
        return f"nothing of table '{name}' was rejected."
    return f"table '{name}' ({lake.kind(name)}) was not ingested, so nothing of it can have been rejected."


def _json(value: Any) -> None:
    print(json_text(value, indent=2))


def _print(rows: list[dict[str, Any]], as_json: bool, empty: str, *, tall: bool = False) -> None:
    """Rows as a table, which in a file or a pipe is as wide as it is.

    On a terminal cells are folded where it is too narrow, last of all the first column: it has the name or the id, to
    be typed again. With ``tall`` each value then has a line of its own.
    """
    if as_json:
        _json(rows)
        return
    if not rows:
        if empty:
            _line(empty)
        return
    console = out if out.is_terminal else Console(width=_ANY_WIDTH)
    cells = [[_cell(value, whole=not place) for place, value in enumerate(row.values())] for row in rows]
    first = max(cell_len(row[0]) for row in cells)
    table = RichTable(box=None, header_style="bold", pad_edge=False)
    for place, (column, value) in enumerate(rows[0].items()):
        justify: Any = "right" if isinstance(value, (int, float)) else "left"
        least = None if place else min(first, console.width // 2)
        table.add_column(_escape(column), justify=justify, overflow="fold", min_width=least)
    for row in cells:
        table.add_row(*map(_escape, row))
    natural = console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum
    if not tall or natural <= console.width:
        console.print(table)
        return
    for row in cells:
        _line("")
        for column, cell in zip(rows[0], row, strict=True):
            _line(f"  {column:<24} {cell}")


def _cell(value: Any, whole: bool) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if whole or len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    main()
