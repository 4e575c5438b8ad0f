"""A whole certification for the command line and the Python interface: network and data in, radii and files out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

from lipray.config import EstimateConfig
from lipray.data.labelled import Labelled
from lipray.errors import BrokenSampleError, StoreError, UsageError
from lipray.model.network import Network
from lipray.robust.attack import AttackOptions
from lipray.robust.certify import Broken, Robustness, Told, certify_network
from lipray.robust.constants import Constants
from lipray.robust.record import RobustnessRecord, robustness_record
from lipray.robust.write import write_evidence, write_robustness
from lipray.run.events import Listener, ignore
from lipray.run.record.folder import choose_folder


@dataclass(frozen=True, slots=True)
class Certified:
    """Radii, their record, where they were written, if anywhere, and what could not be, in words."""

    result: Robustness
    record: RobustnessRecord
    folder: str | None
    lacking: str = ""


def run_certify(
    network: Network,
    name: str,
    data: Labelled,
    config: EstimateConfig,
    *,
    radii: Sequence[Fraction] = (),
    attacked: AttackOptions | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    each_pair: bool = False,
    notes: tuple[str, ...] = (),
    file_hash: str | None = None,
    write: bool = True,
    notify: Listener = ignore,
    told: Told | None = None,
) -> Certified:
    """Certify and, if ``write``, leave a folder, at ``config.out`` or in the store.

    Args:
        network: as it was imported.
        name: of the model, for the folder and messages.
        data: inputs in the units of the radii, with their classes.
        config: of the estimates; where to write.
        radii: to report accuracies at.
        attacked: how to attack; ``None`` does not.
        mean: of a normalisation that the network expects of its input.
        std: of the same.
        each_pair: estimate every pair of classes on its own.
        notes: remarks of the importer.
        file_hash: SHA-256 of the file of the weights.
        write: whether to leave a folder.
        notify: called with the events of the estimates.
        told: called after every batch of inputs.

    Raises:
        LiprayError: see ``certify_network``; also StoreError, before any work, if the folder cannot be written.
    """
    for option in ("output_rows", "pairs", "run_id"):
        if getattr(config, option) is not None:
            why = "is an option of estimate; radii are of all classes"
            raise UsageError("--" + option.replace("_", "-"), why, hint="Leave it out, also of the configuration file.")
    now = datetime.now(UTC)
    folder = choose_folder(config.out, config.store, f"{name}-radii", network.content_hash(), now) if write else None

    kept: list[str] = []

    def keep(broken: Broken, constants: Constants) -> None:
        if folder is None:
            return
        try:
            kept.append(f"Both inputs are in {write_evidence(folder, broken, constants)}.")
        except StoreError as fault:
            kept.append(f"Both inputs are lost: {fault.describe()}.")

    try:
        result = certify_network(
            network,
            data,
            config,
            name=name,
            radii=radii,
            attacked=attacked,
            mean=mean,
            std=std,
            each_pair=each_pair,
            notify=notify,
            told=told,
            evidence=keep,
        )
    except BrokenSampleError as fault:
        raise BrokenSampleError(*fault.args, hint=" ".join([fault.hint, *kept])) from None
    options = config.model_dump(mode="json")
    record = robustness_record(
        result, data, name, mean=mean, std=std, options=options, notes=notes, file_hash=file_hash
    )
    lacking = "" if folder is None else write_robustness(folder, result, record)
    return Certified(result, record, None if folder is None else folder.place, lacking)
