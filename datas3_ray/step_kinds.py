"""A recipe's mapping to a typed step: which kinds there are, and how each one's keys are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.ingest import parse_config
from datas3_ray.lake.algebra import OPERATIONS
from datas3_ray.lake.lake import check_name
from datas3_ray.lake.splits import Split
from datas3_ray.selectors import SELECTORS, make_selector
from datas3_ray.steps import ReportStep, SelectStep, SplitStep, Step, SweepStep
from datas3_ray.steps_auto import AutoStep
from datas3_ray.steps_benchmark import DeploymentStep, ExpertStep
from datas3_ray.steps_combine import CombineStep, make_combine
from datas3_ray.steps_ingest import IngestStep, SyntheticStep
from datas3_ray.steps_lake import EmbedStep, IndexStep, OptimizeStep, make_embed, make_index
from datas3_ray.steps_scores import ScoreStep, make_score

KINDS: dict[str, type[Step]] = {
    step.kind: step
    for step in (
        SyntheticStep,
        IngestStep,
        EmbedStep,
        SplitStep,
        DeploymentStep,
        SelectStep,
        ExpertStep,
        CombineStep,
        SweepStep,
        AutoStep,
        ReportStep,
        OptimizeStep,
        IndexStep,
        ScoreStep,
    )
}
"""The kinds of step by the word for them in a recipe."""

_NO_TEXT = "is not allowed: a table's name is a text; put it, or the values of its loop, in quotes."


def parse_step(step: Mapping[str, Any], number: int, where: str) -> Step:
    """A typed step from its mapping ``{name: ..., KIND: {...}}``; a UsageError names the step and the key."""
    name = step.get("name")
    if name is None:
        raise UsageError(f"{where}: step {number + 1} has no 'name'; every step needs one.")
    if not isinstance(name, str):
        raise UsageError(f"{where}: step {number + 1}: name = {name!r} {_NO_TEXT}")
    kinds = [key for key in step if key != "name"]
    here = f"{where}: step '{name}'"
    if len(kinds) != 1 or kinds[0] not in KINDS:
        odd = next((key for key in kinds if key not in KINDS), None)
        if odd is not None:
            raise UsageError(f"{here}: unknown key '{odd}'; kinds are: {', '.join(KINDS)}.{did_you_mean(odd, KINDS)}")
        raise UsageError(
            f"{here}: a step has exactly one kind of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}."
        )
    kind, body = kinds[0], step[kinds[0]]
    if body is None:
        body = {}
    if not isinstance(body, Mapping):
        raise UsageError(f"{here}: '{kind}' must hold keys and values, got {body!r}.")
    try:
        check_name(name)
        return _MAKERS.get(kind, _plain)(name, dict(body), KINDS[kind])
    except UsageError as error:
        raise UsageError(f"{here}: {error}") from None


def _plain(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    return checked(kind, body, filled={"name": name})


def _ingest(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    return IngestStep(name=name, config=parse_config(body))


def _split(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    return SplitStep(name=name, source=_from(body), split=checked(Split, body))


def _select(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    source = _from(body)
    within, query = body.pop("within", None), body.pop("query", None)
    methods = list(body)
    logic = next((method for method in methods if method in OPERATIONS), None)
    if logic is not None:
        raise UsageError(
            f"'{logic}' is no method but a logic over selections, a step of its own kind: "
            f"combine: {{{logic}: [a, b]}}, without 'from'."
        )
    if len(methods) != 1:
        extra = [method for method in methods if method not in SELECTORS and ":" not in str(method)]
        if extra:
            known = ["from", "within", "query", *SELECTORS]
            raise UsageError(f"unknown key '{extra[0]}'; it takes: {', '.join(known)}.{did_you_mean(extra[0], known)}")
        raise UsageError(f"exactly one method is needed of {', '.join(SELECTORS)}, got {', '.join(methods) or 'none'}.")
    parameters = body[methods[0]] or {}
    if not isinstance(parameters, Mapping):
        raise UsageError(f"'{methods[0]}' must hold parameters such as {{size: 0.25}}, got {parameters!r}.")
    selector = make_selector(str(methods[0]), dict(parameters))
    if selector.needs_query and query is None:
        raise UsageError(f"{methods[0]} needs 'query': the name of a table with examples of the deployment.")
    if query is not None and not selector.needs_query:
        raise UsageError(f"{methods[0]} looks at no query; leave 'query' out.")
    filled = {"name": name, "source": source, "selector": selector}
    return checked(SelectStep, {"within": within, "query": query}, filled=filled)


def _sweep(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    step = checked(SweepStep, body, filled={"name": name})
    step.configured()  # a file that is not there, a wrong key or value is told here
    return step


def _auto(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    source = _from(body)
    step = checked(AutoStep, body, filled={"name": name, "source": source})
    step.configured()  # a wrong method, parameter or sweep is told here
    return step


def _deployment(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    source = _from(body)
    step = checked(kind, body, filled={"name": name, "source": source})
    assert isinstance(step, DeploymentStep | ExpertStep)
    step.check()
    return step


_MAKERS: dict[str, Callable[[str, dict[str, Any], type[Step]], Step]] = {
    "ingest": _ingest,
    "split": _split,
    "select": _select,
    "sweep": _sweep,
    "auto": _auto,
    "combine": make_combine,
    "deployment": _deployment,
    "expert": _deployment,
    "embed": make_embed,
    "index": make_index,
    "score": make_score,
}


def _from(body: dict[str, Any]) -> str:
    source = body.pop("from", None)
    if source is None:
        raise UsageError("the key 'from' is missing; it names the image table to read.")
    if not isinstance(source, str):
        raise UsageError(f"from = {source!r} {_NO_TEXT}")
    return source
