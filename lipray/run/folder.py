"""The run folder: written beside its final place and moved there whole, so that half a run is never seen."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lipray.certify.certificate import Certificate
from lipray.compose.bound import Bound
from lipray.errors import StoreError
from lipray.run import THREAD_VARIABLES
from lipray.run.records import ManifestRecord, ResultRecord, SubproblemRecord
from lipray.verify.record import ARRAYS, NAME

PACKAGES = ("lipray", "torch", "ray", "cvxpy", "clarabel", "numpy", "scipy", "pydantic", "safetensors", "onnx")


def choose_folder(out: Path | None, name: str, content: str, now: datetime) -> Path:
    """Where a run goes: ``out``, or ``runs/<utc time>-<name>-<hash>``; checked before any work is done.

    Raises:
        StoreError: ``out`` holds something already, or its parent cannot be written.
    """
    if out is None:
        plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "model"
        out = Path("runs") / f"{now.strftime('%Y%m%dT%H%M%SZ')}-{plain[:40]}-{content[:8]}"
        number = 1
        while out.exists():
            number += 1
            out = out.with_name(f"{out.name.removesuffix(f'.{number - 1}')}.{number}")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise StoreError(str(out), "is not a folder", hint="Choose another place with --out.")
    if out.is_dir() and any(out.iterdir()):
        raise StoreError(str(out), "holds files already", hint="Choose an empty or new folder with --out.")
    parent = _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StoreError(str(out), f"{parent} cannot be written", hint="Choose another place with --out.")
    return out


def write_run(
    folder: Path,
    *,
    bound: Bound,
    certificate: tuple[bytes, bytes] | None = None,
    result: ResultRecord,
    config: Mapping[str, Any],
    started: datetime,
    seed: int,
    arguments: tuple[str, ...] = (),
) -> None:
    """Write all files of a run to ``folder``, which appears complete or not at all.

    ``certificate`` holds the two files of ``lipray.verify.record.encode``, where the bound is finite.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as fault:
        raise StoreError(str(folder), f"cannot be written ({fault.strerror})") from None
    try:
        files = {
            "result.json": result.model_dump_json(indent=1).encode() + b"\n",
            "subproblems.csv": _table(result.subproblems),
            "shape_matrices.npz": _arrays(shape_matrices(bound.certificate)),
        }
        if certificate is not None:
            files |= dict(zip((NAME, ARRAYS), certificate, strict=True))
        if bound.witness is not None:
            files["witness.npz"] = _arrays({"x": bound.witness[0], "y": bound.witness[1]})
        manifest = ManifestRecord(
            run=folder.name,
            started=started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            model=result.model,
            config=dict(config),
            seed=seed,
            versions=versions(),
            thread_variables={name: os.environ.get(name, "") for name in THREAD_VARIABLES},
            machine=machine(),
            git=_git_revision(),
            arguments=arguments,
            files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        )
        files["manifest.json"] = manifest.model_dump_json(indent=1).encode() + b"\n"
        for name, content in files.items():
            _write(scratch / name, content)
        scratch.chmod(0o755 & ~_umask())
        if folder.exists():
            folder.rmdir()
        scratch.rename(folder)
        _sync_folder(folder.parent)
    except OSError as fault:
        raise StoreError(str(folder), f"cannot be written ({fault.strerror})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def shape_matrices(certificates: Mapping[str, Certificate]) -> dict[str, np.ndarray]:
    """The output shape matrices of all certificates that have one, by key."""
    found = {key: certificates[key].gram for key in sorted(certificates)}
    return {key: np.asarray(gram) for key, gram in found.items() if gram is not None}


def read_result(folder: Path) -> ResultRecord:
    """The result of a finished run.

    Raises:
        StoreError: there is none, it is damaged, or another version of lipray wrote it.
    """
    path = folder / "result.json"
    try:
        return ResultRecord.model_validate_json(path.read_bytes())
    except OSError as fault:
        raise StoreError(str(path), f"cannot be read ({fault.strerror})") from None
    except ValueError as fault:
        raise StoreError(str(path), f"is no result this version reads ({str(fault).splitlines()[0]})") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a bound may depend on, without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """The machine the driver ran on, without its name."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count() or 1,
    }


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    return parent


def _table(rows: tuple[SubproblemRecord, ...]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(SubproblemRecord.model_fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(json.loads(row.model_dump_json()))
    return text.getvalue().encode()


def _arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    value = os.umask(0o022)
    os.umask(value)
    return value


def _git_revision() -> str | None:
    """Revision of the source tree lipray runs from, where it is one."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
