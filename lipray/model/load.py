"""From what the user names to a ``Network``: built-in architecture, factory, ONNX file or trusted archive.

This file starts without torch; it is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipray.errors import InputShapeError, LiprayError, ModelError, ModelNotFoundError, UntrustedModelError, UsageError
from lipray.model.architectures import ARCHITECTURES, Architecture
from lipray.model.network import Network

if TYPE_CHECKING:
    from torch import nn

FILE_SUFFIXES = frozenset({".onnx", ".pt2", ".pt", ".pth", ".pkl", ".pickle", ".ts", ".torchscript", ".safetensors"})
"""A model with such a name is a file even if it does not exist."""

_FORMS = (
    "MODEL is a built-in architecture, module:factory, path/to/file.py:factory or an .onnx file; "
    "the built-in architectures are {}."
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network and how it came to be.

    Attributes:
        network: The typed graph.
        name: Short name for reports.
        notes: What the user should know, in sentences: seeded weights, entries that were unwrapped.
        weights_hash: SHA-256 of the weight or model file; None where the weights are no file's.
        content_hash: ``network.content_hash()``.
    """

    network: Network
    name: str
    notes: tuple[str, ...]
    weights_hash: str | None
    content_hash: str


def load_network(
    spec: str, input_shape: tuple[int, ...] | None, *, weights: Path | None = None, trust_model: bool = False
) -> Loaded:
    """Load a model and its weights as a typed graph.

    Args:
        spec: A built-in architecture's name, ``module:factory``, ``path/to/file.py:factory``, an
            ``.onnx`` file, or (trusted only) a ``.pt2``, TorchScript or pickled module. The factory is a
            torch module or a callable without arguments that returns one; its Python code is run.
        input_shape: Shape of one input without the batch dimension; None takes the architecture's or the
            ONNX graph's own.
        weights: Checkpoint for a built-in architecture or a factory's module.
        trust_model: Open files that run code.

    Raises:
        ModelNotFoundError: Nothing of that name; similar names are suggested.
        UntrustedModelError: The file would run code.
        CheckpointError: The weights cannot be read or do not fit.
        InputShapeError: No shape, or one that does not fit.
        ModelError: And its other kinds, from the factory's code or from the import.
    """
    if input_shape is not None and (not input_shape or min(input_shape) < 1):
        raise InputShapeError(",".join(map(str, input_shape)) or "()", "every size must be a positive whole number")
    if spec in ARCHITECTURES:
        return _built_in(ARCHITECTURES[spec], input_shape, weights, trust=trust_model)
    path = Path(spec)
    if path.suffix.lower() in FILE_SUFFIXES or path.is_file():
        if not path.exists():
            raise ModelNotFoundError(spec, "there is no such file", hint="Check the path.")
        return _from_file(path, input_shape, weights, trust=trust_model)
    if ":" in spec:
        return _from_factory(spec, input_shape, weights, trust=trust_model)
    raise unknown_model(spec)


def unknown_model(spec: str) -> ModelNotFoundError:
    """The error that tells which forms a model's name has, and which architectures have similar names."""
    near = difflib.get_close_matches(spec.lower(), ARCHITECTURES, n=3, cutoff=0.6)
    forms = _FORMS.format(", ".join(ARCHITECTURES))
    hint = f"Did you mean {' or '.join(near)}? {forms}" if near else forms
    return ModelNotFoundError(spec, "this is neither a built-in architecture nor a file nor module:factory", hint=hint)


def _built_in(
    architecture: Architecture, input_shape: tuple[int, ...] | None, weights: Path | None, *, trust: bool
) -> Loaded:
    import torch

    from lipray.model import checkpoint as files
    from lipray.model.architectures.initial import SEED, initialised, skeleton

    shape = architecture.input_shape if input_shape is None else input_shape
    _check_shape(architecture, shape)
    if weights is None:
        module = initialised(architecture)
        drawn = f"No weights were given: {architecture.name} has random initial weights (seed {SEED})"
        notes: tuple[str, ...] = (f"{drawn}, so the result says nothing about a trained network.",)
        digest = None
    else:
        checkpoint = files.read_checkpoint(weights, trust=trust)
        shapes = files.bare_shapes(checkpoint)
        module = skeleton(architecture, **architecture.arguments_for(shapes))
        tensors, notes = files.fit(checkpoint, module.state_dict(), architecture.name)
        counters = {
            key: torch.zeros((), dtype=torch.int64) for key in module.state_dict() if key.endswith(files.COUNTER)
        }
        module.load_state_dict({**tensors, **counters}, assign=True)
        digest = checkpoint.digest
    return _import(module.eval(), shape, architecture.name, notes, digest)


