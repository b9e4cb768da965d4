"""Numbers, durations and sizes as people read them: pure functions from values to short strings."""

from __future__ import annotations

import math


def count(value: int | None) -> str:
    """A whole number with thousands separators; an em dash where there is none.

    >>> count(1234567), count(None)
    ('1,234,567', '—')
    """
    return "—" if value is None else f"{value:,}"


def compact(value: float) -> str:
    """A number in at most five characters, for axes and tight tables (the paper writes 48k of 53k).

    >>> [compact(v) for v in (7, 950, 1500, 48_212, 2_600_000, 0.25, 440e6)]
    ['7', '950', '1.5k', '48k', '2.6M', '0.25', '440M']
    """
    size = abs(value)
    for floor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= floor * 0.9995:
            scaled = value / floor
            return (f"{scaled:.0f}" if abs(scaled) >= 9.95 else f"{scaled:.1f}".removesuffix(".0")) + suffix
    return f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """``part`` of ``whole`` in per cent; small shares keep two significant digits.

    >>> share(1, 4), share(1, 30_000), share(3, 0)
    ('25.0%', '0.0033%', '—')
    """
    if not whole:
        return "—"
    percent = 100 * part / whole
    return f"{percent:.2g}%" if 0 < percent < 0.1 else f"{percent:.1f}%"


def score(value: float | None) -> str:
    """A metric with as many digits as can matter: 0.8123, 12.35, 1,024; an em dash where it is missing.

    >>> score(0.81234), score(12.345), score(float("nan")), score(None)
    ('0.8123', '12.35', '—', '—')
    """
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    digits = 4 if size < 10 else 2 if size < 1000 else 0
    return f"{value:,.{digits}f}" if size == 0 or size >= 1e-3 else f"{value:.2e}"


def seconds(value: float | None) -> str:
    """A duration in its two largest units.

    >>> [seconds(v) for v in (0.034, 4.21, 75, 3_725, None)]
    ['34 ms', '4.2 s', '1 min 15 s', '1 h 2 min', '—']
    """
    if value is None or math.isnan(value):
        return "—"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def shorten(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` characters with an ellipsis in its place.

    >>> shorten("importance_resampling", 10)
    'importanc…'
    """
    return text if len(text) <= limit else text[: max(limit - 1, 0)].rstrip() + "…"


def plain(value: object) -> str:
    """One parameter or figure as text: numbers short, booleans as yes and no, nothing as an em dash.

    >>> plain(0.030000001), plain(True), plain(None), plain([1, 2]), plain(50_000)
    ('0.03', 'yes', '—', '1, 2', '50,000')
    """
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return f"{int(value):,}"
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return str(value)
