"""What a problem in rounds has come to, round by round, so that another process goes on where one was ended.

A bundle is a value, and so is its result: results are kept under the SHA-256 of their bundle, and a
later process that comes to the same bundle takes the result instead of doing the work. The state of a descent is kept
before its iterations, and with it the results that led there are dropped, so that a journal stays small.

Results and states of a journal steer; they prove nothing. Whoever recalls results of a proof has to prove what comes
of them again, see ``lipray.run.rounds``.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lipray.errors import StoreError
from lipray.run.store.files import Backend, reason
from lipray.verify.identity import ById

if TYPE_CHECKING:
    from lipray.certify.bundles import AnyBundle, AnyResult

BASE = "base"
THRIFT = 10.0
"""A state is kept when so many times the seconds have passed that keeping the last one took."""
LONG = 1.0
"""Seconds from which on a bundle's result is kept as it comes; others are kept when their round is done."""


class Journal:
    """The journal of one problem, in a folder of a store. One that cannot be kept is a fault to be told of, no more."""

    def __init__(self, files: Backend, tell: Callable[[StoreError], None]) -> None:
        self._files, self._tell, self._place = files, tell, BASE
        self._next = 0.0
        self._known = {f"{folder}/{name}" for folder in self._names("") for name in self._names(folder)}

    def recall(self, bundles: Sequence[AnyBundle]) -> list[AnyResult | None]:
        """What is known of a round's results, in order."""
        if not self._known:
            return [None] * len(bundles)
        keys = [bundle_key(bundle) for bundle in bundles]
        whole = self._results(_round_key(keys), len(keys))
        if whole is not None:
            return list(whole)
        return [None if (one := self._results(key, 1)) is None else one[0] for key in keys]

    def keep_one(self, bundle: AnyBundle, result: AnyResult) -> None:
        """Keep the result of one bundle of a round under way."""
        self._write(bundle_key(bundle), [result])

    def keep_round(self, bundles: Sequence[AnyBundle], results: Sequence[AnyResult]) -> None:
        """Keep the results of a whole round; those that are only added up are kept as their sum."""
        self._write(_round_key([bundle_key(bundle) for bundle in bundles]), _combined(bundles, results))

    def load(self, name: str) -> Mapping[str, np.ndarray] | None:
        """What was kept last under a name; ``None`` if nothing was, or it is damaged."""
        found = self._read(f"{name}/state")
        if found is None:
            return None
        self._place = name
        head, arrays = found
        return dict(zip(head.get("names", ()), arrays, strict=False))

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a state, if that does not take too much time; the rounds that led to it are dropped."""
        start = time.monotonic()
        if start < self._next and self._place == name:
            return
        fresh = f"{name}/state"
        content = pack({"names": list(arrays)}, list(arrays.values()))
        try:
            self._files.write(fresh, content, durable=False)
            self._files.remove(f"{name}.rounds")
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            self._fault(fault)
        self._known = {known for known in self._known if not known.startswith(f"{name}.rounds/")} | {fresh}
        self._place = name
        now = time.monotonic()
        self._next = now + THRIFT * (now - start)

    def clear(self) -> None:
        """The problem is solved: nothing of this is needed any more."""
        try:
            self._files.remove("")
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            self._fault(fault)
        self._known = set()

    def _folder(self) -> str:
        return BASE if self._place == BASE else f"{self._place}.rounds"

    def _results(self, key: str, count: int) -> list[AnyResult] | None:
        for name in sorted(known for known in self._known if known.endswith(f"/{key}")):
            found = self._read(name)
            results = None if found is None else _unpacked(*found)
            if results is not None and len(results) == count:
                return results
        return None

    def _write(self, key: str, results: Sequence[AnyResult]) -> None:
        name = f"{self._folder()}/{key}"
        head, arrays = _packed(results)
        try:
            self._files.write(name, pack(head, arrays), durable=False)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            self._fault(fault)
            return
        self._known.add(name)

    def _read(self, name: str) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        if name not in self._known:
            return None
        try:
            content = self._files.read(name)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            self._fault(fault)
            return None
        return None if content is None else unpack(content)

    def _names(self, folder: str) -> list[str]:
        try:
            return self._files.names(folder)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            self._fault(fault)
            return []

    def _fault(self, fault: Exception) -> None:
        self._tell(StoreError("the journal of a problem", f"cannot be kept ({reason(fault)})"))


def bundle_key(bundle: AnyBundle) -> str:
    """SHA-256 over what a bundle's result depends on; of networks, a problem's own aside, by their tiles' content."""
    from lipray.certify.tile_step import StepBundle
    from lipray.verify.tile_bundle import TileBundle

    digest = hashlib.sha256(type(bundle).__name__.encode())
    if isinstance(bundle, StepBundle | TileBundle):
        digest.update(_content(ById(bundle.network)).encode())
    for field in fields(bundle):
        if field.name != "network":
            digest.update(f"\n{field.name} ".encode())
            _digest(digest, getattr(bundle, field.name))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _content(key: ById) -> str:
    return key.network.content_hash()


