"""TensorBoard's event files, written at once, so that a full disk is the caller's error.

tensorboardX' own writer leaves that to a thread, whose end holds up the next event for ever.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class EventFile(AbstractContextManager["EventFile"]):
    """A new file in `folder` of what is measured from step `start` on.

    TensorBoard hides what files of before say of those steps.
    """

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may go on with a run in one second, which is all that the name tells.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def __exit__(self, *exception: object) -> None:
        """Closes the file."""
        self._writer.close()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes each value under its name."""
        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        self._writer.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
