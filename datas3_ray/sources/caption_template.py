"""Captions made from a row's columns: ``a camera trap image of {label}, taken on {date}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from datas3_ray.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class CaptionTemplate:
    """Text with column names in braces, each optionally with Python's format for numbers: ``{speed:.0f} km/h``.

    >>> template = CaptionTemplate("a photo of a {label} in {country}")
    >>> template.names()
    ('label', 'country')
    >>> template.render({"label": "stove", "country": "South Africa"})
    'a photo of a stove in South Africa'
    >>> template.render({"label": "stove", "country": None}) is None
    True
    """

    text: str

    def __post_init__(self) -> None:
        try:
            names = self.names()
        except ValueError as error:
            raise UsageError(f"columns: caption: the template {self.text!r} cannot be read: {error}.") from None
        odd = [name for name in names if not name.isidentifier()]
        if odd:
            raise UsageError(
                f"columns: caption: {{{odd[0]}}} in the template {self.text!r} is no column's name; write braces that "
                "are meant as such twice."
            )
        if not names:
            raise UsageError(f"columns: caption: the template {self.text!r} names no column; such as {{label}}.")

    def names(self) -> tuple[str, ...]:
        """The columns that it reads, in the order of their first use."""
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.text) if name is not None))

    def check(self, columns: Iterable[str]) -> None:
        """Raises UsageError unless all of its columns are among ``columns``."""
        known = list(columns)
        for name in self.names():
            if name not in known:
                raise UsageError(
                    f"columns: caption: the template reads {name!r}, which is no column; there are: "
                    f"{', '.join(known)}.{did_you_mean(name, known)}"
                )

    def render(self, values: Mapping[str, Any]) -> str | None:
        """The caption of a row; None where one of its values is missing. Underscores of labels become spaces.

        Raises ValueError where a value does not take its format.
        """
        parts = []
        for literal, name, form, _ in Formatter().parse(self.text):
            parts.append(literal)
            if name is None:
                continue
            value = values.get(name)
            if value is None:
                return None
            parts.append(format(value, form or "") if not isinstance(value, str) else value.replace("_", " "))
        return "".join(parts)


__all__ = ["CaptionTemplate"]
