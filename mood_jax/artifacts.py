"""What is kept on disk, and how: safetensors with JSON beside it, JSONL for responses. No pickle.

Every write goes to a temporary file in the same folder, is flushed to the disk, and renamed: a file with its final name
is whole. JSON is sorted and holds no time, so that the same run writes the same bytes. Of several processes the first
writes; the others come to the same lines and learn whether it could.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from mood_jax import files, probes, processes
from mood_jax.errors import UserError
from mood_jax.probes import Scaling
from mood_jax.readout import PRESETS, Readout, preset

FORMAT = 1
ROWS = 64  # projections are scaled in multiples of this many
CALIBRATION_FORMAT = 2  # 2: pole means of the responses read again
RECORD = "calibration.json"  # the entry of calibration.safetensors' metadata with the digest of that file
MAPPED: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}  # what `map_tensors` gives


def write_bytes(path: Path, data: bytes | bytearray) -> None:
    """Atomic write. On failure (a full disk) the temporary file is removed and what stood there before stays.

    What a killed process left of an earlier attempt is removed too. Raises UserError naming the file.
    """
    processes.on_first(lambda: _write_bytes(path, data))


def _write_bytes(path: Path, data: bytes | bytearray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if not _is_written_now(left):
                left.unlink(missing_ok=True)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} could not be written ({files.reason(e)}); {files.remedy(e)}") from e


def _is_written_now(temporary: Path) -> bool:
    """Is the process that its name gives another one, and alive?"""
    pid = temporary.suffixes[-2][1:]
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"no such file: {path}") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}); make it again or restore it") from e


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-ready record with a digest of itself."""
    return {**record, "digest": record_digest(record)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Has a record from a file the digest that it gives of itself?"""
    return record.get("digest") == record_digest({k: v for k, v in record.items() if k != "digest"})


def record_digest(record: Any) -> str:
    """sha256 (hex) of what is JSON-ready, whatever the order of its keys."""
    return hashlib.sha256(json_bytes(json.loads(json_bytes(record)))).hexdigest()


def _object(path: Path) -> dict[str, Any]:
    """`read_json` of a file that holds an object. Raises UserError when it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); make it again or restore it")
    return value


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What a record of the right format, but with parts missing or of other kinds, raises → UserError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        reason = f"no {e.args[0]!r}" if isinstance(e, KeyError) else str(e)
        raise UserError(f"{path} is damaged ({reason}); make it again or restore it") from e


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """safetensors, atomically."""
    contiguous = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    write_bytes(path, save(contiguous, dict(metadata or {})))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Raises UserError when the file is missing, truncated or not safetensors."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError as e:
        raise UserError(f"no such file: {path}") from e
    except SafetensorError as e:
        raise UserError(f"{path} is truncated or damaged ({e}); make it again or restore it") from e


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as read-only views of it: nothing is read before it is asked for.

    Raises UserError when the file is missing, truncated or not safetensors, or holds other dtypes than `MAPPED` names.
    """
    try:
        with safe_open(path, framework="numpy"):  # for its checks of header and length
            pass
        data = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        views = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            views[name] = data[start + begin : start + end].view(MAPPED[entry["dtype"]]).reshape(entry["shape"])
    except FileNotFoundError as e:
        raise UserError(f"no such file: {path}") from e
    except (SafetensorError, OSError, KeyError, ValueError) as e:
        raise UserError(f"{path} is truncated or damaged ({e}); make it again or restore it") from e
    return views


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(r, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for r in records]
    write_bytes(path, "".join(lines).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Raises UserError when the file is missing, or naming the line that is not JSON."""
    try:
        # Not splitlines: a response may hold U+2028 or U+0085, which JSON leaves as they are and splitlines cuts at.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as e:
        raise UserError(f"no such file: {path}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is damaged (not UTF-8 at byte {e.start}); restore the file or make it again") from e
    records = []
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            records.append(json.loads(line))
        except ValueError as e:
            raise UserError(f"{path}:{number}: not valid JSON ({e}); restore the file or make it again") from e
    return records


