"""Ctrl-C as a request: the first lets the step end, the second stops at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """Context that catches SIGINT; the run polls `requested` between steps.

    Enter it on the main thread, where Python handles signals.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: Any = None

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._requested

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        # Not print: the signal may have come in the middle of a print, which cannot be re-entered.
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")
