"""Episodes of whoever speaks in messages and shows no tokens: enough to measure, not to train."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, Protocol, runtime_checkable

from agents.base import EngineError
from agents.types import Trajectory
from envs.base import ToolEnv, Transcript
from envs.tools import WORLD_ERRORS
from envs.types import Message, StopReason, Task


@runtime_checkable
class Speaker(Protocol):
    """A chat model behind an interface of messages."""

    version: str

    def reply(
        self, transcript: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int
    ) -> Message:
        """The next message of the assistant; `tools` are JSON schemas.

        Raises:
            EngineError: the model could not be asked.
        """
        ...


def play_episode(
    speaker: Speaker,
    env: ToolEnv,
    task: Task,
    *,
    index: int = 0,
    seed: int = 0,
    prompt: Transcript | None = None,
    see: Callable[[Transcript], None] = lambda messages: None,
    pause: Callable[[], None] = lambda: None,
) -> Trajectory:
    """One episode, whose trajectory has no tokens.

    `see` is given all messages as they come, and `pause` is called before each turn of the
    speaker but the first. `prompt`: what the speaker reads instead of the environment's first
    messages. A speaker or a world that fails ends the episode with `StopReason.ERROR`, without a
    verdict.
    """
    transcript: list[Message] = []
    error = ""

    def hear(messages: Transcript) -> None:
        transcript.extend(messages)
        see(messages)

    try:
        hear(env.reset(seed=task.seed, options={"task": task})[0])
        first = len(transcript)
        while env.stop_reason is None:
            if len(transcript) > 2:
                pause()
            tools = [*env.schemas()]
            read = transcript if prompt is None else [*prompt, *transcript[first:]]
            message = speaker.reply(read, tools, seed)
            hear((message,))
            hear(env.step(message)[0])
    except (*WORLD_ERRORS, EngineError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Trajectory(
        task=task,
        index=index,
        token_ids=(),
        sampled_mask=(),
        logprobs=(),
        messages=tuple(transcript),
        verdict=None if error else env.verdict,
        stop_reason=StopReason.ERROR if error or env.stop_reason is None else env.stop_reason,
        adapter_version=speaker.version,
        error=error,
    )


def play_episodes(
    speaker: Speaker,
    make_env: Callable[[], ToolEnv],
    places: Sequence[tuple[Task, int, int]],
    *,
    at_once: int,
    prompts: Sequence[Transcript] | None = None,
) -> tuple[Trajectory, ...]:
    """Play (task, index, seed) each, `at_once` beside each other; in the order of `places`.

    `prompts`: for each place what the speaker reads instead of the environment's first messages.
    """
    if prompts is not None and len(prompts) != len(places):
        raise ValueError(f"got {len(prompts)} prompts for {len(places)} places; expected one each")

    def play(place: tuple[Task, int, int], prompt: Transcript | None) -> Trajectory:
        task, index, seed = place
        env = make_env()
        try:
            return play_episode(speaker, env, task, index=index, seed=seed, prompt=prompt)
        finally:
            env.close()

    with ThreadPoolExecutor(at_once, thread_name_prefix="episodes") as pool:
        return tuple(pool.map(play, places, repeat(None) if prompts is None else prompts))
