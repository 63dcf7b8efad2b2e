"""The figures of one submission as TensorBoard reads them: a TFRecord file of its protocol buffers."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping

from bfp.runs.scratch import PREFIX, owned_folder
from bfp.storage import Place

FLUSH_S = 10.0  # the file is flushed at most so often


class EventFile:
    """The figures of one submission as TensorBoard reads them; on object storage the file is put there at the end."""

    def __init__(self, file: Place) -> None:
        from tensorboardX.proto.event_pb2 import Event as BoardEvent
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = BoardEvent, Summary
        self._file = file
        self._aside = None if file.is_local else owned_folder(PREFIX, tempfile.gettempdir())
        self._here = self._aside / file.name if self._aside else file.path
        self._records = RecordWriter(str(self._here))
        self._records.write(BoardEvent(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._flushed_at = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=v) for name, v in values.items()])
        self._records.write(self._event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        if time.monotonic() - self._flushed_at > FLUSH_S:
            self._records.flush()
            self._flushed_at = time.monotonic()

    def close(self) -> None:
        self._records.close()
        if self._aside is not None:
            self._file.upload(self._here)
            shutil.rmtree(self._aside)
