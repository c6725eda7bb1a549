"""TensorBoard logs written with the `tensorboard` package alone: scalars, histograms, images, text, the projector.

n values or points, d coordinates of a point, H and W the height and width of an image.
"""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from google.protobuf import text_format
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.histogram_pb2 import HistogramProto  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME
from tensorboard.plugins.projector.projector_config_pb2 import (
    ProjectorConfig,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

_BINS = 30
_SUFFIX = ".mood_jax"  # marks our event files, so that a re-run replaces them and nobody else's
_OURS = f"events.out.tfevents.*{_SUFFIX}"
_UNFINISHED = f".events{_SUFFIX}.tmp"  # TensorBoard reads only names with "tfevents"
_PROJECTOR = "projector"


class Writer:
    """Writes one run's log into a folder, as a context manager; the log appears when the block ends without an error.

    A log that an earlier writer left in the folder is replaced then, since TensorBoard would draw every curve twice.
    Values go to the file as they come, rather than through `EventFileWriter`'s thread: a full disk is an OSError of the
    call that met it, where the thread would print a traceback and let `close` succeed.
    """

    def __init__(self, logdir: Path):
        """Creates `logdir` where it is missing. OSError where that cannot be."""
        self._logdir = Path(logdir)
        self._logdir.mkdir(parents=True, exist_ok=True)
        self._file = open(self._logdir / _UNFINISHED, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._assets: dict[str, str] = {}  # name in the projector's folder → text
        self._config = ProjectorConfig()
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def scalar(self, tag: str, value: float, step: int = 0) -> None:
        """Adds a point of a curve. ValueError where float32, the file's format, does not hold it as a finite value."""
        with np.errstate(over="ignore"):
            narrow = np.float32(value)
        if not np.isfinite(narrow):
            raise ValueError(f"scalar {tag} is {float(value)}, which no curve shows")
        self._add(Summary.Value(tag=tag, simple_value=float(narrow)), step)

    def histogram(self, tag: str, values: np.ndarray, step: int = 0) -> None:
        """Adds the distribution of `values` (any shape, n ≥ 1): 30 equal bins from minimum to maximum.

        Minimum, maximum, number, sum and sum of squares are those of the values, in float64. Raises ValueError where
        there is no value, or one that is not finite.
        """
        flat = np.asarray(values, np.float64).ravel()
        if not flat.size:
            raise ValueError(f"histogram {tag} has no values")
        if not np.isfinite(flat).all():
            raise ValueError(f"histogram {tag} has {int((~np.isfinite(flat)).sum())} values that are not finite")
        low, high = flat.min(), flat.max()
        if np.linspace(low, high, _BINS + 1)[1] > low:
            counts, edges = np.histogram(flat, bins=_BINS, range=(low, high))
            limits = edges[1:]
        else:  # one value, or values too near to each other for 30 bins between them
            counts, limits = np.array([flat.size]), np.array([high])
        proto = HistogramProto(
            min=low,
            max=high,
            num=flat.size,
            sum=flat.sum(),
            sum_squares=np.square(flat).sum(),
            bucket_limit=limits.tolist(),
            bucket=counts.tolist(),
        )
        self._add(Summary.Value(tag=tag, histo=proto), step)

    def image(self, tag: str, rgb: np.ndarray, step: int = 0) -> None:
        """Adds a picture, uint8 [H, W, 3]; ValueError for anything else."""
        png = encode_png(rgb)
        image = Summary.Image(height=rgb.shape[0], width=rgb.shape[1], colorspace=3, encoded_image_string=png)
        self._add(Summary.Value(tag=tag, image=image), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Adds a text, which TensorBoard shows as Markdown."""
        tensor = make_tensor_proto(markdown, dtype=np.object_)
        metadata = text_metadata.create_summary_metadata(display_name=None, description=None)
        self._add(Summary.Value(tag=tag, tensor=tensor, metadata=metadata), step)

    def projector(self, name: str, vectors: np.ndarray, columns: Mapping[str, Sequence[str]]) -> None:
        """Adds a cloud of points to the projector; a log may hold several.

        Args:
          name: letters, digits, `_`, `-` and `.`; shown in the projector's list of tensors.
          vectors: [n, d], written so that float32 reads back exactly.
          columns: name → n labels, by which points are coloured and named. White space inside a label becomes one
            blank, as the file's format has no way to say a tab or a line's end.
        Raises:
          ValueError: a name that is taken or has other characters, vectors that are not finite or not [n, d], a column
            whose length is not n.
        """
        points = np.asarray(vectors, np.float32)
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise ValueError(f"projector name {name!r}; letters, digits, '_', '-' and '.' are allowed")
        if f"{name}.tsv" in self._assets:
            raise ValueError(f"projector {name} was written already")
        if points.ndim != 2 or not points.size or not np.isfinite(points).all():
            raise ValueError(f"projector {name} has vectors of shape {points.shape}; finite ones [n, d] are needed")
        for column, labels in columns.items():
            if len(labels) != len(points):
                raise ValueError(f"projector {name} has {len(labels)} labels of {column} for {len(points)} points")
        # Text, as the reader tells binary files apart by a failure to decode them.
        self._assets[f"{name}.tsv"] = "".join("\t".join(f"{x:.9g}" for x in row) + "\n" for row in points.tolist())
        embedding = self._config.embeddings.add(
            tensor_name=name, tensor_path=f"{_PROJECTOR}/{name}.tsv", tensor_shape=points.shape
        )
        if columns:
            embedding.metadata_path = f"{_PROJECTOR}/{name}.metadata.tsv"
            rows = [list(columns), *zip(*columns.values(), strict=True)]
            # Two or more columns have a header; one column is labels alone. This is TensorBoard's rule.
            lines = ["\t".join(map(_cell, row)) + "\n" for row in rows[len(columns) == 1 :]]
            self._assets[f"{name}.metadata.tsv"] = "".join(lines)

    def close(self) -> None:
        """Puts the log into its place, and takes away that of an earlier writer. OSError where the disk refuses."""
        if self._file.closed:
            return
        try:
            self._sync(self._file)
            self._file.close()
            earlier = list(self._logdir.glob(_OURS))
            for path in earlier:
                path.unlink()
            if earlier:
                self._remove_projector()
            self._write_projector()
            name = f"events.out.tfevents.{int(time.time()):010d}{_SUFFIX}"
            os.replace(self._logdir / _UNFINISHED, self._logdir / name)
        finally:
            self._discard()

    def _add(self, value: Summary.Value, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    @staticmethod
    def _sync(file) -> None:
        file.flush()
        os.fsync(file.fileno())

    def _remove_projector(self) -> None:
        (self._logdir / PROJECTOR_FILENAME).unlink(missing_ok=True)
        for path in (self._logdir / _PROJECTOR).glob("*.tsv"):
            path.unlink()

    def _write_projector(self) -> None:
        if not self._assets:
            return
        folder = self._logdir / _PROJECTOR
        folder.mkdir(exist_ok=True)
        texts = {folder / name: text for name, text in self._assets.items()}
        # The configuration last: what it names is whole.
        texts[self._logdir / PROJECTOR_FILENAME] = text_format.MessageToString(self._config)
        for path, text in texts.items():
            temporary = path.with_name(path.name + ".tmp")
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                self._sync(file)
            os.replace(temporary, path)

    def _discard(self) -> None:
        try:
            self._file.close()
        finally:  # a full disk may refuse the last bytes
            (self._logdir / _UNFINISHED).unlink(missing_ok=True)


def encode_png(rgb: np.ndarray) -> bytes:
    """A uint8 image [H, W, 3] as PNG bytes (RFC 2083: 8-bit truecolour, unfiltered rows). ValueError for other images.

    Written here as this is all that is needed of an imaging library.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise ValueError(f"an image has shape {rgb.shape} and type {rgb.dtype}; uint8 [H, W, 3] is needed")
    height, width, _ = rgb.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], axis=1)  # filter type 0 per row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _cell(label: str) -> str:
    """A label that fits a cell; an empty one would make a blank line, which the reader drops."""
    return " ".join(str(label).split()) or "–"
