"""What is written of radii: the curve, and rows that read back to the same doubles."""

import csv
import io
import math
from fractions import Fraction

import numpy as np

from lipray.report.plots.accuracy import accuracy_files, survival
from lipray.robust.certify import AtRadius, Robustness
from lipray.robust.constants import Constants
from lipray.robust.write import COLUMNS, rows
from lipray.run.record.tables import csv_bytes
from tests.maps import Maps


def found():
    radii = np.array([0.1, math.nextafter(0.1, 1.0), 0.0, math.inf])
    table = np.ones((3, 3)) - np.eye(3)
    return Robustness(
        labels=np.array([0, 1, 2, 0]),
        predictions=np.array([0, 1, 1, 0]),
        rivals=np.array([1, 0, 0, 2]),
        margins=np.array([1 / 3, 0.2, -math.inf, 1.0]),
        radii=radii,
        empirical=np.array([0.2, math.inf, 1e-9, math.inf]),
        others=np.array([1, -1, 0, -1]),
        constants=Constants(table, np.zeros((3, 3), dtype=np.int8), 1.0, 0.5, None, "product"),
        at=(AtRadius(Fraction(1, 10), 0.75, 0.5, 0.75),),
        network=Maps(1, 2, 2).network(),
    )


def test_rows_read_back_to_the_same_doubles():
    result = found()
    text = csv_bytes(rows(result), COLUMNS).decode()
    back = list(csv.DictReader(io.StringIO(text)))
    for name in ("margin", "radius", "empirical"):
        values = getattr(result, {"margin": "margins", "radius": "radii"}.get(name, name))
        assert [float(row[name]) for row in back] == values.tolist()
    assert [row["other"] for row in back] == ["1", "", "0", ""]
    assert [row["correct"] for row in back] == ["1", "1", "0", "1"]


def test_one_tenth_is_reached_by_the_doubles_that_reach_it():
    result = found()
    # The double 0.1 is above one tenth.
    assert result.verified(Fraction(1, 10)) == 0.75
    assert result.verified(Fraction(0.1) + Fraction(1, 10**30)) == 0.5


def test_the_curve_falls_from_the_share_that_is_correct():
    radii = np.array([0.1, 0.3, 0.3, math.inf, 0.2])
    correct = np.array([True, True, True, True, False])
    places, shares = survival(radii, correct, 1.0)
    assert places[0] == 0.0
    assert places[-1] == 1.0
    assert shares[0] == 0.8
    assert (np.diff(shares) <= 0.0).all()
    assert shares[-1] == 0.2  # the infinite one
    assert dict(zip(places.tolist(), shares.tolist(), strict=True))[0.3] == 0.2


def test_a_plot_is_drawn_where_there_is_little_to_see():
    files = accuracy_files(np.full(3, math.inf), np.zeros(3), np.array([True, False, True]), [0.1])
    assert files["svg"].startswith(b"<?xml")
    assert files["png"].startswith(b"\x89PNG")
