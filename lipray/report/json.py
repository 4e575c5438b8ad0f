"""Records as one JSON object on one line, for machines."""

from __future__ import annotations

from lipray.run.record.records import Record


def to_json(record: Record, folder: str | None = None) -> str:
    """The record as JSON; numbers keep full precision, ``null`` stands for infinity.

    ``folder`` is added under the key ``"folder"`` where a run folder was written.
    """
    text = record.model_dump_json()
    if folder is None:
        return text
    import json

    return json.dumps(json.loads(text) | {"folder": folder}, ensure_ascii=False)
