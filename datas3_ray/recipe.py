"""Recipes: a lake and a list of named steps in YAML, with variables, loops and overrides.

This module is the language: it turns a file and ``--set`` options into a :class:`Recipe` of typed steps, and says in
one sentence what cannot be meant. What the steps do is in :mod:`datas3_ray.steps`.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.lake import Lake
from datas3_ray.step_kinds import KINDS, parse_step
from datas3_ray.steps import Context, Outcome, Step
from datas3_ray.texts import load_yaml

_RESERVED = ("name", "description", "lake", "storage_options", "output", "steps")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_ENVIRONMENT = "env:"
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe: typed steps in order, all of their parameters checked.

    Attributes
    ----------
    name : str
    lake : Lake
    output : str
        Folder or object-store uri for pages, Tune's files and other things that are not tables; ``LAKE-output`` by
        default.
    steps : tuple of Step
    """

    name: str
    lake: Lake
    output: str
    steps: tuple[Step, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Parameters
    ----------
    path : str or Path
        A YAML file, or the name of one that comes with the package (``pipelines/quickstart.yaml``).
    overrides : sequence of str
        ``key=value`` for a top-level key, ``steps.NAME.path=value`` inside a step; values are read as YAML.

    Raises
    ------
    UsageError
        One sentence that names the file, the key or value that cannot be meant, and what is allowed.
    """
    file = find_file(path)
    try:
        raw = load_yaml(file.read_bytes())
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    return parse_recipe(raw, str(path), overrides, default_name=file.stem)


def find_file(path: str | Path) -> Path:
    """A file as the user names it: from the working folder, or one of those that come with the package."""
    given = Path(os.path.expanduser(path))
    for candidate in (given, Path(__file__).parent / given):
        if os.path.isfile(candidate):  # False, and no error, for a name that no file can have
            return candidate
    raise UsageError(f"no file {path}: it is neither in {Path.cwd()} nor among the package's own.")


def parse_recipe(
    raw: Any, where: str = "recipe", overrides: Sequence[str] = (), default_name: str = "recipe"
) -> Recipe:
    """A recipe from what its YAML holds; see :func:`load_recipe`."""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where}: a recipe is a mapping with the keys lake and steps, got {type(raw).__name__}.")
    values = copy.deepcopy(dict(raw))
    for key in values:
        if not isinstance(key, str):
            raise UsageError(f"{where}: the key {key!r} is no text; put it in quotes (on, yes, off and no need them).")
    for override in overrides:
        _override(values, override, where)
    steps = values.pop("steps", None)
    if not isinstance(steps, list) or not steps:
        raise UsageError(f"{where}: 'steps' must be a list of named steps.{_hint('steps', values)}")
    if not values.get("lake"):
        raise UsageError(f"{where}: the key 'lake' is missing; it names the folder or uri of the lake.")
    used: set[str] = set()
    top = {key: _resolve(value, values, used, (key,), where) for key, value in values.items()}
    referred = used | _references(steps)
    for key in top:
        if key not in _RESERVED and key not in referred:
            raise UsageError(
                f"{where}: key '{key}' is not a recipe's key and no ${{{key}}} refers to it."
                + did_you_mean(key, [*_RESERVED, *sorted(referred)])
            )
    resolved = [_resolve(step, values, used, (), where) for step in steps]
    expanded = list(itertools.chain.from_iterable(_expand(step, number, where) for number, step in enumerate(resolved)))
    for key in ("lake", "output"):
        if isinstance(top.get(key), (bool, list, Mapping)):
            raise UsageError(f"{where}: {key} = {top[key]!r} is not allowed: it is a folder or an object-store uri.")
    try:
        lake = Lake(str(top["lake"]), top.get("storage_options"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    output = str(top.get("output") or f"{lake.uri}-output").rstrip("/")
    typed = _with_everything([parse_step(step, number, where) for number, step in enumerate(expanded)], where)
    _check_names(typed, lake, where)
    return Recipe(str(top.get("name", default_name)), lake, output, tuple(typed))


def run_recipe(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    replace: bool = False,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> list[Outcome]:
    """Run the steps in order, or with ``dry_run`` only say what would be done.

    A step whose inputs and parameters have not changed is skipped. With ``replace`` shards and files that changed
    since they were ingested are taken anew. ``say`` gets one line a step.
    """
    context = Context(recipe.lake, recipe.output, progress=progress, replace=replace)
    outcomes = []
    width = max(len(step.name) for step in recipe.steps)
    changed: set[str] = set()
    wider: set[str] = set()
    for step in recipe.steps:
        if dry_run:
            plan, because = _plan(step, context, changed, wider)
            if not plan.startswith("up to date"):
                changed |= step.changes(context, because)
                wider |= set(step.widens())
            say(f"{step.name:<{width}}  {step.kind:<9} {plan}")
            continue
        started = time.perf_counter()
        outcome = step.run(context)
        seconds = time.perf_counter() - started
        say(f"{step.name:<{width}}  {step.kind:<9} {outcome.sentence}  [{seconds:.1f} s]")
        outcomes.append(outcome)
    return outcomes


def _plan(step: Step, context: Context, changed: set[str], wider: set[str]) -> tuple[str, set[str]]:
    """A step's plan, and what of that which earlier steps will have changed makes it run."""
    because = step.stale(context, changed)
    if not because:
        try:
            return step.plan(context), because
        except UsageError:
            # What it finds wrong may be what an earlier step will have put right, such as a missing column.
            because = (changed | wider) & step.mentions()
            if not because:
                raise
    # Tables' names, which hold no space, say more than what is told of a table.
    return f"will run, since {min(because, key=lambda name: (' ' in name, name))} will change", because


def _override(values: dict[str, Any], override: str, where: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override!r}: write key=value, or steps.NAME.path=value.")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}.") from error
    parts = key.split(".")
    if parts[0] != "steps":
        if len(parts) > 1:
            raise UsageError(f"--set {override!r}: only top-level keys and steps.NAME.path can be set.")
        values[key] = value
        return
    names = {step.get("name"): step for step in values.get("steps") or [] if isinstance(step, dict)}
    if len(parts) == 2 and parts[1] in names:
        raise UsageError(
            f"--set {override!r}: write steps.{parts[1]}.path=value; the path begins with the step's kind."
        )
    if len(parts) < 3 or parts[1] not in names:
        known = [str(name) for name in names]
        raise UsageError(
            f"--set {override!r}: no step '{'.'.join(parts[1:2])}' in {where}; steps: {', '.join(known)}."
            + did_you_mean(parts[1] if len(parts) > 1 else "", known)
        )
    target = names[parts[1]]
    for part in parts[2:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override!r}: '{part}' of step '{parts[1]}' holds {inner!r} and has no keys.")
        target = inner
    target[parts[-1]] = value


