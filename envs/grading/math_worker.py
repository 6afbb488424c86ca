"""math-verify in a process of its own: an answer that explodes ends that process, and no more.

An answer like `2^{99^{9}}` keeps sympy busy for ever inside one C call, which neither a thread nor
a signal handler can interrupt. The worker bounds itself by processor time and memory, so how busy
the machine is decides nothing. It ends with its standard input, so also when its owner is killed.
"""

import atexit
import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading

CPU_S = 2.0  # for one answer; an honest one takes 0.1, the first one 0.3
MEMORY_BYTES = 2 * 2**30
# What an answer can do to the process: its time is up, or C code ran out of stack or memory.
_ENDED_BY_ANSWER = (-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGABRT)


class MathWorker:
    """A worker that starts at its first question, and again after an answer has ended it.

    Threads may share it; their questions queue.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, expected: str, answer: str) -> bool:
        """Whether math-verify finds the two equal; False where that takes more than the bounds.

        Raises:
            WorldError: the process failed, and the answer is not the reason.
        """
        with self._lock:
            # A process that ended between two questions (or belongs to the parent of a fork,
            # where poll() tells the same) is replaced.
            if self._process is not None and self._process.poll() is not None:
                self.close()
            if self._process is None:
                self._process = _start()
                atexit.register(self.close)
            process = self._process
            try:
                print(json.dumps([expected, answer]), file=process.stdin, flush=True)
                reply = process.stdout.readline() if process.stdout else ""
            except BrokenPipeError:
                reply = ""
            if reply:
                return bool(json.loads(reply))
            self.close()
        if process.returncode in _ENDED_BY_ANSWER:
            return False
        # Late: this file is also the worker's script, which needs nothing of the project.
        from envs.tools import WorldError

        raise WorldError(f"the process of math-verify ended with exit code {process.returncode}")

    def close(self) -> None:
        """End the process; the next question starts another."""
        atexit.unregister(self.close)
        with self._lock:
            if self._process is None:
                return
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
            self._process.wait()
            self._process = None


def _start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C lets the owner finish its step, so it must not reach the worker
    )


def _serve() -> None:
    """Answer questions, one JSON line each, until the input ends."""
    import logging

    from math_verify import parse, verify  # type: ignore[import-untyped] # ships no types

    # It warns that its timeouts are off. They cannot stop C code; the timer below can.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies, sys.stdout = sys.stdout, sys.stderr  # a library's print() must not become a reply
    for line in sys.stdin:
        # SIGPROF has no handler in Python: it ends the process, whatever that is doing.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        expected, answer = (
            parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=False)
            for text in json.loads(line)
        )
        equal = bool(verify(expected, answer, timeout_seconds=None, raise_on_error=False))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(equal), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
