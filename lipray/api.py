"""The Python interface: the same estimate as the command, on a module, a network, or a model's name."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipray.compose.bound import Bound
from lipray.config import EstimateConfig, make_config, read_config
from lipray.errors import InputShapeError, UsageError
from lipray.model.network import Network
from lipray.partition.plan import Plan
from lipray.run.driver import make_plan
from lipray.run.events import Listener, ignore
from lipray.run.session import run_estimate, select_outputs

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from lipray.data.labelled import Labelled
    from lipray.robust.attack import AttackOptions
    from lipray.robust.certify import Robustness
    from lipray.run.record.records import VerdictRecord


def estimate(
    model: nn.Module | Network | str,
    input_shape: Sequence[int] | None = None,
    *,
    config: str | Path | None = None,
    notify: Listener = ignore,
    **options: Any,
) -> Bound:
    """Bound a network's l2 Lipschitz constant from above (certified) and below (attained).

    Args:
        model: a torch module in eval mode, an imported ``Network``, or what the command takes as MODEL.
        input_shape: shape of one input without the batch dimension; not needed for a ``Network``.
        config: a YAML file of options.
        notify: called with every event of the run, see ``lipray.run.events``.
        options: fields of ``lipray.config.EstimateConfig``: ``method``, ``partition_factor``, ``iterations`` ...
            ``executor`` is ``"serial"`` unless given. A run folder is written if ``out`` is given.

    Returns:
        The bracket, with ``.upper``, ``.lower``, ``.gap``, ``.blocks`` and ``.certificate``.

    Raises:
        LiprayError: the model, an option, or the cluster is not usable; see ``lipray.errors``.
    """
    chosen = _configure(options, input_shape, config)
    network, name, notes = _network(model, chosen)
    write = chosen.out is not None
    return run_estimate(network, name, chosen, notes=notes, write=write, notify=notify).bound


def plan(
    model: nn.Module | Network | str,
    input_shape: Sequence[int] | None = None,
    *,
    config: str | Path | None = None,
    **options: Any,
) -> Plan:
    """The blocks and tiles that ``estimate`` with the same arguments would solve.

    Raises:
        LiprayError: the model or an option is not usable, or the network cannot be cut as asked.
    """
    chosen = _configure(options, input_shape, config)
    network, _, _ = _network(model, chosen)
    return make_plan(select_outputs(network, chosen), chosen)


def verify_run(
    certificate: str | Path,
    model: nn.Module | Network | str,
    *,
    weights: str | Path | None = None,
    trust_model: bool = False,
    **options: Any,
) -> VerdictRecord:
    """Recompute the bound of a certificate from its multipliers and the model's weights.

    Args:
        certificate: a run folder, or its ``certificate.json``.
        model: the model as it was given to ``estimate``.
        weights: its weights, where ``model`` is a name.
        trust_model: open files that can run code.
        options: ``executor``, ``address``, ``workers``, ``threads`` and ``memory`` of ``EstimateConfig``.

    Returns:
        What was verified: ``bound`` of the network and of every part. A verdict is only returned where all holds.

    Raises:
        CertificateError: the files cannot be read.
        VerificationError: the certificate does not prove what it claims of this model; it names the part.
        LiprayError: the model, an option, or the cluster is not usable.
    """
    from lipray.run.start import start_executor
    from lipray.run.verification import fetch, select, verify_certificate

    record, arrays = fetch(str(certificate))
    shape = tuple(record.model.input_shape)
    chosen = _configure({**options, "weights": weights}, shape, None)
    if isinstance(model, str):
        from lipray.model.load import load_network

        network = load_network(model, shape, weights=chosen.weights, trust_model=trust_model).network
    elif isinstance(model, Network):
        network = model
    else:
        network, _, _ = _network(model, chosen)
    executor = start_executor(chosen)
    try:
        return verify_certificate(record, arrays, select(network, record.selection), executor, memory=chosen.memory)
    finally:
        executor.close()


def certify_radii(
    model: nn.Module | Network | str,
    data: Labelled | str | tuple[np.ndarray, np.ndarray],
    *,
    radii: Sequence[str | float | Fraction] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    attack: bool | AttackOptions = True,
    each_pair: bool = False,
    split: str = "test",
    config: str | Path | None = None,
    notify: Listener = ignore,
    **options: Any,
) -> Robustness:
    """Certify the class that a network gives each example: no perturbation within its l2 radius changes it.

    Args:
        model: a torch module in eval mode that returns logits, an imported ``Network``, or what the command takes.
        data: examples in the units of the radii, with labels: ``(x, y)``, or what the command takes as ``--data``.
        radii: to report accuracies at, such as ``"36/255"``; a float is taken exactly.
        mean: where the model expects (x - mean) / std: per channel, or one number for all.
        std: the same.
        attack: try to break every radius, with ``lipray.robust.attack.AttackOptions`` or the defaults.
        each_pair: estimate every pair of classes on its own: tightest, and K (K - 1) / 2 estimates.
        split: of data that have several.
        config: a YAML file of options of the estimates.
        notify: called with every event of the estimates.
        options: of the estimates, as for ``estimate``. Files are written if ``out`` is given.

    Returns:
        ``.radii`` and ``.predictions`` of the examples, ``.clean``, ``.at`` with the accuracies at each radius.

    Raises:
        BrokenSampleError: the attack found another class within a certified radius: a defect of lipray.
        LiprayError: the model, the data, or an option is not usable; see ``lipray.errors``.
    """
    from lipray.robust.attack import AttackOptions
    from lipray.robust.radius import parse_radius
    from lipray.robust.session import run_certify

    examples = _examples(data, split)
    chosen = _configure(options, None if isinstance(model, Network) else examples.shape, config)
    network, name, notes = _network(model, chosen)
    tried = AttackOptions(seed=chosen.seed, device=chosen.device) if attack is True else attack or None
    return run_certify(
        network,
        name,
        examples,
        chosen,
        radii=[parse_radius(radius, "radii") for radius in radii],
        attacked=tried,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        each_pair=each_pair,
        notes=notes,
        write=chosen.out is not None,
        notify=notify,
    ).result


def _examples(data: Labelled | str | tuple[np.ndarray, np.ndarray], split: str) -> Labelled:
    if isinstance(data, str):
        from lipray.data.read import read_data

        return read_data(data, split)
    if isinstance(data, tuple):
        from lipray.data.labelled import labelled

        return labelled(data[0], data[1], "data")
    return data


def _configure(options: dict[str, Any], input_shape: Sequence[int] | None, config: str | Path | None) -> EstimateConfig:
    given = {name: value for name, value in options.items() if value is not None}
    if input_shape is not None:
        given["input_shape"] = tuple(input_shape)
    file = None if config is None else Path(config)
    written = {} if file is None else read_config(file)
    if not {"executor", "address"} & (set(given) | set(written)):
        given["executor"] = "serial"
    return make_config(given, file, keywords=True)


def _network(model: nn.Module | Network | str, config: EstimateConfig) -> tuple[Network, str, tuple[str, ...]]:
    shape = config.input_shape
    if isinstance(model, Network):
        if shape is not None and tuple(shape) != model.input_shape:
            raise InputShapeError(shape, f"the network takes {model.input_shape}")
        return model, "network", ()
    if isinstance(model, str):
        from lipray.model.load import load_network

        loaded = load_network(model, shape, weights=config.weights)
        return loaded.network, loaded.name, tuple(loaded.notes)
    if shape is None:
        raise UsageError("input_shape", "is missing", hint="Give the shape of one input, such as (3, 32, 32).")
    from lipray.model.importer import import_module

    name = type(model).__name__
    return import_module(model, shape, name=name), name, ()
