"""Our environments in gymnasium.vector: several at once, in one process or one each."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

import envs
from envs.base import EnvLimits
from envs.types import Message, Task, ToolCall

COUNT = 4
# Messages have no shape, so they cannot lie in shared memory: they are sent, as pickles.
KINDS: dict[str, Any] = {
    "sync": SyncVectorEnv,
    "async": partial(AsyncVectorEnv, shared_memory=False, context="spawn"),
}
ANSWER = Message("assistant", "The answer is \\boxed{0}.")


def calculators(kind: str, **options: Any) -> VectorEnv[Any, Any, Any]:
    env_fn = partial(envs.make, "calculator", level=1)
    vector: VectorEnv[Any, Any, Any] = KINDS[kind]([env_fn] * COUNT, **options)
    return vector


def call(expression: str) -> Message:
    arguments = json.dumps({"expression": expression})
    return Message("assistant", "", (ToolCall("call_0", "calculate", arguments),))


def tasks_of(seeds: Sequence[int]) -> list[Task]:
    """The tasks that an environment of its own has for the same seeds."""
    env = envs.make("calculator", level=1)
    tasks = []
    for seed in seeds:
        env.reset(seed=seed)
        assert env.current_task is not None
        tasks.append(env.current_task)
    return tasks


@pytest.mark.parametrize("kind", KINDS)
def test_four_environments_play_side_by_side(kind: str) -> None:
    vector = calculators(kind)
    observations, infos = vector.reset(seed=3)
    tasks = tasks_of(range(3, 3 + COUNT))  # environment n has the seed + n
    assert [shown[-1].content for shown in observations] == [task.prompt for task in tasks]
    assert list(infos["task"]) == [task.id for task in tasks]
    assert observations in vector.observation_space

    calls = [
        ToolCall("call_0", "calculate", json.dumps({"expression": f"{n} * 2"})) for n in "1234"
    ]
    actions = tuple(Message("assistant", "", (call,)) for call in calls)
    assert actions in vector.action_space
    observations, rewards, terminated, truncated, infos = vector.step(actions)
    assert [shown[0].content for shown in observations] == ["2", "4", "6", "8"]
    assert not np.any([rewards, terminated, truncated])
    assert infos["tool_calls"].tolist() == [1] * COUNT

    right = [Message("assistant", f"\\boxed{{{task.answer}}}") for task in tasks[:2]]
    observations, rewards, terminated, truncated, infos = vector.step((*right, ANSWER, ANSWER))
    assert observations == ((),) * COUNT
    assert rewards.tolist() == [1, 1, 0, 0]
    assert terminated.all()
    assert not truncated.any()
    assert infos["success"].tolist() == [True, True, False, False]
    vector.close()


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_for_all_is_a_group_of_one_task(kind: str) -> None:
    vector = calculators(kind)
    observations, infos = vector.reset(seed=[7] * COUNT)
    assert len(set(observations)) == 1
    assert set(infos["task"]) == {tasks_of([7])[0].id}
    (task,) = tasks_of([8])
    observations, _ = vector.reset(options={"task": task})  # or a task for all of them
    assert {shown[-1].content for shown in observations} == {task.prompt}
    vector.close()


def test_next_step_starts_the_next_episode_and_ignores_that_message() -> None:
    vector = calculators("sync")  # Gymnasium's default
    vector.reset(seed=0)
    vector.step((ANSWER,) * COUNT)
    observations, rewards, terminated, _, infos = vector.step((ANSWER,) * COUNT)
    assert [shown[0].role for shown in observations] == ["system"] * COUNT
    assert not np.any([rewards, terminated])
    assert "success" not in infos
    assert all(infos["task"])
    vector.close()


def test_same_step_shows_the_next_episode_at_once() -> None:
    vector = calculators("sync", autoreset_mode=AutoresetMode.SAME_STEP)
    vector.reset(seed=0)
    observations, _, terminated, _, infos = vector.step((ANSWER,) * COUNT)
    assert terminated.all()
    assert [shown[0].role for shown in observations] == ["system"] * COUNT
    assert infos["final_info"]["stop_reason"].tolist() == ["answered"] * COUNT
    assert list(infos["final_obs"]) == [()] * COUNT
    vector.close()


def test_without_autoreset_ended_episodes_are_reset_by_mask() -> None:
    vector = calculators("sync", autoreset_mode=AutoresetMode.DISABLED)
    first, _ = vector.reset(seed=0)
    vector.step((ANSWER,) * COUNT)
    mask = np.array([True, False, False, True])
    observations, _ = vector.reset(seed=9, options={"reset_mask": mask})
    assert [bool(shown) for shown in observations] == mask.tolist()
    assert observations[0] != first[0]
    vector.close()


def test_a_limit_truncates() -> None:
    limits = EnvLimits(max_turns=1)
    vector = SyncVectorEnv([partial(envs.make, "calculator", limits=limits)] * COUNT)
    vector.reset(seed=0)
    _, _, terminated, truncated, infos = vector.step((call("1"),) * COUNT)
    assert truncated.all()
    assert not terminated.any()
    assert infos["stop_reason"].tolist() == ["max_turns"] * COUNT
    vector.close()


@pytest.mark.parametrize(("mode", "more"), [("sync", {}), ("async", {"shared_memory": False})])
def test_make_vec_knows_the_registered_names(mode: str, more: dict[str, Any]) -> None:
    if mode == "async":
        more = more | {"context": "spawn"}
    vector = gymnasium.make_vec(
        "mopd/calculator-v0", COUNT, vectorization_mode=mode, vector_kwargs=more, level=1
    )
    observations, _ = vector.reset(seed=3)
    prompts = [task.prompt for task in tasks_of(range(3, 3 + COUNT))]
    assert [shown[-1].content for shown in observations] == prompts
    vector.close()


def test_shared_memory_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="you can disable this feature with `shared_mem"):
        AsyncVectorEnv([partial(envs.make, "calculator")] * 2, context="spawn")
