"""The command that gives a table training-based scores: score."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from datas3_ray.cli_lake import DryRunOption, JsonOption, LakeOption
from datas3_ray.errors import UsageError
from datas3_ray.texts import load_yaml


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(score)


def score(
    table: Annotated[str, typer.Argument(help="An image table.")],
    scores: Annotated[
        str,
        typer.Option("--scores", help="Of el2n, grand, forgetting, aum, entropy, dyn_unc and tdds, with commas."),
    ],
    lake: LakeOption = "./lake",
    column: Annotated[
        str | None, typer.Option("--column", help="The vector column the proxy learns from; the only one by default.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="The column of classes.")] = "label",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of the proxy.")] = 10,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Proxies to take the mean of.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first proxy.")] = 0,
    prefix: Annotated[str, typer.Option("--prefix", help="Put before the scores' names to name the columns.")] = "",
    record: Annotated[
        str | None, typer.Option("--record", help="A folder to keep the proxies' logits in as well.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another setting, as in a recipe: key=value, such as lr=0.01. Repeatable."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a proxy on a table's labelled rows and write scores from its training beside them."""
    from datas3_ray.cli_lake import _lake, _say
    from datas3_ray.training.score_plan import parse_config, plan_scores

    named = {"scores": [name.strip() for name in scores.split(",") if name.strip()], "column": column, "label": label}
    values = {**named, "epochs": epochs, "runs": runs, "seed": seed, "prefix": prefix, "record": record}
    config = parse_config(_with_settings(values, set_ or []))
    opened = _lake(lake)
    if dry_run:
        plan = plan_scores(opened, table, config).describe()
        _say([{"table": table, "plan": plan}], [f"{table}: {plan}"], as_json)
        return
    from datas3_ray.training.score_run import score_table

    summary = score_table(opened, table, config)
    _say([vars(summary)], [summary.sentence()], as_json)


def _with_settings(values: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    import yaml

    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r}: write key=value.")
        if key in values:
            raise UsageError(f"--set {setting!r}: there is an option --{key} for it.")
        try:
            values[key] = load_yaml(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting!r}: the value is not YAML: {' '.join(str(error).split())}.") from None
    return values
