"""Inline SVG, as pure functions from numbers to markup.

Nothing here carries a style attribute or a script, so a page with a strict content security policy shows it; colours
come from the page's stylesheet by class name, which is how the figures follow the reader's light or dark scheme. Every
figure has a text alternative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from datas3_ray.report import formats


@dataclass(frozen=True)
class Segment:
    """One piece of a stacked bar: its name, how many rows, and the class that colours it."""

    name: str
    value: int
    css: str


def stacked_bar(segments: Sequence[Segment]) -> Markup:
    """A full-width bar cut in proportion to ``segments``; empty ones are left out, tiny ones stay visible.

    >>> "kept: 3" in stacked_bar([Segment("kept", 3, "kept"), Segment("dropped", 1, "dropped")])
    True
    """
    shown = [segment for segment in segments if segment.value > 0]
    total = sum(segment.value for segment in shown)
    label = "; ".join(f"{segment.name}: {segment.value:,}" for segment in segments) or "no rows"
    body = Markup()
    if total:
        floor = 4.0
        widths = np.array([max(1000 * segment.value / total, floor) for segment in shown])
        widths *= 1000 / widths.sum()
        left = 0.0
        for segment, width in zip(shown, widths, strict=True):
            body += Markup(
                '<rect class="{}" x="{:.2f}" y="0" width="{:.2f}" height="22"><title>{}</title></rect>'
            ).format(
                segment.css, left, width, f"{segment.name}: {segment.value:,} ({formats.share(segment.value, total)})"
            )
            left += width
    return Markup(
        '<svg class="stack" viewBox="0 0 1000 22" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="track" x="0" y="0" width="1000" height="22"/>{}</svg>'
    ).format(label, body)


def paired_bar(before: float, after: float) -> Markup:
    """Two thin bars, one above the other, for a label's share before and after; both are fractions of the widest.

    The numbers stand beside the bars in the table, so the figure is hidden from screen readers.
    """
    return Markup(
        '<svg class="pair" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="before" x="0" y="0" width="{:.2f}" height="6"/>'
        '<rect class="kept" x="0" y="7" width="{:.2f}" height="7"/></svg>'
    ).format(100 * min(max(before, 0.0), 1.0), 100 * min(max(after, 0.0), 1.0))


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers inside [low, high], about ``wanted`` of them, at steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> ticks(3.0, 3.0)
    [3.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** np.floor(np.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(np.log(s / raw)))
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return list(dict.fromkeys(float(f"{i * step:.12g}") for i in range(first, last + 1))) or [low]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; at most six of them, powers of ten first.

    >>> log_ticks(800, 60_000)
    [1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0]
    """
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        found = [float(m * 10**p) for p in powers for m in multiples if low <= m * 10**p <= high]
        if len(found) <= 6:
            return found
    return found[:: -(-len(found) // 6)]


def histogram(edges: np.ndarray, kept: np.ndarray, dropped: np.ndarray, *, title: str) -> Markup:
    """Score histogram, kept stacked on dropped, with axes.

    Args:
        edges: float64 array of shape (bins + 1,), ascending.
        kept: int64 array of shape (bins,): kept rows in each bin.
        dropped: int64 array of shape (bins,): dropped rows in each bin.
        title: the text alternative's first words.
    """
    width, height, left, right, top, bottom = 360.0, 150.0, 40.0, 8.0, 8.0, 24.0
    inner_w, inner_h = width - left - right, height - top - bottom
    tallest = max(int((kept + dropped).max(initial=0)), 1)
    slot = inner_w / len(kept)
    body = Markup()
    for value in ticks(0, tallest, 3):
        if value != int(value):
            continue
        y = top + inner_h * (1 - value / tallest)
        body += Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            left, width - right, y, y
        ) + Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
            left - 5, y + 3.5, formats.compact(value)
        )
    for i in range(len(kept)):
        base = top + inner_h
        span = f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {int(kept[i]):,} kept, {int(dropped[i]):,} dropped"
        bars = Markup()
        for css, rows in (("dropped", int(dropped[i])), ("kept", int(kept[i]))):
            if not rows:
                continue
            tall = max(inner_h * rows / tallest, 0.75)
            base -= tall
            bars += Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>').format(
                css, left + i * slot + 0.4, base, max(slot - 0.8, 0.4), tall
            )
        if bars:
            body += Markup("<g><title>{}</title>{}</g>").format(span, bars)
    low, high = float(edges[0]), float(edges[-1])
    for value in ticks(low, high, 4):
        x = left + (inner_w * (value - low) / (high - low) if high > low else inner_w / 2)
        body += Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            x, height - 7, f"{value:.6g}"
        )
    body += Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
        left, width - right, top + inner_h, top + inner_h
    )
    label = (
        f"{title}: {int(kept.sum()):,} kept and {int(dropped.sum()):,} dropped rows between {low:.4g} and {high:.4g}"
    )
    return Markup('<svg class="plot" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, body
    )


def heat_class(fraction: float) -> str:
    """The stylesheet's heat class of a fraction in [0, 1]: eleven steps, h0 to h10.

    >>> heat_class(0.0), heat_class(0.52), heat_class(1.0)
    ('h0', 'h5', 'h10')
    """
    return f"h{round(10 * min(max(fraction, 0.0), 1.0))}"


def text_width(text: str, size: float = 10.0) -> float:
    """A safe guess of how wide ``text`` is drawn, in the units of ``size``: enough to keep labels apart."""
    wide = sum(1.05 if ord(char) > 0x2E7F else 0.58 if char not in "iljt.,:;|!'I " else 0.34 for char in text)
    return wide * size
