"""YAML that people wrote, and JSON for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; of two equal keys it would keep the last one and say nothing."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key '{key.value}' is there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node


def load_yaml(text: str | bytes) -> Any:
    """The values of a YAML text; bytes are UTF-8, or UTF-16 with a byte order mark. Raises yaml.YAMLError.

    >>> load_yaml("{size: 2, seed: 0}")
    {'size': 2, 'seed': 0}
    >>> load_yaml("{size: 2, size: 3}")
    Traceback (most recent call last):
    yaml.error.MarkedYAMLError: the key 'size' is there twice
      in "<unicode string>", line 1, column 11:
        {size: 2, size: 3}
                  ^
    """
    return yaml.load(text, _Loader)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that every program reads: it has no word for NaN and infinity, which become null; dates become texts.

    >>> json_text({"score": float("nan"), "best": [0.5, float("-inf")]})
    '{"score": null, "best": [0.5, null]}'
    """
    return json.dumps(finite(value), indent=indent, default=str)


def finite(value: Any) -> Any:
    """The value with null in the place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
