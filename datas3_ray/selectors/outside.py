"""Selectors that are not part of the package: found by their import path, sent to the workers, known by their code."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from datas3_ray.errors import UsageError, did_you_mean

Base = TypeVar("Base")


def load_class(path: str, base: type[Base]) -> type[Base]:
    """The subclass of ``base`` that ``package.module:Class`` names; modules in the working folder are found, too.

    Importing runs the module: name only code that you would run. Raises UsageError where there is no such module or
    class, or the class is no ``base``.
    """
    name, _, attribute = path.partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path):
        raise UsageError(f"'{path}' names no class; write package.module:Class.")
    module = _import(name)
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        raise UsageError(f"module '{name}' has no class '{attribute}'.{did_you_mean(attribute, known)}")
    if not issubclass(found, base):
        raise UsageError(f"'{path}' is no selector: make it a subclass of datas3_ray.selectors.SubsetSelection.")
    return found


def _import(name: str) -> ModuleType:
    """A module, also from the working folder, which a console command does not look into by itself."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(f"no module '{name}': it is neither installed nor in {here}.") from None
        raise UsageError(f"module '{name}' needs '{missing}', which is not installed.") from None
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"module '{name}' cannot be imported: {type(error).__name__}: {error}.") from error


def is_outside(kind: type[Any]) -> bool:
    """Whether a class is not part of this package.

    >>> is_outside(UsageError), is_outside(dict)
    (False, True)
    """
    return not kind.__module__.startswith("datas3_ray.")


def travels(kind: type[Any]) -> None:
    """Let the module of a class outside the package travel to workers with the work: they may not have its file."""
    from ray import cloudpickle

    module = sys.modules.get(kind.__module__)
    if is_outside(kind) and module is not None and kind.__module__ != "__main__":
        cloudpickle.register_pickle_by_value(module)


def code_mark(kind: type[Any]) -> str | None:
    """A short text that changes when the module of a class outside the package does; None inside the package.

    So that what another version of somebody's code chose is not taken for what this one would.
    """
    module = sys.modules.get(kind.__module__)
    if module is None or not is_outside(kind):
        return None
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return None  # typed into a console
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
