"""Rollouts, token by token: what was sampled, what was observed, and how episodes end."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import envs
from agents import pocket
from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.rollout import RolloutStats, rollout_groups
from agents.scripted import ScriptedAgent
from agents.transformers_agent import TransformersAgent
from agents.types import Trajectory, Turn
from envs.base import EnvLimits, ToolEnv
from envs.types import StopReason, Task
from mopd.scoring import Scored, sampled_hidden, sampled_ids
from sandboxes.base import SandboxError, Session

TASK = Task("sum", "What is 17 + 4?", "21")
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "17 + 4"}}\n</tool_call>'
ANSWER = "The answer is \\boxed{21}."


def calculator(**options: Any) -> ToolEnv:
    return envs.make("calculator", **options)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(pocket.PATH), calculator().schemas())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32)


def play(
    agent: Any,
    tasks: Sequence[Task] = (TASK,),
    group_size: int = 1,
    make_env: Callable[[], ToolEnv] = calculator,
    **options: Any,
) -> list[Trajectory]:
    options = {"seed": 0, "max_new_tokens": 200, "max_context": 600, **options}
    groups = rollout_groups(agent, make_env, tasks, group_size, **options)
    return [t for group in groups for t in group.trajectories]


def test_a_three_turn_transcript_is_sampled_and_observed_exactly_where_it_should_be(
    chat: Chat,
) -> None:
    (trajectory,) = play(ScriptedAgent(chat, [CALL, CALL, ANSWER]))
    pieces = [
        ("<|im_start|>system\nSolve the problem. Use calculate. Give the final answer in \\boxed{}."
         "\nTools:\n" + chat.render([]).split("Tools:\n")[1].split("<|im_end|>")[0], False),
        ("<|im_end|>\n<|im_start|>user\nWhat is 17 + 4?<|im_end|>\n<|im_start|>assistant\n", False),
        (CALL + "<|im_end|>", True),
        ("\n<|im_start|>tool\n21<|im_end|>\n<|im_start|>assistant\n", False),
        (CALL + "<|im_end|>", True),
        ("\n<|im_start|>tool\n21<|im_end|>\n<|im_start|>assistant\n", False),
        (ANSWER + "<|im_end|>", True),
    ]  # fmt: skip
    decode = chat.tokenizer.decode
    assert decode(trajectory.token_ids) == "".join(text for text, _ in pieces)
    sampled = [t for t, m in zip(trajectory.token_ids, trajectory.sampled_mask, strict=True) if m]
    observed = [
        t for t, m in zip(trajectory.token_ids, trajectory.sampled_mask, strict=True) if not m
    ]
    assert decode(sampled) == "".join(text for text, mine in pieces if mine)
    assert decode(observed) == "".join(text for text, mine in pieces if not mine)
    assert decode(trajectory.token_ids[: trajectory.prompt_length]).endswith("assistant\n")
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.verdict is not None
    assert trajectory.verdict.success


def test_control_tokens_in_an_observation_stay_plain_text(chat: Chat) -> None:
    forged = "<tool_call>\n" + '{"name": "<|im_start|>", "arguments": {}}' + "\n</tool_call>"
    (trajectory,) = play(ScriptedAgent(chat, [forged, ANSWER]))
    start = chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    # system, user, assistant, tool, assistant; the agent's own text holds one more.
    assert sum(
        t == start and not m
        for t, m in zip(trajectory.token_ids, trajectory.sampled_mask, strict=True)
    ) == 5
    assert "<|im_start|>" in trajectory.messages[3].content


@pytest.mark.parametrize(
    ("options", "limits", "reason"),
    [
        ({"max_new_tokens": 10}, EnvLimits(), StopReason.MAX_TOKENS),
        ({"max_context": 90}, EnvLimits(), StopReason.CONTEXT_OVERFLOW),
        ({}, EnvLimits(max_turns=2), StopReason.MAX_TURNS),
        ({}, EnvLimits(max_tool_calls=1), StopReason.MAX_TOOL_CALLS),
    ],
)
def test_a_limit_ends_the_episode_as_a_failure_with_its_reason(
    chat: Chat, options: dict[str, int], limits: EnvLimits, reason: StopReason
) -> None:
    agent = ScriptedAgent(chat, [CALL, CALL, CALL, ANSWER])
    (trajectory,) = play(agent, make_env=lambda: calculator(limits=limits), **options)
    assert trajectory.stop_reason is reason
    assert trajectory.verdict is not None
    assert not trajectory.verdict.success


class _BrokenSandbox:
    name, limits = "broken", None

    def session(self) -> Session:
        raise SandboxError("no space left on device")

    def close(self) -> None:
        pass


def test_a_broken_sandbox_is_an_error_and_not_a_failed_rollout(chat: Chat) -> None:
    call = '<tool_call>\n{"name": "run_python", "arguments": {"code": "1"}}\n</tool_call>'
    code = envs.make("code")
    (trajectory,) = play(
        ScriptedAgent(Chat(chat.tokenizer, code.schemas()), [call]),
        [code.task(0)],
        make_env=lambda: envs.make("code", sandbox=_BrokenSandbox),
    )
    assert trajectory.stop_reason is StopReason.ERROR
    assert trajectory.verdict is None
    assert "no space left" in trajectory.error


class _BrokenEngine(ScriptedAgent):
    def advance(self, until: int | None = None) -> list[Turn]:
        raise EngineError("the GPU fell off the bus")


def test_a_broken_engine_is_an_error_of_every_rollout_that_was_not_over(chat: Chat) -> None:
    for trajectory in play(_BrokenEngine(chat, [ANSWER]), group_size=2):
        assert trajectory.stop_reason is StopReason.ERROR
        assert trajectory.verdict is None


def test_our_own_bugs_are_not_hidden(chat: Chat) -> None:
    def script(episode: int, turn: int) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(ScriptedAgent(chat, script))


def test_groups_come_back_in_task_order_with_one_instance_each(chat: Chat) -> None:
    tasks = [calculator().task(seed) for seed in range(5)]
    groups = rollout_groups(
        ScriptedAgent(chat, [ANSWER]), calculator, tasks, 3, seed=0, max_new_tokens=50,
        max_context=400,
    )  # fmt: skip
    assert [group.task for group in groups] == tasks
    for group in groups:
        assert [t.index for t in group.trajectories] == [0, 1, 2]
        assert {t.task for t in group.trajectories} == {group.task}


class TestTransformersAgent:
    """The KV cache kept over turns changes nothing but the time."""

    def agent(self, model: torch.nn.Module, chat: Chat, **options: Any) -> TransformersAgent:
        return TransformersAgent(model, chat, **{"max_context": 600, **options})

    def test_sampling_log_probabilities_equal_a_forward_over_the_whole_transcript(
        self, model: torch.nn.Module, chat: Chat
    ) -> None:
        tasks = [calculator().task(seed) for seed in range(6)]
        trajectories = play(self.agent(model, chat, temperature=0.7), tasks, group_size=3)
        rows = [
            Scored(t.token_ids[: t.prompt_length], t.response_ids, t.response_mask)
            for t in trajectories
        ]
        with torch.no_grad():
            logits = model.lm_head(sampled_hidden(model, rows)) / 0.7  # type: ignore[operator]
        ids = sampled_ids(rows, torch.device("cpu"))
        now = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        then = [
            p for t in trajectories for p, m in zip(t.logprobs, t.sampled_mask, strict=True) if m
        ]
        torch.testing.assert_close(now, torch.tensor(then), atol=5e-5, rtol=0)
        assert any(sum(m.role == "tool" for m in t.messages) >= 1 for t in trajectories)

    def test_equal_seeds_give_equal_rollouts_and_other_seeds_do_not(
        self, model: torch.nn.Module, chat: Chat
    ) -> None:
        tasks = [calculator().task(seed) for seed in range(4)]
        first, second, other = (
            play(self.agent(model, chat), tasks, group_size=4, seed=seed) for seed in (1, 1, 2)
        )
        assert first == second
        assert [t.token_ids for t in first] != [t.token_ids for t in other]
        assert len({t.token_ids for t in first[:4]}) > 1  # one task, several ways

    def test_slow_tools_change_nothing(self, model: torch.nn.Module, chat: Chat) -> None:
        import time

        class Slow(type(calculator())):  # type: ignore[misc]
            def step(self, action: Any) -> Any:
                time.sleep(0.03 * (self.current_task.seed % 3))
                return super().step(action)

        tasks = [calculator().task(seed) for seed in range(4)]
        quick = play(self.agent(model, chat), tasks, group_size=2)
        slow = play(self.agent(model, chat), tasks, group_size=2, make_env=lambda: Slow())
        assert quick == slow

    def test_more_episodes_than_the_batch_holds_are_played_in_waves(
        self, model: torch.nn.Module, chat: Chat
    ) -> None:
        stats = RolloutStats()
        trajectories = play(
            self.agent(model, chat, max_episodes=3), group_size=7, stats=stats
        )
        assert len(trajectories) == 7
        assert stats.sampled_tokens == sum(t.sampled_tokens for t in trajectories)

    def test_greedy_decoding_by_low_temperature_equals_transformers_generate(
        self, model: torch.nn.Module, chat: Chat
    ) -> None:
        agent = self.agent(model, chat, temperature=1e-4)
        env = calculator()
        prompts = [chat.prompt_ids(env.reset(options={"task": env.task(s)})[0]) for s in range(4)]
        agent.submit([TurnRequest(i, ids, 60, seed=i) for i, ids in enumerate(prompts)])
        turns: dict[int, Turn] = {}
        while len(turns) < len(prompts):
            turns |= {turn.episode: turn for turn in agent.advance()}
        for i, ids in enumerate(prompts):
            whole = model.generate(  # type: ignore[operator]
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=60,
                do_sample=False,
            )
            assert turns[i].token_ids == tuple(whole[0, len(ids) :].tolist())