def _check_shape(architecture: Architecture, shape: tuple[int, ...]) -> None:
    import torch

    from lipray.model.architectures.initial import skeleton

    default = architecture.input_shape
    usual = ",".join(map(str, default))
    if len(shape) != len(default) or shape[0] != default[0] or (not architecture.resizable and shape != default):
        sizes = f"{default[0]} channels, a height and a width" if architecture.resizable else f"the shape {usual}"
        raise InputShapeError(
            ",".join(map(str, shape)), f"{architecture.name} takes inputs of {sizes}", hint=_use(usual)
        )
    try:
        with torch.device("meta"), torch.no_grad():
            skeleton(architecture).eval()(torch.empty(1, *shape))
    except RuntimeError:
        raise InputShapeError(
            ",".join(map(str, shape)), f"it is too small for {architecture.name}", hint=_use(usual)
        ) from None


def _use(shape: str) -> str:
    return f"Give --input-shape {shape}, or leave the option out."


def _from_file(path: Path, input_shape: tuple[int, ...] | None, weights: Path | None, *, trust: bool) -> Loaded:
    from lipray.model import checkpoint as files

    if weights is not None:
        raise UsageError("--weights", f"{path.name} holds its own weights", hint="Leave the option out.")
    if path.suffix.lower() == ".onnx":
        from lipray.model.onnx_import import import_onnx

        network = import_onnx(path, input_shape)
        return Loaded(network, path.stem, (), files.file_digest(path), network.content_hash())
    kind = files.file_kind(path)
    if kind is files.FileKind.UNKNOWN and path.suffix == ".py":
        raise UsageError(
            "MODEL", f"{path} is Python code and the factory's name is missing", hint=f"Write {path}:FACTORY."
        )
    if kind in (files.FileKind.EXPORTED, files.FileKind.TORCHSCRIPT):
        if not trust:
            raise UntrustedModelError(str(path), f"this is {kind.value}")
        module = _open_exported(path) if kind is files.FileKind.EXPORTED else _open_torchscript(path)
    elif kind in (files.FileKind.TORCH, files.FileKind.PICKLE):
        module = _open_pickled(path, trust=trust)
    elif kind is files.FileKind.SAFETENSORS:
        raise _only_weights(path)
    else:
        raise ModelError(str(path), f"this is {kind.value}, no model", hint=_FORMS.format(", ".join(ARCHITECTURES)))
    shape = _required(input_shape, str(path))
    return _import(module, shape, path.stem, ("The file was trusted and may have run code.",), files.file_digest(path))


def _only_weights(path: Path) -> ModelError:
    from lipray.model import checkpoint as files

    found = files.resembling(files.read_checkpoint(path))
    name = found or "ARCHITECTURE"
    like = f"; they are those of {found}" if found else ""
    return ModelError(str(path), f"it holds weights but no network{like}", hint=f"Write {name} --weights {path}.")


def _open_pickled(path: Path, *, trust: bool) -> nn.Module:
    from torch import nn

    from lipray.model.checkpoint import load_torch

    try:
        with _quiet():
            payload = load_torch(path, trust=trust)
    except UntrustedModelError as error:
        raise UntrustedModelError(
            str(path), str(error.args[1]).removeprefix("a state dict was expected and ")
        ) from None
    if not isinstance(payload, nn.Module):
        raise _only_weights(path)
    return payload.eval()


def _open_exported(path: Path) -> nn.Module:
    from lipray.model.exported import open_exported

    with _quiet():
        return open_exported(path)


def _open_torchscript(path: Path) -> nn.Module:
    from lipray.model.checkpoint import load_torchscript

    with _quiet():
        load_torchscript(path)
    raise ModelError(
        str(path),
        "the operations of a TorchScript archive cannot be traced",
        hint="Export the module with torch.onnx.export or torch.export.save, or name its factory and --weights.",
    )


