"""The end of a training run as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def training_table(last: Mapping[str, float], folder: str, command: str) -> RenderableType:
    """The last epoch's figures, where the run is, and what certifies it."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("epochs", f"{last['epoch']:.0f}")
    table.add_row("loss", f"{last['loss']:.4g}")
    table.add_row("clean accuracy", f"{last['clean']:.2%}")
    for key, value in last.items():
        if key.startswith("robust "):
            table.add_row(f"robust at {key.removeprefix('robust ')}", f"{value:.2%}")
    if "constant" in last:
        table.add_row("largest constant of a margin", f"{last['constant']:.4g}")
    table.add_row("folder", folder)
    note = "Robust accuracy and constant are by power iteration: they are no certificate. To certify:"
    return Group(table, Text(note), Text(command))
