"""Figures as SVG text, written without a plotting library: they open in any browser and in a README."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from mood_jax.studies.subjects import Subject

_SIDE, _MARGIN, _SPAN = 320, 48, 1.4
_COLOURS = ("#1b6ca8", "#c2571a", "#3a7d44", "#7b4fa3", "#a83250", "#8a7a12", "#4d4d4d")


def _at(value: float, left: float, flipped: bool) -> float:
    """Pixels of a value in −_SPAN … _SPAN."""
    share = (np.clip(value, -_SPAN, _SPAN) + _SPAN) / (2 * _SPAN)
    return left + (1 - share if flipped else share) * _SIDE


def _panel(left: float, title: str, x_name: str, y_name: str, marks: Sequence[str]) -> list[str]:
    top, right, bottom = _MARGIN, left + _SIDE, _MARGIN + _SIDE
    lines = [
        f'<rect x="{left}" y="{top}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#888"/>',
        f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{top}" stroke="#ccc"/>',
        f'<text x="{left + _SIDE / 2}" y="{top - 14}" text-anchor="middle" font-weight="bold">{escape(title)}</text>',
        f'<text x="{left + _SIDE / 2}" y="{bottom + 36}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text x="{left - 34}" y="{top + _SIDE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 {left - 34} {top + _SIDE / 2})">{escape(y_name)}</text>',
    ]
    for tick in (-1, 0, 1):
        x, y = _at(tick, left, False), _at(tick, top, True)
        lines.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:+d}</text>')
        lines.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:+d}</text>')
    return [*lines, *marks]


def validation_figure(subjects: Sequence[Subject], axes: Sequence[str]) -> str:
    """Measured against realised style amounts of all identities, and against the planted doses of each axis."""
    first, second = _MARGIN + 12, 2 * _MARGIN + _SIDE + 60
    dots = []
    for s in subjects:
        for a, axis in enumerate(axes):
            x, y = _at(s.realised[a], first, False), _at(s.measured[a], _MARGIN, True)
            label = escape(f"{s.name} {axis}: realised {s.realised[a]:+.2f}, measured {s.measured[a]:+.2f}")
            fill = _COLOURS[a % len(_COLOURS)]
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{fill}" fill-opacity=".7">'
            dots.append(f"{dot}<title>{label}</title></circle>")
    curves = []
    dosed = [s for s in subjects if s.identity.name.startswith("dose_")]
    for a, axis in enumerate(axes):
        colour = _COLOURS[a % len(_COLOURS)]
        points = sorted((s.identity.temperament[a], s.measured[a]) for s in dosed)
        path = " ".join(f"{_at(x, second, False):.1f},{_at(y, _MARGIN, True):.1f}" for x, y in points)
        curves.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        y = _MARGIN + 16 + 15 * a
        curves.append(f'<text x="{second + 10}" y="{y}" fill="{colour}">{escape(axis.replace("_", "/"))}</text>')
    width, height = second + _SIDE + 20, 2 * _MARGIN + _SIDE
    body = _panel(
        first, "measured against style in the text", "style amount counted in the text", "measured (re_read)", dots
    )
    body += _panel(second, "dose-response", "planted style amount", "measured (re_read)", curves)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
    return head + 'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
