"""What a job is asked to do: its identity, by content, and the command that does it on the cluster."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from lipray import __version__
from lipray.config import EstimateConfig
from lipray.jobs.freight import Freight

PREFIX = "lipray"
DIGITS = 16

ELSEWHERE = frozenset({"executor", "address", "workers", "out", "store", "run_id"})
"""Options that say where an estimate runs and where it is kept; a job decides them itself."""

CONDUCT = frozenset({"elastic", "stuck_after"})
"""Options that the driver is given, and that change nothing about its result."""

_FILES = frozenset({"weights", "data"})
"""Options whose files are identified by their content."""


@dataclass(frozen=True, slots=True)
class Request:
    """An estimate to run on a cluster.

    ``run`` is the run's id, and the submission id of its first attempt: the same for the same content and name.
    """

    run: str
    name: str
    config_hash: str
    words: tuple[str, ...]

    def submission(self, attempt: int) -> str:
        """The submission id of an attempt; the first is number 1."""
        return submission_id(self.run, attempt)

    @property
    def entrypoint(self) -> str:
        """The shell command of the job; ``python`` is the head's, and takes the place of the shell."""
        return f"exec python -m lipray {shlex.join(self.words)}"


def submission_id(run: str, attempt: int) -> str:
    """The submission id of an attempt of a run."""
    return run if attempt == 1 else f"{run}-{attempt}"


def make_request(
    freight: Freight, config: EstimateConfig, *, store: str, name: str | None = None, trust_model: bool = False
) -> Request:
    """The request for an estimate of what is in ``freight``.

    Args:
        freight: the model and its files.
        config: all options; those that say where an estimate runs are left aside.
        store: where the driver keeps the run: an absolute path on the cluster, or a URL.
        name: of the run; the model's by default.
        trust_model: open files that can run code.
    """
    options = config.model_dump(mode="json", exclude=set(ELSEWHERE | CONDUCT | _FILES))
    config_hash = _hash(options)
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name or freight.name).strip("-.")[:40] or "model"
    identity = {"version": __version__, "model": freight.content, "config": options}
    run = f"{PREFIX}-{plain}-{_hash(identity)[:DIGITS]}"
    words = ["estimate", freight.model, *option_words(config)]
    for option, place in (("--weights", freight.weights), ("--data", freight.data)):
        if place is not None:
            words.append(f"{option}={place}")
    if trust_model:
        words.append("--trust-model")
    words += ["--address=auto", f"--store={store}", f"--run-id={run}"]
    return Request(run, freight.name, config_hash, tuple(words))


def option_words(config: EstimateConfig) -> list[str]:
    """The flags of ``lipray estimate`` that give the options of ``config``, its defaults and its files left out."""
    words = []
    for name, field in EstimateConfig.model_fields.items():
        value = getattr(config, name)
        if name in ELSEWHERE | _FILES or value == field.default:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "pairs":
            words += [f"--{flag}={_text(pair)}" for pair in value]
        else:
            words.append(f"--{flag}={_text(value)}")
    return words


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _hash(value: Mapping[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
