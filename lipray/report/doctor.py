"""A diagnosis as a table for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lipray.run.checks.findings import DiagnosisRecord

_STYLES = {"ok": "green", "warning": "yellow", "fault": "red"}


def diagnosis_table(diagnosis: DiagnosisRecord) -> RenderableType:
    """All findings, and below them what to do about those that are not well."""
    table = Table(title=f"lipray {diagnosis.lipray}", title_justify="left")
    table.add_column("check", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    remedies: list[RenderableType] = []
    for finding in diagnosis.findings:
        state = Text(finding.state, style=_STYLES[finding.state])
        table.add_row(Text(finding.name), state, Text(finding.text, overflow="fold"))
        if finding.remedy and finding.state != "ok":
            remedies.append(Text(f"{finding.name}: {finding.remedy}", overflow="fold"))
    faults = sum(finding.state == "fault" for finding in diagnosis.findings)
    warnings = sum(finding.state == "warning" for finding in diagnosis.findings)
    return Group(table, *remedies, Text(f"{faults} fault(s), {warnings} warning(s)"))
