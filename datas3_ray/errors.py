"""The two kinds of mistake a person can be told about, and the help that goes with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

ModelT = TypeVar("ModelT", bound="BaseModel")

# What the engines put around the sentence that matters: places in their sources, names of their layers, the statement
# that they made of a predicate, advice on settings that nobody can reach here, columns of their own, and print-outs.
_INTERNALS = (
    (re.compile(r",? ?/?[\w./-]*\.rs:\d+(:\d+)?"), ""),
    (re.compile(r"\b(LanceError\(\w+\)|(lance|External|Schema|Arrow|Query Execution) error): ?", re.IGNORECASE), ""),
    (re.compile(r"\bInvalid (user )?input[:,] ?|\bError (during planning|applying filter expression to batch): ?"), ""),
    (re.compile(r"Error \w+ statement: SELECT 1 FROM t WHERE.*\((?:sql parser error: )?(.*)\)"), r"\1"),
    (re.compile(r" at Line: \d+, Column: \d+"), ""),
    (re.compile(r"Column names are case sensitive\. You can .*? configuration\. "), ""),
    (re.compile(r", _(row\w*|distance)"), ""),
)
_DUMP = re.compile(r"[ '(]*\b\w[\w(]* \{ \w+: .*")
_CAUSE = re.compile(r"\b(?:message|error): \"([^\"]+)\"")


class Datas3Error(Exception):
    """Something failed while working: one sentence that names the thing and what to do. Exit status 1."""

    exit_code = 1


class UsageError(Datas3Error):
    """What was asked for cannot be meant: an unknown name, a bad value, a recipe that does not parse. Exit status 2."""

    exit_code = 2


def did_you_mean(word: object, choices: Iterable[object]) -> str:
    """The closest of ``choices`` as the tail of a sentence, or an empty string; YAML's keys may be no texts.

    >>> did_you_mean("semdedupe", ["semdedup", "random"])
    " Did you mean 'semdedup'?"
    >>> did_you_mean("x", ["semdedup"])
    ''
    """
    close = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def ended(text: str) -> str:
    """A sentence with a full stop, unless it ends already.

    >>> ended("it is a file"), ended("Did you mean 'a'?")
    ('it is a file.', "Did you mean 'a'?")
    """
    return text if text.endswith((".", "?", "!")) else f"{text}."


def engine_reason(error: BaseException) -> str:
    """What an engine complains of, as the end of a sentence on one line, without the engine's internals.

    >>> engine_reason(ValueError("Schema error: No field named a. Did you mean 'b'?., /rust/lance/scanner.rs:839:33"))
    "No field named a. Did you mean 'b'?"
    """
    text = " ".join(str(error).split())
    for pattern, instead in _INTERNALS:
        text = pattern.sub(instead, text)
    causes = _CAUSE.findall(text)
    text, dumps = _DUMP.subn("", text)
    if dumps and causes:
        text = f"{text.rstrip(' :')}: {causes[-1]}"
    text = text.rstrip(" .:") or type(error).__name__
    return ended(text)


def require_file_name(path: Path) -> None:
    """Raise a UsageError where no file can be written: at a folder's own name, or below a file.

    >>> require_file_name(Path("/"))
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: cannot write to /: it is a folder; name a file.
    """
    if path.is_dir():
        raise UsageError(f"cannot write to {path}: it is a folder; name a file.")
    blocked = in_the_way(path)
    if blocked is not None:
        raise UsageError(f"cannot write to {path}: {blocked} is a file and no folder; name another place.")


def in_the_way(path: Path) -> Path | None:
    """The file that stands where ``path`` needs a folder above it, or None."""
    nearest = next((parent for parent in path.parents if parent.exists()), None)
    return nearest if nearest is not None and not nearest.is_dir() else None


def checked(
    model: type[ModelT], values: Mapping[str, Any], what: str = "", filled: Mapping[str, Any] | None = None
) -> ModelT:
    """A pydantic model of what a user wrote; a UsageError is one sentence that begins with ``what``.

    ``filled`` are the fields that the caller gives itself: they are no keys that the user may write.

    >>> from pydantic import BaseModel
    >>> class Box(BaseModel):
    ...     name: str
    ...     width: int
    >>> checked(Box, {"width": 5}, "box", filled={"name": "small"})
    Box(name='small', width=5)
    >>> checked(Box, {"witdh": 5}, "box", filled={"name": "small"})
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: box: unknown key 'witdh'; it takes: width. Did you mean 'width'?
    >>> checked(Box, {"width": []}, "box", filled={"name": "small"})
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: box: width = [] is not allowed: input should be a valid integer.
    """
    filled = filled or {}
    with one_sentence(model, values, what, filled):
        return model(**values, **filled)


@contextmanager
def one_sentence(
    model: type[BaseModel], values: Mapping[str, Any], what: str = "", filled: Collection[str] = ()
) -> Iterator[None]:
    """What :func:`checked` does, around a block that makes the ``model`` of these ``values`` itself.

    An unknown key is told first, whatever else is wrong: it may be the reason why another one is missing.
    """
    from pydantic import ValidationError

    start = f"{what}: " if what else ""
    known = [name for name in model.model_fields if name not in filled]
    for key in values:
        if key not in known:
            raise UsageError(start + _unknown(key, known))
    try:
        yield
    except ValidationError as error:
        raise UsageError(start + explain(error, known, values)) from None


def explain(error: ValidationError, known: Iterable[str], values: Mapping[str, Any] | None = None) -> str:
    """The first complaint of a pydantic model in one sentence; ``known`` are the keys it takes.

    With the ``values`` that the model was made of, the sentence names the place as the user wrote it: pydantic's own
    also tells which type of several it tried, and the items of a list that a validator made.

    >>> from pydantic import BaseModel, ConfigDict, ValidationError
    >>> class Grid(BaseModel):
    ...     model_config = ConfigDict(extra="forbid")
    ...     size: int | list[int] = 1
    >>> try:
    ...     Grid(sise=2)
    ... except ValidationError as error:
    ...     print(explain(error, Grid.model_fields))
    unknown key 'sise'; it takes: size. Did you mean 'size'?
    >>> try:
    ...     Grid(size="a")
    ... except ValidationError as error:
    ...     print(explain(error, Grid.model_fields, {"size": "a"}))
    size = 'a' is not allowed: input should be a valid integer, unable to parse string as an integer.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(place, list(known)) if len(first["loc"]) == 1 else f"unknown key '{place}'."
    if first["type"] == "missing":
        return f"the key '{place}' is missing."
    written, given = _written(first["loc"], values or {})
    if not written:
        written, given = place, first["input"]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return ended(f"{written} = {given!r} is not allowed: {message}" if written else message)


def _unknown(key: Any, known: Collection[str]) -> str:
    return f"unknown key {key!r}; it takes: {', '.join(known) or 'none'}.{did_you_mean(key, known)}"


def _written(place: Iterable[int | str], values: Mapping[str, Any]) -> tuple[str, Any]:
    """How far a complaint's place leads into what the user wrote, dotted, and what is there."""
    parts: list[str] = []
    here: Any = values
    for part in place:
        keys = here if isinstance(here, Mapping) else range(len(here)) if isinstance(here, (list, tuple)) else ()
        if part not in keys:
            break
        here = here[part]
        parts.append(str(part))
    return ".".join(parts), here