def _references(value: Any) -> set[str]:
    if isinstance(value, str):
        return set(_REFERENCE.findall(value))
    if isinstance(value, Mapping):
        return set().union(*(_references(item) for pair in value.items() for item in pair), set())
    if isinstance(value, list):
        return set().union(*(_references(item) for item in value), set())
    return set()


def _resolve(value: Any, top: Mapping[str, Any], used: set[str], chain: tuple[str, ...], where: str) -> Any:
    """Replace ``${key}`` by the top-level value; a string that is one reference takes the value's own type."""
    if isinstance(value, Mapping):
        return {key: _resolve(item, top, used, chain, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, top, used, chain, where) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(key: str) -> Any:
        if key.startswith(_ENVIRONMENT):
            name = key.removeprefix(_ENVIRONMENT)
            if name not in os.environ:
                raise UsageError(f"{where}: ${{{key}}}: the environment has no variable {name}; set it first.")
            return os.environ[name]
        if key not in top:
            raise UsageError(f"{where}: ${{{key}}} refers to no top-level key.{did_you_mean(key, top)}")
        if key in chain:
            raise UsageError(f"{where}: ${{{key}}} refers to itself ({' -> '.join((*chain, key))}).")
        used.add(key)
        found = _resolve(top[key], top, used, (*chain, key), where)
        if found is None:
            raise UsageError(f"{where}: ${{{key}}} has no value; give it one with --set {key}=VALUE.")
        return found

    whole = _REFERENCE.fullmatch(value)
    if whole:
        return look_up(whole.group(1))
    return _REFERENCE.sub(lambda match: str(look_up(match.group(1))), value)


def _expand(step: Any, number: int, where: str) -> list[dict[str, Any]]:
    """A step with ``for: {name: [values]}`` once for each combination, ``{name}`` replaced in all of its strings."""
    if not isinstance(step, Mapping):
        raise UsageError(f"{where}: step {number + 1} must be a mapping with 'name' and a kind, got {step!r}.")
    loops = step.get("for")
    if loops is None:
        return [dict(step)]
    if not isinstance(loops, Mapping) or not all(isinstance(values, list) and values for values in loops.values()):
        raise UsageError(f"{where}: step '{step.get('name')}': 'for' is written {{name: [value, ...]}}, got {loops!r}.")
    body = {key: value for key, value in step.items() if key != "for"}
    combinations = itertools.product(*loops.values())
    return [_substitute(body, dict(zip(loops, values, strict=True))) for values in combinations]


def _substitute(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {_substitute(key, names): _substitute(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, names) for item in value]
    if isinstance(value, str):
        whole = _PLACEHOLDER.fullmatch(value)
        if whole and whole.group(1) in names:
            return names[whole.group(1)]  # a number stays one
        return _PLACEHOLDER.sub(lambda match: str(names.get(match.group(1), match.group(0))), value)
    return value


def _with_everything(steps: list[Step], where: str) -> list[Step]:
    """A sweep may list the selection ``everything`` without a step of its own: it is then made from the one pool."""
    names = {step.name for step in steps}
    wanted = [number for number, step in enumerate(steps) if "everything" in step.reads()]
    if "everything" in names or not wanted:
        return steps
    pools = [step.name for step in steps if step.kind == "ingest"]
    if len(pools) != 1:
        return steps
    implicit = parse_step({"name": "everything", "select": {"from": pools[0], "everything": {}}}, wanted[0], where)
    return [*steps[: wanted[0]], implicit, *steps[wanted[0] :]]


def _check_names(steps: list[Step], lake: Lake, where: str) -> None:
    """Names are unique, and whatever a step reads is made by an earlier step or is in the lake already."""
    made: set[str] = set()
    for step in steps:
        twice = made & {step.name, *step.makes()}
        if twice:
            raise UsageError(f"{where}: two steps are named '{min(twice)}'; names must differ.")
        for name in step.reads():
            if name not in made and not lake.exists(name):
                later = any(name in other.makes() for other in steps)
                why = "comes later; move it up" if later else "is neither an earlier step nor a table of the lake"
                raise UsageError(f"{where}: step '{step.name}' reads '{name}', which {why}.{did_you_mean(name, made)}")
        made.update({step.name, *step.makes()})


def _hint(key: str, values: Mapping[str, Any]) -> str:
    close = [str(name) for name in values if did_you_mean(key, [str(name)])]
    return f" Is '{close[0]}' meant to be '{key}'?" if close else ""


__all__ = ["KINDS", "Recipe", "find_file", "load_recipe", "parse_recipe", "run_recipe"]