def _from_factory(spec: str, input_shape: tuple[int, ...] | None, weights: Path | None, *, trust: bool) -> Loaded:
    import torch

    from lipray.model import checkpoint as files

    shape = _required(input_shape, spec)
    module = load_module(spec)
    attribute = spec.rsplit(":", 1)[1]
    notes: tuple[str, ...] = ()
    digest = None
    if weights is None:
        notes = (f"No weights were given: the weights are those that {attribute} set.",)
    else:
        checkpoint = files.read_checkpoint(weights, trust=trust)
        tensors, notes = files.fit(checkpoint, module.state_dict(), spec)
        everything = (*tensors.values(), *module.parameters(), *module.buffers())
        double = any(value.dtype == torch.float64 for value in everything)
        module = module.to(torch.float64 if double else torch.float32)  # so that no weight is rounded
        module.load_state_dict(tensors, strict=False)  # only step counters can be missing after fit
        digest = checkpoint.digest
    return _import(module.eval(), shape, attribute, notes, digest)


def load_module(spec: str) -> nn.Module:
    """The torch module of ``module:factory`` or ``file.py:factory``, in eval mode; its Python code is run.

    Raises:
        ModelNotFoundError: nothing of that name.
        UsageError: no factory is named.
        ModelError: the factory's code fails, or gives no module.
    """
    if ":" not in spec:
        raise unknown_model(spec)
    place, attribute = spec.rsplit(":", 1)
    if not attribute.isidentifier() or not place:
        raise UsageError("MODEL", f"{spec!r} names no factory", hint=f"Write {place or 'module'}:FACTORY.")
    return _call_factory(spec, place, attribute)


def _call_factory(spec: str, place: str, attribute: str) -> nn.Module:
    import torch
    from torch import nn

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a factory that draws its weights draws the same ones every time
        with _user_code(spec, "importing it"):
            container = _import_file(Path(place)) if place.endswith(".py") else _import_dotted(spec, place)
        if not hasattr(container, attribute):
            names = [name for name, value in vars(container).items() if callable(value) and not name.startswith("_")]
            near = difflib.get_close_matches(attribute, names, n=3)
            raise ModelNotFoundError(
                spec,
                f"{place} has no {attribute!r}",
                hint=f"Did you mean {' or '.join(near)}?" if near else "Name a function that returns the module.",
            )
        made = getattr(container, attribute)
        if isinstance(made, type) or (callable(made) and not isinstance(made, nn.Module)):
            with _user_code(spec, "calling it without arguments"):
                made = made()
        if not isinstance(made, nn.Module):
            raise ModelError(
                spec, f"it gave a {type(made).__name__}, no torch.nn.Module", hint="Return the module from the factory."
            )
        with _user_code(spec, "copying the module"):
            copied: nn.Module = copy.deepcopy(made).eval()
        return copied


def _import_dotted(spec: str, name: str) -> object:
    with _search_path(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that the user's own module misses is the user's error; report that one as it is.
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                hint = "Check the name, or run lipray where Python finds the module."
                raise ModelNotFoundError(spec, f"there is no module {error.name!r}", hint=hint) from None
            raise


def _import_file(path: Path) -> object:
    if not path.is_file():
        raise ModelNotFoundError(str(path), "there is no such file", hint="Check the path.")
    resolved = path.resolve()
    name = f"lipray_user_{hashlib.sha256(str(resolved).encode()).hexdigest()[:16]}"
    specification = importlib.util.spec_from_file_location(name, resolved)
    if specification is None or specification.loader is None:
        raise ModelNotFoundError(str(path), "Python cannot load this file", hint="Name a .py file.")
    module = importlib.util.module_from_spec(specification)
    with _search_path(resolved.parent):
        sys.modules[name] = module  # dataclasses and pickling inside the file look themselves up here
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


@contextlib.contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    """As when Python runs a script there: the user's file may import its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output carries the result alone; what user code prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _user_code(spec: str, doing: str) -> Iterator[None]:
    """Turn whatever user code raises into one error with the original's type and message."""
    try:
        yield
    except LiprayError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        raise ModelError(
            spec, f"{doing} raised {_told(error)}", hint="This error comes from the model's own code."
        ) from None


def _told(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _required(input_shape: tuple[int, ...] | None, spec: str) -> tuple[int, ...]:
    if input_shape is None:
        raise InputShapeError("none", f"{spec} does not say the shape of its input")
    return input_shape


def _import(
    module: nn.Module, shape: tuple[int, ...], name: str, notes: tuple[str, ...], weights_hash: str | None
) -> Loaded:
    from lipray.model.importer import import_module

    importer: Callable[..., Network] = import_module
    with _quiet():
        network = importer(module, shape, name=name)
    return Loaded(network, name, notes, weights_hash, network.content_hash())
