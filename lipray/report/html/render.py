"""A template and its values to the bytes of a page. Everything is escaped but the plots, which are drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import lipray
from lipray.report.labels import plain
from lipray.report.numbers import bytes_text, lower_text, seconds_text, shape_text, upper_text
from lipray.report.plots.palette import DARK, LIGHT


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of a page: its heading, the figure as SVG of ``lipray.report.plots``, and how to read it."""

    title: str
    figure: str
    caption: str

    @property
    def markup(self) -> Markup:
        """The figure as it stands in the page; its texts were escaped when it was written."""
        return Markup(self.figure)  # noqa: S704 - made by lipray.report.plots.canvas


def render(template: str, **values: Any) -> bytes:
    """The page of a template.

    Args:
        template: its name in ``lipray/report/templates``.
        values: what it shows; records and plain values.
    """
    environment = Environment(
        loader=PackageLoader("lipray.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.filters |= {
        "upper_bound": upper_text,
        "lower_bound": lower_text,
        "duration": seconds_text,
        "size": bytes_text,
        "shape": shape_text,
        "way": _way,
    }
    page = environment.get_template(template).render(version=lipray.__version__, light=LIGHT, dark=DARK, **values)
    return page.encode("utf-8", errors="replace")


def _printable(value: Any) -> Any:
    """Text without control characters, which a page cannot hold; markup and numbers as they are."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_WAYS = {"liplt": "LipLT", "eclipse_fast": "ECLipsE-Fast", "closed_form": "closed form"}


def _way(name: str) -> str:
    """A way to a bound as the literature writes it."""
    return _WAYS.get(name, name)
