"""What to type: how a run was called, how to verify it, how to go on with it."""

from __future__ import annotations

import shlex

from lipray.run.record.records import ManifestRecord


def called(manifest: ManifestRecord) -> str | None:
    """The command line that made the run, ``None`` where it was made from Python."""
    return shlex.join(["lipray", *manifest.arguments]) if manifest.arguments else None


def verify(place: str, manifest: ManifestRecord) -> str:
    """How to verify the run from its folder: a command, or where its model has no name a call in Python."""
    request = manifest.request
    if request is None:
        return f"lipray.verify_run({place!r}, module)"
    words = ["lipray", "verify", place, request.model]
    weights = manifest.config.get("weights")
    if isinstance(weights, str):
        words += ["--weights", weights]
    if request.trust_model:
        words.append("--trust-model")
    return shlex.join(words)


def resume(place: str, manifest: ManifestRecord) -> str | None:
    """How to go on with the run, ``None`` where the manifest does not say of which model it is."""
    return None if manifest.request is None else shlex.join(["lipray", "resume", place])


def options(manifest: ManifestRecord) -> dict[str, str]:
    """The options that were given or have a default, as text."""
    return {
        name.replace("_", " "): _text(value)
        for name, value in manifest.config.items()
        if value is not None and value is not False and value != ""
    }


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return "yes" if value is True else str(value)
