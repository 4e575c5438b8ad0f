"""The colours of a report, light and dark: text and lines reach a contrast of 4.5 and 3 on both papers."""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "paper": "#fdfdfc",
    "ink": "#1b1f24",
    "muted": "#5d6670",
    "rule": "#d9dcdf",
    "c1": "#0b62bd",
    "c2": "#b9500a",
    "c3": "#16774a",
    "c4": "#8839b3",
    "c5": "#bf2c47",
    "c6": "#0d7680",
    "c7": "#77591b",
    "c8": "#66707b",
}
"""By name; a plot is drawn with these, and on a page each stands for the custom property of its name."""

DARK: Final = {
    "paper": "#15181c",
    "ink": "#e8eaec",
    "muted": "#a2abb5",
    "rule": "#3a4149",
    "c1": "#5ea9f5",
    "c2": "#f09550",
    "c3": "#52c487",
    "c4": "#c48dea",
    "c5": "#f27d91",
    "c6": "#43c2cc",
    "c7": "#d3b061",
    "c8": "#98a3ae",
}

SERIES: Final = tuple(LIGHT[f"c{number}"] for number in range(1, 8))
"""Colours of lines, in the order in which they are taken."""

PAPER, INK, MUTED, RULE, QUIET = LIGHT["paper"], LIGHT["ink"], LIGHT["muted"], LIGHT["rule"], LIGHT["c8"]
"""Ground, text, lesser text, thin lines, and bars that others are compared with."""