def pack(head: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> bytes:
    """A JSON head and float64 arrays as bytes that begin with their own SHA-256."""
    plain = [np.ascontiguousarray(array, dtype="<f8") for array in arrays]
    text = json.dumps({**head, "shapes": [array.shape for array in plain]}).encode()
    body = b"\n".join((text, b"".join(array.tobytes() for array in plain)))
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unpack(content: bytes) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """The inverse of ``pack``; ``None`` where the bytes are not what was packed."""
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    text, _, data = body.partition(b"\n")
    try:
        head = json.loads(text)
        shapes = [tuple(int(size) for size in shape) for shape in head["shapes"]]
        sizes = [math.prod(shape) for shape in shapes]
        if any(size < 0 for shape in shapes for size in shape) or 8 * sum(sizes) != len(data):
            return None
        flat = np.frombuffer(data, dtype="<f8").astype(np.float64)
        parts = np.split(flat, np.cumsum(sizes)[:-1]) if sizes else []
        return head, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _digest(digest: Any, value: object) -> None:
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, tuple):
        digest.update(f"({len(value)}".encode())
        for item in value:
            _digest(digest, item)
    else:
        digest.update(repr(value).encode())


def _round_key(keys: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()


def _combined(bundles: Sequence[AnyBundle], results: Sequence[AnyResult]) -> list[AnyResult]:
    """A round whose results are only added up as their sum, and nothing from all bundles but the first."""
    from lipray.certify.frequency.bundle import GradientResult
    from lipray.verify.torus.bundle import Bundle, BundleResult

    count = len(results)
    if not all(result.feasible for result in results) or count < 2:
        return list(results)
    gradients = [result for result in results if isinstance(result, GradientResult)]
    if len(gradients) == count:
        slopes = [result.gradient for result in gradients if result.gradient is not None]
        total = sum(result.total for result in gradients)
        first = GradientResult(True, max(result.top for result in gradients), total, _total(slopes))
        return [first, *[GradientResult(True, 0.0, 0.0, None)] * (count - 1)]
    shares = [result for result in results if isinstance(result, BundleResult)]
    grams = [result.gram for result in shares if result.gram is not None]
    proof = any(isinstance(bundle, Bundle) and bundle.proof for bundle in bundles)
    if proof or len(shares) < count or len(grams) < count:
        return list(results)
    return [BundleResult(True, _total(grams)), *[BundleResult(True)] * (count - 1)]


def _total(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in order, which adding zeros does not change."""
    total = np.array(arrays[0], dtype=np.float64)
    for array in arrays[1:]:
        total += array
    return total


def _packed(results: Sequence[AnyResult]) -> tuple[dict[str, Any], list[np.ndarray]]:
    arrays: list[np.ndarray] = []
    kinds = []
    for result in results:
        values: dict[str, Any] = {}
        for field in fields(result):
            value = getattr(result, field.name)
            if isinstance(value, np.ndarray):
                values[field.name] = {"array": len(arrays)}
                arrays.append(value)
            else:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        kinds.append({"kind": type(result).__name__, "values": values})
    return {"results": kinds}, arrays


def _unpacked(head: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> list[AnyResult] | None:
    from lipray.certify.frequency.bundle import GradientResult
    from lipray.certify.tile_step import StepResult
    from lipray.verify.tile_bundle import TileResult
    from lipray.verify.torus.bundle import BundleResult

    kinds: tuple[Callable[..., AnyResult], ...] = (BundleResult, GradientResult, StepResult, TileResult)
    types = {kind.__name__: kind for kind in kinds}
    results: list[AnyResult] = []
    try:
        for item in head["results"]:
            values = {
                name: arrays[value["array"]] if isinstance(value, dict) else _plain(value)
                for name, value in item["values"].items()
            }
            results.append(types[item["kind"]](**values))
    except (KeyError, TypeError, IndexError, AttributeError):
        return None
    return _spread_out(results)


def _plain(value: object) -> object:
    if isinstance(value, list):
        return tuple(float(part) for part in value)
    if value is not None and not isinstance(value, bool | int | float):
        raise TypeError
    return value


def _spread_out(results: list[AnyResult]) -> list[AnyResult]:
    """Zeros where a sum stands for all."""
    from lipray.certify.frequency.bundle import GradientResult
    from lipray.verify.torus.bundle import BundleResult

    first = results[0] if results else None
    if isinstance(first, GradientResult) and first.gradient is not None:
        zeros = np.zeros_like(first.gradient)
        return [
            replace(item, gradient=zeros) if isinstance(item, GradientResult) and item.gradient is None else item
            for item in results
        ]
    if isinstance(first, BundleResult) and first.gram is not None:
        zeros = np.zeros_like(first.gram)
        return [
            replace(item, gram=zeros) if isinstance(item, BundleResult) and item.gram is None else item
            for item in results
        ]
    return results
