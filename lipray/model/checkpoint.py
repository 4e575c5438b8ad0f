"""Weights from files: safetensors and torch state dicts, read without running code.

A file is recognised by its content, not by its name. ``torch.load`` is always called with
``weights_only=True`` unless the caller vouches for the file.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from lipray.errors import CheckpointError, NonFiniteWeightsError, UntrustedModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Entries under which training scripts keep the state dict."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""

COUNTER = "num_batches_tracked"
"""Batch norm's step counter: no part of the function, absent from old checkpoints."""

_SHOWN = 5
"""Keys listed per kind of disagreement."""


class FileKind(Enum):
    """What a file is, by its first bytes."""

    SAFETENSORS = "a safetensors file"
    TORCH = "a torch archive (zip with pickled data)"
    PICKLE = "a Python pickle"
    TORCHSCRIPT = "a TorchScript archive, which is code"
    EXPORTED = "an exported program (.pt2), which is code"
    EMPTY = "an empty file"
    UNKNOWN = "neither safetensors nor a torch file"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by state-dict key, as they lie in the file.

    Attributes:
        path: Where they were read.
        tensors: Dense tensors on the CPU.
        digest: SHA-256 of the file.
        notes: What was done beyond plain reading, in sentences for the user.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    digest: str
    notes: tuple[str, ...] = ()


def file_kind(path: Path) -> FileKind:
    """Recognise a file by its content.

    Raises:
        CheckpointError: It does not exist, is a folder, or cannot be read.
    """
    if not path.exists():
        raise CheckpointError(str(path), "there is no such file", hint="Check the path.")
    if not path.is_file():
        raise CheckpointError(str(path), "this is not a file", hint="Name the weight file itself.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(
            str(path), f"it cannot be read ({error.strerror})", hint="Check its permissions."
        ) from None
    if not head:
        return FileKind.EMPTY
    if head.startswith(b"PK\x03\x04"):
        return _archive_kind(path)
    if head[8:] == b"{":
        return FileKind.SAFETENSORS
    if head[0] == 0x80:
        return FileKind.PICKLE
    return FileKind.SAFETENSORS if path.suffix == ".safetensors" else FileKind.UNKNOWN


