"""The files of certified radii: ``radii.csv``, ``constants.npz``, ``robustness.json``, and a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lipray.robust.certify import Broken, Robustness
from lipray.robust.constants import SOURCES, Constants
from lipray.robust.record import RobustnessRecord
from lipray.run.record.folder import RunFolder
from lipray.run.record.tables import csv_bytes

COLUMNS = ("index", "label", "prediction", "correct", "rival", "margin", "radius", "empirical", "other")
EVIDENCE = "broken.npz"
NO_PLOT = "matplotlib is not installed, so there is no plot: pip install 'lipray[report]'"


def write_robustness(folder: RunFolder, result: Robustness, record: RobustnessRecord) -> str:
    """Write all files; what could not be drawn is returned in words, and otherwise nothing.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder.write("radii.csv", csv_bytes(rows(result), COLUMNS))
    folder.write("constants.npz", constants_bytes(result.constants))
    lacking = ""
    try:
        from lipray.report.plots.accuracy import accuracy_files
    except ImportError:
        lacking = NO_PLOT
    else:
        marks = [float(row.radius) for row in result.at]
        for suffix, content in accuracy_files(result.radii, result.empirical, result.correct, marks).items():
            folder.write(f"radii.{suffix}", content)
    folder.write("robustness.json", (record.model_dump_json(indent=1) + "\n").encode())
    return lacking


def write_evidence(folder: RunFolder, broken: Broken, constants: Constants) -> str:
    """Write what shows that a certificate is wrong: both inputs, the classes, the radius, and the constants.

    Returns:
        The path or URL of the file.

    Raises:
        StoreError: the folder cannot be written.
    """
    arrays = {
        "x": broken.x,
        "point": broken.point,
        "index": broken.index,
        "radius": broken.radius,
        "distance": broken.distance,
        "prediction": broken.prediction,
        "other": broken.other,
        "pairwise": constants.pairwise,
    }
    folder.write(EVIDENCE, _npz(arrays))
    return f"{folder.place}/{EVIDENCE}"


def rows(result: Robustness) -> list[dict[str, Any]]:
    """A row per input, numbers in full precision; infinity is ``inf``, and what was not sought is empty."""
    table = []
    for index in range(len(result.labels)):
        row: dict[str, Any] = {
            "index": index,
            "label": int(result.labels[index]),
            "prediction": int(result.predictions[index]),
            "correct": int(result.correct[index]),
            "rival": int(result.rivals[index]),
            "margin": float(result.margins[index]),
            "radius": float(result.radii[index]),
        }
        if result.empirical is not None and result.others is not None:
            row["empirical"] = float(result.empirical[index])
            row["other"] = int(result.others[index]) if math.isfinite(result.empirical[index]) else ""
        table.append(row)
    return table


def constants_bytes(constants: Constants) -> bytes:
    """The constants as an archive: ``pairwise``, ``source`` into ``sources``, ``upper``, ``lower`` and ``before``."""
    return _npz(
        {
            "pairwise": constants.pairwise,
            "source": constants.source,
            "sources": np.array(SOURCES),
            "upper": constants.upper,
            "lower": constants.lower,
            "before": math.nan if constants.before is None else constants.before,
        }
    )


def _npz(arrays: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
