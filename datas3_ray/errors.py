"""The two kinds of mistake a person can be told about, and the help that goes with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class Datas3Error(Exception):
    """Something failed while working: one sentence that names the thing and what to do. Exit status 1."""

    exit_code = 1


class UsageError(Datas3Error):
    """What was asked for cannot be meant: an unknown name, a bad value, a recipe that does not parse. Exit status 2."""

    exit_code = 2


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The closest of ``choices`` as the tail of a sentence, or an empty string.

    >>> did_you_mean("semdedupe", ["semdedup", "random"])
    " Did you mean 'semdedup'?"
    >>> did_you_mean("x", ["semdedup"])
    ''
    """
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def explain(error: ValidationError, known: Iterable[str]) -> str:
    """The first complaint of a pydantic model in one sentence; ``known`` are the keys it takes.

    >>> from pydantic import BaseModel, ConfigDict, ValidationError
    >>> class Grid(BaseModel):
    ...     model_config = ConfigDict(extra="forbid")
    ...     size: int = 1
    >>> try:
    ...     Grid(sise=2)
    ... except ValidationError as error:
    ...     print(explain(error, Grid.model_fields))
    unknown key 'sise'; it takes: size. Did you mean 'size'?
    """
    first = error.errors()[0]
    names = list(known)
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        word = str(first["loc"][-1])
        if len(first["loc"]) > 1:
            return f"unknown key '{key}'."
        return f"unknown key '{word}'; it takes: {', '.join(names) or 'none'}.{did_you_mean(word, names)}"
    if first["type"] == "missing":
        return f"the key '{key}' is missing."
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key} = {first.get('input')!r} is not allowed: {message}." if key else f"{message}."
