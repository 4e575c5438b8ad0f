"""Options the commands share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lipray.config import EstimateConfig
    from lipray.model.load import Loaded

Command = Callable[..., Any]

_PATH = click.Path(path_type=Path)

_MODEL = (
    click.argument("model", metavar="MODEL"),
    click.option("--input-shape", metavar="C,H,W", help="Shape of one input, without the batch dimension."),
    click.option("--weights", type=_PATH, help="Weights: .safetensors, or a .pt state dict."),
    click.option(
        "--trust-model",
        is_flag=True,
        help="Open files that can run code (.pt2, TorchScript, pickled modules). Only for files you wrote.",
    ),
)

_WORK = (
    click.option(
        "--method",
        metavar="NAME",
        help="auto (default: chosen per block), ellipsoid, hybrid or frequency (on tori), sdp (the reference, slow), "
        "or product (instant).",
    ),
    click.option("--partition-factor", type=int, metavar="P", help="Tiles per axis of a block's output map."),
    click.option("--block-depth", type=int, metavar="D", help="Activation layers per block."),
    click.option(
        "--chain/--no-chain",
        default=None,
        help="On tori: hand shape matrices from block to block (tighter), or solve the blocks of --block-depth apart.",
    ),
    click.option(
        "--switch", metavar="LAYER", help="Leave the torus after this layer, one multiplier per neuron on; or none."
    ),
    click.option("--composition", metavar="NAME", help="Of tiles: metric (default), diagonal, overlap or sum."),
    click.option("--iterations", type=int, metavar="N", help="Optimiser iterations; 0 is the closed form."),
    click.option("--tolerance", type=float, metavar="REL", help="Relative gap at which the optimiser stops."),
    click.option(
        "--budget",
        metavar="TIME",
        help="Wall-clock time of the whole estimate, such as 90s, 10m or 8h; a bound at its end.",
    ),
    click.option("--time-limit", metavar="TIME", help="Per sub-problem; the best so far is used."),
    click.option("--memory", metavar="SIZE", help="Memory one sub-problem may use, such as 8GiB (default)."),
    click.option("--output-rows", metavar="I,J", help="Bound these output rows only."),
    click.option(
        "--pairs", multiple=True, metavar="I,J", help="Bound the difference of two output rows. May be repeated."
    ),
    click.option("--config", type=_PATH, metavar="FILE.yaml", help="Options from a file; flags win over it."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)

_RUN = (
    click.option("--device", metavar="NAME", help="cpu (default) or cuda: where frequencies are worked on."),
    click.option("--executor", metavar="NAME", help="ray (default) or serial, in this process."),
    click.option("--address", metavar="ADDRESS", help="Ray cluster: auto, or HOST:PORT. Default: an embedded Ray."),
    click.option("--workers", "--num-cpus", "workers", type=int, metavar="N", help="CPUs of the embedded Ray."),
    click.option("--threads", type=int, metavar="N", help="Threads of one sub-problem (Ray: 1, serial: all)."),
    click.option("--elastic", is_flag=True, default=None, help="Nodes may still join: wait for one large enough."),
    click.option("--stuck-after", metavar="TIME", help="Do a task on Ray anew after this time without a word from it."),
    click.option("--lower-starts", type=int, metavar="N", help="Starts of the lower bound's search; 0 for none."),
    click.option("--data", type=_PATH, metavar="FILE.npy", help="Points (N, C, H, W) to start that search from."),
    click.option("--seed", type=int, metavar="N", help="Of the lower bound's random starts (default 0)."),
    click.option("--out", type=_PATH, metavar="DIR", help="Run folder, new or empty. Default: runs/<time>-<name>."),
    click.option(
        "--store",
        metavar="PLACE",
        help="Where runs and solved sub-problems are kept, and found again: a path or URL. Default: runs.",
    ),
    click.option("--no-store", is_flag=True, help="Neither keep solved sub-problems nor look for them."),
    click.option("--run-id", metavar="NAME", help="Name of the run in the store; one that is there is gone on with."),
    click.option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
)


_VALUES = (
    click.option("--method", metavar="NAME,…", help="Methods, such as sdp,ellipsoid,frequency; see estimate."),
    click.option(
        "--partition-factor", metavar="P,…", help="Tiles per axis, such as 1,2,4; auto: the planner's choice."
    ),
    click.option("--block-depth", metavar="D,…", help="Activation layers per block, such as 2,4,all."),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="OPTION=V,…",
        help="Values of any other option, such as iterations=0,50. Values with commas are separated by ;. Repeatable.",
    ),
)


_VERIFY = (
    click.argument("model", metavar="MODEL"),
    click.option("--weights", type=_PATH, help="Weights: .safetensors, or a .pt state dict."),
    _MODEL[3],
    click.option("--memory", metavar="SIZE", help="Memory one sub-problem may use, such as 8GiB (default)."),
    click.option("--executor", metavar="NAME", help="serial (default), in this process, or ray."),
    click.option("--address", metavar="ADDRESS", help="Ray cluster: auto, or HOST:PORT. Default: an embedded Ray."),
    click.option("--workers", "--num-cpus", "workers", type=int, metavar="N", help="CPUs of the embedded Ray."),
    click.option("--threads", type=int, metavar="N", help="Threads of one sub-problem (Ray: 1, serial: all)."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


_PLACE = (
    click.option("--executor", metavar="NAME", help="ray or serial, in this process. Default: as before."),
    click.option("--address", metavar="ADDRESS", help="Ray cluster: auto, or HOST:PORT. Default: as before."),
    click.option("--workers", "--num-cpus", "workers", type=int, metavar="N", help="CPUs of the embedded Ray."),
    click.option("--threads", type=int, metavar="N", help="Threads of one sub-problem."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


_CERTIFY = (
    click.option(
        "--data",
        required=True,
        metavar="SPEC",
        help="Labelled examples: digits, FILE.npz (x, y), cifar10:PATH, cifar100:PATH or tiny-imagenet:PATH.",
    ),
    click.option("--split", default="test", metavar="NAME", help="Of data that have several: test (default) or train."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N examples."),
    click.option(
        "--radius",
        multiple=True,
        metavar="R",
        help="Report accuracies at this l2 radius, such as 36/255, in the units of the data. May be repeated.",
    ),
    click.option("--mean", metavar="M,…", help="The network expects (x - mean) / std: per channel, or one for all."),
    click.option("--std", metavar="S,…", help="The same; the network's constant grows by 1 / std."),
    click.option(
        "--each-pair",
        is_flag=True,
        help="Estimate every pair of classes on its own: the largest radii, and K (K - 1) / 2 estimates.",
    ),
    click.option("--attack/--no-attack", default=True, help="Try to break every radius (default)."),
    click.option("--restarts", type=int, default=5, metavar="N", help="Of the attack (default 5)."),
    click.option("--steps", type=int, default=100, metavar="N", help="Of every restart (default 100)."),
    click.option("--attack-device", metavar="NAME", help="cpu or cuda: where the attack searches (default: --device)."),
    click.option("--clip", metavar="LOW,HIGH", help="Keep attacked inputs in this interval, such as 0,1."),
    click.option("--out", type=_PATH, metavar="DIR", help="Folder, new or empty. Default: runs/<time>-<name>-radii."),
    click.option("--executor", metavar="NAME", help="Of the estimates: serial (default), in this process, or ray."),
    click.option("--seed", type=int, metavar="N", help="Of the random starts of the attack and of the lower bound."),
)
_NOT_OF_CERTIFY = frozenset({"output_rows", "pairs", "data", "run_id", "out", "executor", "seed"})


def plan_options(command: Command) -> Command:
    """Options of ``lipray plan``: the model, and how the work is cut."""
    return _apply(command, (*_MODEL, *_WORK))


def estimate_options(command: Command) -> Command:
    """Options of ``lipray estimate``: those of ``plan``, and how the work is run."""
    return _apply(command, (*_MODEL, *_WORK, *_RUN))


def sweep_options(command: Command) -> Command:
    """Options of ``lipray sweep``: those of ``estimate``, some of which take several values."""
    command = _apply(command, (*_MODEL, *_WORK, *_RUN))
    several = {"method", "partition_factor", "block_depth"}
    kept = [option for option in command.__click_params__ if option.name not in several]  # type: ignore[attr-defined]
    command.__click_params__ = kept  # type: ignore[attr-defined]
    return _apply(command, _VALUES)


def verify_options(command: Command) -> Command:
    """Options of ``lipray verify``: the model, and where the work is done."""
    return _apply(command, _VERIFY)


def certify_options(command: Command) -> Command:
    """Options of ``lipray certify``: those of ``estimate`` for the bounds, and what to certify."""
    command = _apply(command, (*_MODEL, *_WORK, *_RUN))
    params = command.__click_params__  # type: ignore[attr-defined]
    command.__click_params__ = [  # type: ignore[attr-defined]
        option for option in params if option.name not in _NOT_OF_CERTIFY
    ]
    return _apply(command, _CERTIFY)


def resume_options(command: Command) -> Command:
    """Options of ``lipray resume``: where the work is done, and how it is shown."""
    return _apply(command, _PLACE)


def _apply(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def configure(flags: dict[str, Any], file: Path | None) -> EstimateConfig:
    """The configuration from the flags that were given and the file.

    Raises:
        UsageError: a flag is wrong, or two exclude each other.
        ConfigError: the file is wrong.
    """
    from lipray.config import make_config

    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    return make_config(given, file)


def load(model: str, config: EstimateConfig, *, trust: bool) -> Loaded:
    """Load the model named on the command line.

    Raises:
        ModelError: it cannot be read; see ``lipray.model.load``.
    """
    from lipray.model.load import load_network

    return load_network(model, config.input_shape, weights=config.weights, trust_model=trust)
