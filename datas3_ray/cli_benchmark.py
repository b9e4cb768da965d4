"""The commands of the benchmark: deployments, leaderboard, submit, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datas3_ray.cli_lake import JsonOption, LakeOption, _lake, _say
from datas3_ray.errors import Datas3Error, UsageError, require_file_name
from datas3_ray.texts import json_text


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(deployments)
    app.command()(leaderboard)
    app.command()(submit)
    app.command()(verify)


def deployments(
    name: Annotated[str | None, typer.Argument(help="DATASET or DATASET/NAME; all of them by default.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="A file of your own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The benchmark's deployments: rows, query, test and expert of each, as the recipe steps make them."""
    from datas3_ray.benchmark.deployments import find_deployment, names

    if name is not None and "/" in name:
        found = find_deployment(name, file=file).model_dump(exclude_none=True)
        _say([found], [f"{key:<8} {value}" for key, value in found.items()], as_json)
        return
    listed = [find_deployment(each, file=file) for each in names(name, file)]
    rows = [
        {
            "deployment": f"{one.dataset}/{one.name}",
            "task": one.task,
            "metric": one.metric,
            "query": one.query.get("rows"),
            "expert": next(iter(one.expert)),
            "where": one.where,
        }
        for one in listed
    ]
    width = max(len(str(row["deployment"])) for row in rows)
    lines = [
        f"{row['deployment']:<{width}}  {row['metric']:<8} {row['query'] or '-':>5} queries  {row['where']}"
        for row in rows
    ]
    _say(rows, lines, as_json)


def leaderboard(
    lake: LakeOption = "./lake",
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    scoring: Annotated[
        str | None,
        typer.Option(help="honest, paper or both; on the terminal both only where they differ, if none is named."),
    ] = None,
    paper: Annotated[
        bool | None,
        typer.Option("--paper/--no-paper", help="Published rows; shown by default where a deployment is the paper's."),
    ] = None,
    paper_file: Annotated[
        Path | None, typer.Option("--paper-file", metavar="FILE", help="Published scores, in the form of table1.csv.")
    ] = None,
    as_json: JsonOption = False,
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write CSV; - prints it.")] = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Write a Markdown table; - prints it.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one page with tables that sort and plots.")
    ] = None,
) -> None:
    """Deployments x methods: test score and subset size, in the form of the paper's Table 1."""
    from datas3_ray.benchmark import tables
    from datas3_ray.benchmark.leaderboard import leaderboard as make
    from datas3_ray.benchmark.paper_rows import published

    for file in (csv, markdown, html):
        if file is not None and file != "-":
            require_file_name(Path(file))
    word = tables.scoring_of(scoring)
    cells = published(paper, paper_file)
    results = _lake(lake).results()
    if results.num_rows == 0:
        raise Datas3Error(f"lake {lake} has no results yet; run a recipe with a sweep step first.")
    board = make(results, model=model, paper=cells)
    if paper and not board.paper:
        raise UsageError(f"--paper: none of these deployments is the paper's: {', '.join(board.deployments)}.")
    written: list[str] = []
    for to, text in ((csv, tables.csv_text(board)), (markdown, tables.markdown(board, word or "both"))):
        if to == "-":
            typer.echo(text, nl=False)
        elif to is not None:
            from datas3_ray.report.page import write_page

            written.append(str(write_page(text, Path(to))))
    if html is not None:
        from datas3_ray.report.board_page import write_leaderboard

        written.append(str(write_leaderboard(results, html, model=model, paper=cells, scoring=word or "both")))
    if as_json:
        print(json_text(board.to_rows(), indent=2))
    elif csv is None and markdown is None and html is None:
        from rich.console import Console

        console = Console()
        console.print(tables.table_for(board, console.width, word))
    for path in written:
        typer.echo(f"written: {path}", err=as_json or "-" in (csv, markdown))


def submit(
    method: Annotated[str, typer.Argument(help="A method, as the leaderboard names it.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The zip file to write.")],
    lake: LakeOption = "./lake",
    model: Annotated[str | None, typer.Option(help="Only the results of this model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a method's selections and results into one file that others can verify."""
    from datas3_ray.benchmark.submission import pack

    packed = pack(_lake(lake), method, output, model=model)
    _say([packed.to_row()], [packed.sentence()], as_json)


def verify(
    file: Annotated[Path, typer.Argument(help="A file that datas3 submit wrote.")],
    lake: Annotated[
        str | None, typer.Option("--lake", help="Also compare it with this lake: a folder or an object-store uri.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a submission: its hashes, selections, winners and claimed scores. Exit status 1 where a check fails."""
    from datas3_ray.benchmark.verify import verify as run_checks

    checks = run_checks(file, _lake(lake) if lake is not None else None)
    _say([vars(check) for check in checks], [check.line() for check in checks], as_json)
    if any(check.holds is False for check in checks):
        raise typer.Exit(1)
