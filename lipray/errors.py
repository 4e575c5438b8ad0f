"""Errors of lipray: one tree, each with fields, a hint and an exit code.

LiprayError                         1
├── UsageError                      2   the command line or an argument is wrong
├── ConfigError                     3   a configuration file is wrong
├── ModelError                      4   the model cannot be read
│   ├── ModelNotFoundError              file, module or architecture does not exist
│   ├── CheckpointError                 weights unreadable, or do not fit the architecture
│   ├── UntrustedModelError             the file would run code when opened
│   ├── UnsupportedLayerError           a layer without a (known) global Lipschitz constant
│   ├── InputShapeError                 the input shape does not fit the network
│   ├── NonFiniteWeightsError           NaN or infinity among the weights
│   └── ImportMismatchError             the graph does not compute what the module computes
├── PlanError                       5   the work cannot be cut as asked
│   └── InfeasibleResourcesError        a sub-problem fits no node
├── SolveError                      6   a sub-problem has no certificate and no fallback
├── StoreError                      7   a run folder cannot be read or written
│   └── CertificateError                a certificate file is missing, damaged, or of another version
├── ClusterError                    8   Ray cannot be reached or failed
├── VerificationError               9   a certificate does not prove what it claims
├── DataError                       11  labelled data cannot be read, or do not fit the network
├── BrokenSampleError               12  an attack found what a certificate excludes: a defect of lipray
└── TrainingError                   13  training cannot begin, go on, or be resumed

Exit code 0 is a certified (or verified) bound, 10 a valid one with product bounds for sub-problems that failed, 130 an
interrupt. Every error survives pickling, because it may
cross a Ray process boundary: the constructor takes exactly the fields, which are ``args``.
"""

from __future__ import annotations

from typing import ClassVar


class LiprayError(Exception):
    """Base of all errors raised on purpose: ``message`` says what is wrong, ``hint`` what to do.

    The constructor takes keyword fields named in ``fields``; they are attributes of the error.
    """

    exit_code: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = ("message",)
    hint: str = ""

    def __init__(self, *values: object, hint: str | None = None) -> None:
        if len(values) != len(self.fields):
            raise TypeError(f"{type(self).__name__} takes the fields {self.fields}")
        super().__init__(*values)
        for name, value in zip(self.fields, values, strict=True):
            setattr(self, name, value)
        if hint is not None:
            self.hint = hint

    def describe(self) -> str:
        """One sentence that names the thing that is wrong."""
        return ": ".join(str(value) for value in self.args)

    def __str__(self) -> str:
        return f"{self.describe()}\n{self.hint}" if self.hint else self.describe()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.hint))


def _rebuild(kind: type[LiprayError], values: tuple[object, ...], hint: str) -> LiprayError:
    return kind(*values, hint=hint)


class UsageError(LiprayError):
    """An argument is wrong: (what, why)."""

    exit_code = 2
    fields: ClassVar[tuple[str, ...]] = ("argument", "why")


class ConfigError(LiprayError):
    """A configuration file is wrong: (file, why)."""

    exit_code = 3
    fields: ClassVar[tuple[str, ...]] = ("file", "why")


class ModelError(LiprayError):
    """The model cannot be used: (model, why)."""

    exit_code = 4
    fields: ClassVar[tuple[str, ...]] = ("model", "why")


class ModelNotFoundError(ModelError):
    """No such file, module, factory or built-in architecture: (model, why)."""


class CheckpointError(ModelError):
    """Weights that cannot be read or do not fit the architecture: (file, why)."""


class UntrustedModelError(ModelError):
    """A file format that runs code when it is opened: (file, why)."""

    hint = "Save the weights as safetensors and name the architecture, or pass --trust-model if you wrote the file."


class UnsupportedLayerError(ModelError):
    """A layer lipray cannot bound: (layer, why), the layer by its qualified name."""

    def describe(self) -> str:
        """Name the layer and the reason."""
        return f"layer {self.args[0]!r} is not supported: {self.args[1]}"


class InputShapeError(ModelError):
    """The input shape does not fit the network: (shape, why)."""

    hint = "Give the shape of one input without the batch dimension, such as --input-shape 3,32,32."


class NonFiniteWeightsError(ModelError):
    """A weight is NaN or infinite: (tensor, why)."""

    hint = "A network with such a weight has no Lipschitz constant; repair or retrain the checkpoint."


class ImportMismatchError(ModelError):
    """The imported graph and the module disagree on an input: (model, why)."""

    hint = "This is a defect of the importer, or the forward pass is not a fixed function; nothing was bounded."


class PlanError(LiprayError):
    """The network cannot be partitioned as asked: (option, why)."""

    exit_code = 5
    fields: ClassVar[tuple[str, ...]] = ("option", "why")


class InfeasibleResourcesError(PlanError):
    """A sub-problem needs more memory than any node has: (label, needed bytes, available bytes)."""

    fields: ClassVar[tuple[str, ...]] = ("label", "needed", "available")
    hint = "Raise --partition-factor, lower --block-depth, or use --method product."

    def describe(self) -> str:
        """Name the sub-problem and both figures."""
        label, needed, available = self.args
        return (
            f"sub-problem {label} needs {float(str(needed)) / 2**30:.2f} GiB of memory and the largest node "
            f"offers {float(str(available)) / 2**30:.2f} GiB"
        )


class SolveError(LiprayError):
    """A sub-problem could not be certified, not even by its fallback: (label, why)."""

    exit_code = 6
    fields: ClassVar[tuple[str, ...]] = ("label", "why")


class StoreError(LiprayError):
    """A run folder cannot be read or written: (path, why)."""

    exit_code = 7
    fields: ClassVar[tuple[str, ...]] = ("path", "why")


class CertificateError(StoreError):
    """A certificate file cannot be read: (path, why)."""

    hint = "Take the files as the run wrote them: certificate.json, and certificate.npz beside it."


class ClusterError(LiprayError):
    """Ray cannot be reached or failed: (address, why)."""

    exit_code = 8
    fields: ClassVar[tuple[str, ...]] = ("address", "why")


class VerificationError(LiprayError):
    """A certificate does not prove what it claims: (part, why)."""

    exit_code = 9
    fields: ClassVar[tuple[str, ...]] = ("part", "why")
    hint = "The certificate is no proof for this model: it was changed, belongs to another model, or is defective."


class DataError(LiprayError):
    """Labelled data cannot be read, or do not fit the network: (source, why)."""

    exit_code = 11
    fields: ClassVar[tuple[str, ...]] = ("source", "why")


class BrokenSampleError(LiprayError):
    """An attack found another class within a certified radius: (sample, why)."""

    exit_code = 12
    fields: ClassVar[tuple[str, ...]] = ("sample", "why")
    hint = "No certified figure of this run can be trusted. Please report it, with the model and the data."


class TrainingError(LiprayError):
    """Training cannot begin, go on, or be resumed: (what, why)."""

    exit_code = 13
    fields: ClassVar[tuple[str, ...]] = ("what", "why")