def check_workdir(workdir: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Raises UserError when `{name}.json` ties the folder to other settings, naming the first that differs."""
    processes.on_first(lambda: _check_workdir(workdir, name, settings))


def _check_workdir(workdir: Path, name: str, settings: Mapping[str, Any]) -> None:
    path = workdir / f"{name}.json"
    if not path.exists():
        return
    different = first_difference(_object(path), settings)
    if different is not None:
        key, there, here = different
        raise UserError(
            f"{workdir} was made with {key} = {there}, and this command has {here}; use another --workdir, or the "
            "first command's settings"
        )


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first field of two records, JSON-ready and nested, that differs: its name and both values in short."""
    a, b = _flat(there), _flat(json.loads(json_bytes(here)))
    for key in sorted({*a, *b}):
        if a.get(key) != b.get(key):
            return key, *_shortened(a.get(key), b.get(key))
    return None


def claim_workdir(workdir: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Ties a folder to one run's settings, in `{name}.json`: the same command resumes, another one is refused.

    To be called when there is something to keep, so that a command which fails at once ties no folder.
    Raises UserError as `check_workdir` does.
    """

    def claim() -> None:
        _check_workdir(workdir, name, settings)
        if not (workdir / f"{name}.json").exists():
            write_json(workdir / f"{name}.json", settings)

    processes.on_first(claim)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return flat


def _shortened(there: Any, here: Any) -> tuple[str, str]:
    """Two values that differ, as JSON in at most 80 characters; what both begin with is left out where it is long."""
    a, b = (json.dumps(v, ensure_ascii=False) for v in (there, here))
    same = next((k for k, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    skip = same - 20 if same > 40 and max(len(a), len(b)) > 80 else 0
    texts = [("…" if skip else "") + text[skip:] for text in (a, b)]
    first, second = (text if len(text) <= 80 else text[:79] + "…" for text in texts)
    return first, second


@dataclass(frozen=True)
class AxisNames:
    """An axis by its id and the names of its poles, the positive one first."""

    id: str
    positive: str
    negative: str


def _readout(record: Mapping[str, Any]) -> Readout:
    return Readout(**{**record, "sites": tuple(record["sites"]), "weights": tuple(record["weights"])})


@dataclass(frozen=True)
class Selected:
    """A readout and an estimator that were chosen among many, for `--config.readout=…/selected.json`.

    nested: the evidence of the choice, JSON-ready; identity: what it was made from, {"model": {"name", "fingerprint",
    …}, …} as in a `Calibration`.
    """

    readout: Readout
    estimator: str
    nested: dict[str, Any]
    identity: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Writes selected.json atomically."""
        write_json(Path(path), {**asdict(self), "format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> Selected:
        """Raises UserError when the file is missing, damaged, of another format, or its readout makes no sense."""
        path = Path(path)
        record = _object(path)
        if record.get("format") != FORMAT:
            raise UserError(f"{path} is not a selected readout of format {FORMAT}; make one with scripts/ablate.py")
        with _reading(path):
            readout = _readout(record["readout"])
            found = cls(readout, record["estimator"], dict(record["nested"]), dict(record["identity"]))
            if not isinstance(found.estimator, str) or not isinstance(found.identity["model"]["fingerprint"], str):
                raise ValueError("the estimator and the fingerprint must be text")
            if not 0 < len(readout.sites) == len(readout.weights):
                raise ValueError(f"{len(readout.sites)} sites, {len(readout.weights)} weights")
            if not np.isfinite(readout.weights).all() or not np.any(readout.weights):
                raise ValueError(f"weights {readout.weights}")
            if readout.span not in ("response", "article") or not isinstance(readout.normalise, bool):
                raise ValueError(f"span {readout.span!r}, normalise {readout.normalise!r}")
        return found


def selected(named: str) -> Selected | None:
    """The record in a selected.json, or None for "last4" and "article", which need none. Raises UserError otherwise."""
    if named in PRESETS:
        return None
    if not named.endswith(".json") and "/" not in named:
        raise UserError(
            f"unknown readout {named!r}; use one of {', '.join(PRESETS)}, or the path of a selected.json that "
            "scripts/ablate.py wrote"
        )
    return Selected.load(named)


def load_readout(named: str, n_layers: int) -> tuple[Readout, Selected | None]:
    """The readout "last4" or "article" of a model of `n_layers` blocks, or the one in a selected.json with its record.

    Raises UserError: an unknown name, a damaged file, or a readout of sites that this model does not have.
    """
    found = selected(named)
    if found is None:
        return preset(named, n_layers), None
    readout = found.readout
    known = ("embed", *(f"resid_post@{k}" for k in range(n_layers)), "final_norm")
    missing = [s for s in readout.sites if s not in known]
    if missing:
        raise UserError(
            f"{named} reads {missing[0]}, and this model has {n_layers} blocks; run scripts/ablate.py on it"
        )
    if readout.name in PRESETS and readout != preset(readout.name, n_layers):
        raise UserError(f"{named} calls its readout {readout.name!r}, which is another one; give it another name")
    return readout, found


@dataclass(frozen=True)
class Calibration:
    """Directions, centres, scales and their evidence, for one model and one readout.

    directions float32 [axes, D] (unit, zeros where there is none); site_rms float32 [sites]; scaling: `Scaling` of
    arrays [axes]; evidence: one JSON-ready dict an axis (see `probes.evidence`, plus `evaluation`); identity: what it
    was made from (model fingerprint, tokenizer and template hash, bank hash, protocol, versions).
    """

    axes: tuple[AxisNames, ...]
    readout: Readout
    directions: np.ndarray
    site_rms: np.ndarray
    scaling: Scaling
    evidence: tuple[dict[str, Any], ...]
    identity: dict[str, Any]

    def save(self, folder: str | Path) -> None:
        """Writes calibration.safetensors, then calibration.json, each atomically and with the other's digest."""
        folder = Path(folder)
        tensors = {"directions": self.directions, "site_rms": self.site_rms}
        tensors |= {f"scaling.{k}": np.asarray(v) for k, v in self.scaling._asdict().items()}
        contiguous = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        record = {
            "format": CALIBRATION_FORMAT,
            "axes": [asdict(a) for a in self.axes],
            "readout": asdict(self.readout),
            "evidence": list(self.evidence),
            "identity": self.identity,
        }
        data = save(contiguous, {RECORD: record_digest(record)})
        write_bytes(folder / "calibration.safetensors", data)
        write_json(folder / "calibration.json", {**record, "sha256": hashlib.sha256(data).hexdigest()})

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Raises UserError when a file is missing, damaged, of a later format, or the two do not belong together."""
        folder = Path(folder)
        if not (folder / "calibration.json").is_file():
            raise UserError(f"{folder} holds no calibration.json; make one with scripts/calibrate.py")
        record = _object(folder / "calibration.json")
        if record.get("format") != CALIBRATION_FORMAT:
            raise UserError(
                f"{folder / 'calibration.json'} has format {record.get('format')}, not {CALIBRATION_FORMAT}; "
                "calibrate again"
            )
        tensors = read_tensors(folder / "calibration.safetensors")
        digest = hashlib.sha256((folder / "calibration.safetensors").read_bytes()).hexdigest()
        with _reading(folder / "calibration.json"):
            if digest != record.pop("sha256"):
                raise UserError(
                    f"calibration.json and calibration.safetensors in {folder} are of different runs; calibrate again"
                )
            found = cls(
                axes=tuple(AxisNames(**a) for a in record["axes"]),
                readout=_readout(record["readout"]),
                directions=tensors["directions"],
                site_rms=tensors["site_rms"],
                scaling=Scaling(**{k: jnp.asarray(tensors[f"scaling.{k}"]) for k in Scaling._fields}),
                evidence=tuple(record["evidence"]),
                identity=dict(record["identity"]),
            )
            if not len(found.axes) == len(found.directions) == len(found.evidence):
                raise ValueError(f"{len(found.axes)} axes, {len(found.directions)} directions")
            with safe_open(folder / "calibration.safetensors", framework="numpy") as file:
                said = (file.metadata() or {}).get(RECORD)  # earlier versions wrote none
            if said is not None and said != record_digest(record):
                raise ValueError("it was changed after it was written")
        return found

    def scores(self, x: np.ndarray, scale: probes.Scale = "iqr") -> np.ndarray:
        """Raw projections [n, axes] on `directions` → float32 scores of the same shape in one of the four scales."""
        constants = Scaling(*(jnp.asarray(v)[None, :] for v in self.scaling))
        x = np.asarray(x, np.float32)
        padded = np.pad(x, ((0, -len(x) % ROWS), (0, 0)))  # one program, however many responses had a token
        return np.asarray(probes.score(jnp.asarray(padded), constants, scale))[: len(x)]

    @property
    def digest(self) -> str:
        """sha256 (hex) of its numbers and their readout: what scores hang on."""
        h = hashlib.sha256(json_bytes([asdict(self.readout), [asdict(a) for a in self.axes]]))
        for values in (self.directions, self.site_rms, *self.scaling):
            found = np.asarray(values)
            h.update(f"{found.dtype} {found.shape} ".encode() + found.tobytes())
        return h.hexdigest()

    @property
    def estimator(self) -> str:
        """What fitted the directions. Calibrations from before there was a choice do not say; it was the default."""
        return self.identity.get("estimator", "mean_difference")

    def index(self, axis: str) -> int:
        """The row of an axis. Raises UserError for one that this calibration does not have."""
        ids = [a.id for a in self.axes]
        if axis not in ids:
            raise UserError(f"unknown axis {axis!r}; this calibration has {', '.join(ids)}")
        return ids.index(axis)


@dataclass(frozen=True)
class AxisProfile:
    """One axis of a profile.

    `scores[scale]` float [n] for the scales iqr, article, pole and re_read (of imported axes, article alone), and `raw`
    for the projection itself; `summary[scale]` has mean, sd, ci95 and clip_rate; p and p_holm test whether the mean
    score differs from 0. `length` tells how the scores move with the number of tokens: r, ci95, and p_holm of a
    correlation up to `least` (0 where it is not named, by earlier versions); empty in the first ones.
    """

    axis: AxisNames
    scale: str
    scores: dict[str, np.ndarray]
    summary: dict[str, dict[str, Any]]
    p: float
    p_holm: float
    evidence: dict[str, Any]
    length: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return self.summary[self.scale]["mean"]

    @property
    def ci95(self) -> tuple[float, float]:
        low, high = self.summary[self.scale]["ci95"]
        return low, high


@dataclass(frozen=True)
class Profile:
    """Scores on neutral questions without a system prompt, with each axis' evidence."""

    axes: tuple[AxisProfile, ...]
    question_ids: tuple[str, ...]
    n_tokens: tuple[int, ...]
    cut_share: float
    notes: tuple[str, ...]
    identity: dict[str, Any]

    def __getitem__(self, axis: str) -> AxisProfile:
        """The profile of an axis by its id. Raises UserError for an unknown one."""
        for found in self.axes:
            if found.axis.id == axis:
                return found
        raise UserError(f"unknown axis {axis!r}; this profile has {', '.join(a.axis.id for a in self.axes)}")

    def save(self, path: str | Path) -> None:
        """Writes profile.json atomically."""
        record: dict[str, Any] = {**asdict(self), "format": FORMAT}
        for axis in record["axes"]:
            axis["scores"] = {k: [float(x) for x in v] for k, v in axis["scores"].items()}
        write_json(Path(path), record)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Raises UserError when the file is missing, damaged or of a later format."""
        record = _object(Path(path))
        if record.get("format") != FORMAT:
            raise UserError(f"{path} is not a profile of format {FORMAT}; measure again")
        axes: list[AxisProfile] = []
        with _reading(Path(path)):
            for a in record["axes"]:
                scores = {k: np.asarray(v, np.float32) for k, v in a["scores"].items()}
                axes.append(AxisProfile(**(a | {"axis": AxisNames(**a["axis"]), "scores": scores})))
            return cls(
                axes=tuple(axes),
                question_ids=tuple(record["question_ids"]),
                n_tokens=tuple(record["n_tokens"]),
                cut_share=record["cut_share"],
                notes=tuple(record["notes"]),
                identity=dict(record["identity"]),
            )