def _archive_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # noqa: BLE001 - damaged archives raise many kinds; torch.load says what is wrong
        return FileKind.TORCH
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        return FileKind.EXPORTED
    if any(name.endswith("constants.pkl") for name in names):
        return FileKind.TORCHSCRIPT
    return FileKind.TORCH if any(name.endswith("data.pkl") for name in names) else FileKind.UNKNOWN


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read the tensors of a safetensors file or a torch state dict (``.pt``, ``.pth``).

    State dicts wrapped as ``{"state_dict": ...}`` and the like are unwrapped.

    Args:
        path: The file.
        trust: Open pickles and TorchScript that run code; the caller vouches for the file.

    Raises:
        CheckpointError: Missing, empty, truncated, corrupt, or no state dict.
        UntrustedModelError: It holds more than tensors, and ``trust`` is false.
    """
    kind = file_kind(path)
    if kind is FileKind.SAFETENSORS:
        payload: object = _read_safetensors(path)
    elif kind in (FileKind.TORCH, FileKind.PICKLE):
        payload = load_torch(path, trust=trust)
    elif kind is FileKind.TORCHSCRIPT and trust:
        payload = load_torchscript(path)
    elif kind in (FileKind.TORCHSCRIPT, FileKind.EXPORTED):
        raise UntrustedModelError(str(path), f"a state dict was expected and this is {kind.value}")
    else:
        raise CheckpointError(
            str(path), f"this is {kind.value}", hint="Weights are read from safetensors files and torch state dicts."
        )
    tensors, notes = _state_dict(payload, path)
    return Checkpoint(path, tensors, file_digest(path), notes)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            str(path), f"the safetensors file is truncated or corrupt ({_first_line(error)})", hint="Copy it again."
        ) from None
    return tensors


def load_torch(path: Path, *, trust: bool) -> object:
    """What ``torch.load`` finds in the file: a state dict, or with ``trust`` anything that was pickled.

    Raises:
        CheckpointError: Truncated or corrupt.
        UntrustedModelError: Opening it would run code, and ``trust`` is false.
    """
    import torch

    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols it does not write itself; the result is the same.
            warnings.simplefilter("ignore")
            # By path, torch would choose the format by the name's suffix.
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if trust or not ("Unsupported" in str(error) or found):
            raise CheckpointError(
                str(path),
                f"the file is truncated, corrupt, or no torch checkpoint ({_last_line(error)})",
                hint="Copy it again.",
            ) from None
        what = f"objects of {found[1]}" if found else "what torch.save does not write"
        raise UntrustedModelError(
            str(path), f"a state dict was expected and this pickle holds {what}; opening it would run code"
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged bytes make the unpickler raise almost anything
        raise CheckpointError(
            str(path), f"the file is truncated or corrupt ({_first_line(error)})", hint="Copy it again."
        ) from None


def load_torchscript(path: Path) -> nn.Module:
    """The module of a TorchScript archive; opening it runs code, so the caller must vouch for it."""
    import torch

    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # torch's gap
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            str(path), f"the TorchScript archive cannot be read ({_first_line(error)})", hint="Save it again."
        ) from None
    return module


def _state_dict(payload: object, path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    import torch
    from torch import nn

    notes: list[str] = []
    if isinstance(payload, nn.Module):
        notes.append("The weights are those of a pickled module.")
        payload = payload.state_dict()
    wrapper = next((key for key in _WRAPPERS if isinstance(payload, Mapping) and key in payload), None)
    if wrapper is not None and isinstance(payload, Mapping):
        inner = payload[wrapper]
        if isinstance(inner, nn.Module):
            inner = inner.state_dict()
        if isinstance(inner, Mapping):
            notes.append(f"The weights are the entry {wrapper!r} of the checkpoint.")
            payload = inner
    if not isinstance(payload, Mapping) or not payload:
        what = "an empty state dict" if isinstance(payload, Mapping) else f"a {type(payload).__name__}, no state dict"
        raise CheckpointError(str(path), f"it holds {what}", hint="Save module.state_dict().")
    odd = [
        str(key) for key, value in payload.items() if not isinstance(value, torch.Tensor) or not isinstance(key, str)
    ]
    if odd:
        raise CheckpointError(
            str(path), f"these entries are no tensors: {_listing(odd)}", hint="Save module.state_dict() alone."
        )
    dense: dict[str, torch.Tensor] = {}
    for key, value in payload.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise CheckpointError(
                str(path), f"tensor {key!r} is not a plain dense tensor", hint="Dequantise the model first."
            )
        dense[key] = value.detach()
    return dense, tuple(notes)


def fit(
    checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor], name: str
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The checkpoint's tensors under the keys that a module expects, or a precise complaint.

    Floating-point tensors of up to 32 bits come back as float32, and all as float64 if one of them is
    float64: the conversion is exact. Keys that all carry the prefix of DataParallel or torch.compile
    lose it. Batch norm's step counters may be missing.

    Args:
        checkpoint: What was read.
        expected: The module's state dict; only keys, shapes and dtypes count (meta tensors do).
        name: The module, as the user knows it.

    Returns:
        The tensors by expected key, without step counters, and notes for the user.

    Raises:
        CheckpointError: Missing, extra, misshaped or non-float tensors, with both shapes.
        NonFiniteWeightsError: NaN or infinity in a tensor.
    """
    import torch

    tensors, notes = _strip_prefix(checkpoint.tensors, expected)
    wanted = {key: value for key, value in expected.items() if not key.endswith(COUNTER)}
    given = {key: value for key, value in tensors.items() if not key.endswith(COUNTER)}
    faults: list[str] = []
    if missing := [f"{key} {_shape(value)}" for key, value in wanted.items() if key not in given]:
        faults.append(f"missing {_listing(missing)}")
    if extra := [f"{key} {_shape(value)}" for key, value in given.items() if key not in wanted]:
        faults.append(f"not in the architecture {_listing(extra)}")
    if misshaped := [
        f"{key} is {_shape(given[key])} in the file and {_shape(value)} in the architecture"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]:
        faults.append(f"wrong shape {_listing(misshaped)}")
    if faults:
        other = resembling(checkpoint)
        raise CheckpointError(
            str(checkpoint.path),
            f"the weights do not fit {name}: {'; '.join(faults)}",
            hint=f"The keys are those of {other}; use that name."
            if other and other != name
            else "Name the architecture the weights were trained with.",
        )
    if wrong := [f"{key} ({given[key].dtype})" for key, value in wanted.items() if _kind(given[key]) != _kind(value)]:
        raise CheckpointError(
            str(checkpoint.path),
            f"tensors of the wrong type, such as integers for weights: {_listing(wrong)}",
            hint="lipray reads real floating-point weights; dequantise or convert them first.",
        )
    double = any(value.dtype == torch.float64 for value in given.values())
    fitted: dict[str, torch.Tensor] = {}
    for key in wanted:
        value = given[key]
        if value.is_floating_point():
            value = value.to(torch.float64 if double else torch.float32)
            if not bool(torch.isfinite(value).all()):
                bad = "NaN" if bool(torch.isnan(value).any()) else "an infinite entry"
                raise NonFiniteWeightsError(key, f"it has {bad} in {checkpoint.path}")
        fitted[key] = value.contiguous()
    return fitted, (*checkpoint.notes, *notes)


def _strip_prefix(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors) and not all(key.startswith(prefix) for key in expected):
            return {key.removeprefix(prefix): value for key, value in tensors.items()}, (
                f"The prefix {prefix!r} of all keys was dropped.",
            )
    return tensors, ()


def bare_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes by key, without the prefixes of DataParallel and torch.compile and without step counters."""
    keys = tuple(checkpoint.tensors)
    prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in keys)), "")
    return {
        key.removeprefix(prefix): tuple(value.shape)
        for key, value in checkpoint.tensors.items()
        if not key.endswith(COUNTER)
    }


def resembling(checkpoint: Checkpoint) -> str | None:
    """The built-in architecture whose state dict has exactly these keys and shapes, if there is one."""
    from lipray.model.architectures import ARCHITECTURES
    from lipray.model.architectures.initial import skeleton

    shapes = bare_shapes(checkpoint)
    for name, architecture in ARCHITECTURES.items():
        if not all(key in shapes for entries in architecture.inferred.values() for key, _ in entries):
            continue
        state = skeleton(architecture, **architecture.arguments_for(shapes)).state_dict()
        if {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)} == shapes:
            return name
    return None


def _kind(tensor: torch.Tensor) -> str:
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _listing(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _last_line(error: BaseException) -> str:
    text = [line for line in str(error).strip().splitlines() if line.strip()]
    return text[-1].strip()[:200] if text else type(error).__name__
