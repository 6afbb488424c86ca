"""`ToolThreads`: threads for tools, of which one that hangs can be given up."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]


class ToolThreads:
    """Runs jobs in at most `count` threads at a time, in the order in which they came.

    Not a ThreadPoolExecutor: that joins its threads when the interpreter ends, so that one tool
    which hangs would keep the process for ever, and has one thread less from then on.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._given_up: set[Future[Any]] = set()
        self._idle = threading.Semaphore(0)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        if not self._idle.acquire(blocking=False):
            self._start()
        return future

    def give_up(self, future: Future[Any]) -> None:
        """Wait no longer for a job that hangs: another thread takes the place of its own."""
        self._given_up.add(future)
        self._count += 1
        self._start()

    def close(self) -> None:
        """Let the threads end after what is queued, and wait for them if none hangs."""
        for _ in self._threads:
            self._jobs.put(None)
        if not self._given_up:
            for thread in self._threads:
                thread.join()

    def _start(self) -> None:
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (taken := self._jobs.get()) is not None:
            future, job = taken
            if future.set_running_or_notify_cancel():
                try:
                    result = job()
                except BaseException as error:  # whoever waits for it gets it
                    future.set_exception(error)
                else:
                    future.set_result(result)
            if future in self._given_up:
                return  # its place is taken
            del future, job, taken
            self._idle.release()
