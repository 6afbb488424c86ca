"""Warm runners for one backend, under one set of limits and one policy."""

import os
import threading
import time

from sandboxes.backend import Backend, Unavailable
from sandboxes.base import Limits, Policy, SandboxError
from sandboxes.box import Box, Line

_IDLE_BOXES = 2  # kept warm where each is for one session
_WAIT_S = 120.0


class Pool:
    """Hands out lines to sessions; starts runners when they are needed, and anew when they break.

    The first session starts one runner, and while it is at work another for each core follows in
    the background.
    """

    def __init__(self, backend: Backend, limits: Limits, policy: Policy, max_sessions: int) -> None:
        self.backend, self.limits, self.policy = backend, limits, policy
        self.max_sessions = max_sessions
        self._room = backend.room(policy)
        self._boxes: list[Box] = []
        self._of: dict[Line, Box] = {}
        self._starting = 0
        self._changed = threading.Condition()
        self._users = 0
        self._closed = False
        self.unused_since_s = time.monotonic()

    @property
    def users(self) -> int:
        """How many handles are open."""
        return self._users

    def retain(self) -> None:
        """One handle more."""
        with self._changed:
            self._users += 1

    def give_up(self) -> None:
        """One handle less."""
        with self._changed:
            self._users -= 1
            self.unused_since_s = time.monotonic()

    def acquire(self) -> Line:
        """A line for a session; waits while `max_sessions` are open.

        Raises:
            SandboxError: no runner could be started, or none became free in time.
        """
        deadline_s = time.monotonic() + _WAIT_S
        with self._changed:
            while True:
                if self._closed:
                    raise SandboxError("the sandbox was closed")
                box = self._freest()
                full = len(self._of) >= self.max_sessions
                if box is not None and not full:
                    line = box.open()
                    self._of[line] = box
                    self._start_more()
                    return line
                if not full and self._starting == 0:
                    self._start_here()
                elif not self._changed.wait(deadline_s - time.monotonic()):
                    raise SandboxError(
                        f"all {self.max_sessions} sessions were busy for {_WAIT_S:g} s: close "
                        "some, or allow more with sandbox.max_sessions"
                    )

    def release(self, line: Line) -> None:
        """The session of this line is over."""
        with self._changed:
            box = self._of.pop(line, None)
            self._changed.notify()
        if box is not None:
            line.close()
            if self._room == 1:
                self._thin_out()

    def check_writable(self) -> None:
        """Raise SandboxError where sessions have no folder for files."""
        if not self.backend.writable:
            raise SandboxError(
                f"{self.backend.name} gives sessions no folder for files: use sandbox.backend=jail "
                "or docker"
            )

    def check_size(self, path: str, size: int) -> None:
        """Raise ValueError for a file that the limits do not allow."""
        if size > self.limits.max_file_bytes:
            most = self.limits.max_file_bytes
            raise ValueError(f"{path!r} has {size} bytes, more than the {most} of a file")

    def close(self) -> None:
        """End every runner."""
        with self._changed:
            self._closed = True
            boxes, self._boxes = self._boxes, []
            self._changed.notify_all()
        for box in boxes:
            box.end()
        self.backend.close()

    def abandon(self) -> None:
        """Let go of every runner without ending it: they are this fork's parent's."""
        self._closed, self._changed = True, threading.Condition()
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            box.abandon()

    def tend(self) -> None:
        """Drop runners that have broken."""
        with self._changed:
            self._forget_broken()

    def _forget_broken(self) -> None:
        broken = [box for box in self._boxes if box.broken]
        for box in broken:
            self._boxes.remove(box)
            box.end()

    def _thin_out(self) -> None:
        """End runners for one session that nobody waits for, but a few."""
        with self._changed:
            idle = [box for box in self._boxes if box.sessions == 0][_IDLE_BOXES:]
            self._boxes = [box for box in self._boxes if box not in idle]
        for box in idle:
            box.end()

    def _freest(self) -> Box | None:
        self._forget_broken()
        free = [box for box in self._boxes if box.sessions < box.room]
        return min(free, key=lambda box: box.sessions, default=None)

    def _start_more(self) -> None:
        """One runner for each core, or one for each of the next sessions, in the background."""
        if self._room == 1:
            idle = sum(box.sessions == 0 for box in self._boxes)
            lacking = idle < 1 and len(self._boxes) < self.max_sessions
        else:
            lacking = len(self._of) > len(self._boxes) < len(os.sched_getaffinity(0))
        if lacking and self._starting == 0:
            self._starting += 1
            threading.Thread(target=self._start, name="sandbox-start", daemon=True).start()

    def _start_here(self) -> None:
        self._starting += 1
        self._changed.release()
        try:
            error = self._start()
        finally:
            self._changed.acquire()
        if error is not None:
            raise error

    def _start(self) -> SandboxError | None:
        box, failure = None, None
        try:
            box = Box(self.backend, self.limits, self.policy, self._room)
        except SandboxError as error:
            failure = error
        except (Unavailable, OSError) as error:
            failure = SandboxError(f"{self.backend.name}: no runner could be started: {error}")
        with self._changed:
            self._starting -= 1
            if box is not None and not self._closed:
                self._boxes.append(box)
                box = None
            self._changed.notify_all()
        if box is not None:
            box.end()
        return failure
