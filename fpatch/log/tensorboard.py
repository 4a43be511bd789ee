"""The TensorBoard sink: event files that grow with the records and are rebuilt on resume."""
# protobuf makes its classes at import:
# pyright: reportAttributeAccessIssue=false

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text import metadata as text_metadata

from fpatch.core.files import AppendFile, open_own
from fpatch.log.records import Record, Records
from fpatch.log.values import inside, to_text

_MAIN = {
    "train/loss": "main/loss",
    "validation/success/patch": "main/success in the validation",
    "test/success/patch": "main/success in the test",
}
"""Scalars that TensorBoard shows first: it sorts cards by name."""

_MASK_DELTA = 0xA282EAD8
"""A constant of the format of event files, for data that contain checksums."""


class TensorBoard:
    """A sink that writes scalars, images, histograms, text and parameters to `tensorboard/` of the run.

    The event file is a copy of the records. At the start of a run it is rebuilt from the existing records,
    and older event files are emptied. Each record then extends it. The copy is therefore exact after a kill
    at any moment. The second event of the file makes a running TensorBoard drop its earlier data.
    """

    def __init__(self, records: Records) -> None:
        """Begin an event file with the existing records, and empty the older files.

        Raises:
            OSError: If the disk is full; the old event files are kept.
        """
        self._folder = records.folder
        logdir = records.folder / "tensorboard"
        logdir.mkdir(exist_ok=True)
        self._file = AppendFile(logdir / "unfinished", "wb")
        try:
            self._add(wall_time=time.time(), file_version="brain.Event:2")
            self._add(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START))
            for record in records:
                self.write(record)
            for path in logdir.glob("*tfevents*"):
                with open(open_own(path, os.O_WRONLY), "wb") as file:
                    file.truncate(0)  # a TensorBoard that reads this file fails if it is removed
        except BaseException:
            self._file.close()
            raise
        seconds, nanoseconds = divmod(
            time.time_ns(), 10**9
        )  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self._file.path = self._file.path.rename(logdir / name)

    def write(self, record: Record) -> None:
        """Append a record; TensorBoard shows it at its next reload."""
        if record["kind"] == "params":
            summary = _hparams(record)
        elif make := _MAKERS.get(record["kind"]):
            values = [make(self._folder, value) for value in record["values"].values()]
            named = [*zip(record["values"], values, strict=True)]
            if record["kind"] == "scalars":
                named += [(_MAIN[name], value) for name, value in named if name in _MAIN]
            summary = Summary(value=[Summary.Value(tag=name, **value) for name, value in named])
        else:
            return
        self._add(wall_time=record["time"] / 1000, step=record["step"], summary=summary)

    def commit(self) -> None:
        """Force the events to the disk, where they survive a power failure."""
        self._file.sync()

    def close(self, finished: bool | None) -> None:
        """Close the event file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._file.write(_event(**fields))


def write_hparams(folder: Path, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write settings and their metrics as a run of TensorBoard's HPARAMS tab.

    Args:
        folder: The folder of the event file; an older file is replaced.
        settings: Numbers, bools and strings by name; other values become text.
        metrics: Numbers by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    file = AppendFile(folder / "unfinished", "wb")
    summaries = [_hparams(Record(step=0, time=int(1000 * now), kind="params", values=settings))]
    summaries += [Summary(value=[Summary.Value(tag=n, simple_value=v)]) for n, v in metrics.items()]
    file.write(_event(wall_time=now, file_version="brain.Event:2"))
    for summary in summaries:
        file.write(_event(wall_time=now, step=0, summary=summary))
    file.close()
    (folder / "unfinished").replace(folder / "events.out.tfevents.0000000000.fpatch")


def _event(**fields: Any) -> bytes:
    """Encode an event as a record of the file format: length, data, and the checksum of each."""
    data = Event(**fields).SerializeToString()
    length = struct.pack("<Q", len(data))
    length_crc, data_crc = (struct.pack("<I", _masked_crc32c(part)) for part in (length, data))
    return length + length_crc + data + data_crc


def _masked_crc32c(data: bytes) -> int:
    """Return the checksum of event files: CRC-32C rotated by 15 bits, plus a constant.

    TensorBoard's own is a Python loop over bytes, which takes a tenth of a second for a figure.
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _scalar(folder: Path, value: float | str) -> dict[str, Any]:
    return {"simple_value": float(value)}


def _image(folder: Path, path: str) -> dict[str, Any]:
    png = inside(folder, path).read_bytes()
    width, height, _, color_type = struct.unpack(">IIBB", png[16:26])
    colorspace = 3 if color_type == 2 else 1
    return {
        "image": Summary.Image(width=width, height=height, colorspace=colorspace, encoded_image_string=png)
    }


def _histogram(folder: Path, value: dict[str, Any]) -> dict[str, Any]:
    moments = {key: value[key] for key in ("min", "max", "num", "sum", "sum_squares")}
    low, high = value["range"]
    edges = np.linspace(low, high, len(value["counts"]) + 1)
    return {"histo": HistogramProto(**moments, bucket_limit=edges[1:].tolist(), bucket=value["counts"])}


def _text(folder: Path, value: str) -> dict[str, Any]:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return {
        "tensor": TensorProto(dtype="DT_STRING", string_val=[value.encode()], tensor_shape=shape),
        "metadata": text_metadata.create_summary_metadata(display_name=None, description=None),
    }


def _hparams(record: Record) -> Summary:
    values = {
        name: value if isinstance(value, bool | int | float) else to_text(value)
        for name, value in record["values"].items()
    }
    return hparams.hparams_pb(values, start_time_secs=record["time"] / 1000)


_MAKERS: dict[str, Callable[[Path, Any], dict[str, Any]]] = {
    "scalars": _scalar,
    "images": _image,
    "histograms": _histogram,
    "text": _text,
}
