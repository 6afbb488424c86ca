"""Rollouts, token by token: what was sampled, what was observed, and how episodes end."""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
)

import envs
from agents import pocket
from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.rollout import RolloutStats, rollout_groups
from agents.scripted import ScriptedAgent
from agents.transformers_agent import TransformersAgent
from agents.types import Trajectory, Turn
from envs.base import EnvLimits, ToolEnv
from envs.types import Message, StopReason, Task
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
    system = chat.render([Message("user", "?")]).partition("<|im_end|>")[0]
    pieces = [
        ("<|im_start|>system\nSolve the problem. Use calculate. Give the final answer in \\boxed{}."
         "\nTools:\n" + system.partition("Tools:\n")[2], False),
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
    assert (
        sum(
            t == start and not m
            for t, m in zip(trajectory.token_ids, trajectory.sampled_mask, strict=True)
        )
        == 5
    )
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


def test_an_engine_that_breaks_under_a_running_tool_leaves_it_its_sandbox(chat: Chat) -> None:
    seen: list[str] = []
    begun = threading.Event()

    class Slow(type(calculator())):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            begun.set()
            time.sleep(0.2)
            result = super().step(action)
            seen.append("stepped")
            return result

        def close(self) -> None:
            seen.append("closed")

    class Breaking(ScriptedAgent):
        pause_steps = 5

        def advance(self, until: int | None = None) -> list[Turn]:
            if self.clock == 1:
                begun.wait(5)
                raise EngineError("the GPU fell off the bus")
            self.clock += 1
            return [self._say(self._queue[0])]

    answered, cut = play(Breaking(chat, [ANSWER]), group_size=2, make_env=lambda: Slow())
    assert seen == ["stepped", "closed", "closed"]
    assert (answered.stop_reason, cut.stop_reason) == (StopReason.ANSWERED, StopReason.ERROR)
    assert answered.verdict is not None
    assert cut.verdict is None


def test_environments_are_closed_though_one_fails_to(chat: Chat) -> None:
    closed: list[str] = []

    class Stuck(type(calculator())):  # type: ignore[misc]
        def close(self) -> None:
            closed.append(self.current_task.id)
            if len(closed) == 1:
                raise SandboxError("cannot be removed")

    with pytest.raises(SandboxError):
        play(ScriptedAgent(chat, [ANSWER]), group_size=6, make_env=lambda: Stuck(), tool_workers=1)
    assert len(closed) == 6


def test_time_limits_count_tools_and_not_how_long_the_agent_took(chat: Chat) -> None:
    class Thoughtful(ScriptedAgent):
        def advance(self, until: int | None = None) -> list[Turn]:
            time.sleep(0.3)
            return super().advance(until)

    limits = EnvLimits(max_episode_s=0.25)
    (trajectory,) = play(
        Thoughtful(chat, [CALL, ANSWER]), make_env=lambda: calculator(limits=limits)
    )
    assert trajectory.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize(("spare", "reason"), [(0, "answered"), (-1, "max_tokens")])
def test_a_budget_that_ends_with_the_turn_does_not_cut_it(
    chat: Chat, spare: int, reason: str
) -> None:
    budget = len(chat.encode(CALL)) + 1 + len(chat.encode(ANSWER)) + 1
    (trajectory,) = play(ScriptedAgent(chat, [CALL, ANSWER]), max_new_tokens=budget + spare)
    assert trajectory.sampled_tokens == budget + spare
    assert trajectory.stop_reason == reason


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
        assert all(t.task is group.task for t in group.trajectories)


def tiny(kind: str, attention: str) -> torch.nn.Module:
    """Random weights: with sliding windows of 8 tokens in some layers, in all, or in none."""
    shape: dict[str, Any] = {
        "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "attn_implementation": attention,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        return Gemma3ForCausalLM(
            Gemma3TextConfig(**shape, sliding_window=8, layer_types=kinds)
        ).eval()
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=8)).eval()
    model = LlamaForCausalLM(LlamaConfig(**shape))
    if kind == "llama":
        return model.eval()
    adapted = get_peft_model(
        model, LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    return adapted.eval()


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
        trajectories = play(self.agent(model, chat, max_episodes=3), group_size=7, stats=stats)
        assert len(trajectories) == 7
        assert stats.sampled_tokens == sum(t.sampled_tokens for t in trajectories)

    @pytest.mark.parametrize("reproducible", [True, False])
    def test_what_else_is_in_the_batch_changes_no_token(
        self, model: torch.nn.Module, chat: Chat, reproducible: bool
    ) -> None:
        class Uneven(type(calculator())):  # type: ignore[misc]
            def step(self, action: Any) -> Any:
                time.sleep(0.02 * (self.current_task.seed % 4))
                return super().step(action)

        tasks = [calculator().task(seed) for seed in range(4)]
        alone = play(self.agent(model, chat, max_episodes=1), tasks, group_size=3)
        together = play(
            self.agent(model, chat, max_episodes=5, reproducible=reproducible),
            tasks,
            group_size=3,
            make_env=lambda: Uneven(),
        )
        for one, other in zip(alone, together, strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=5e-5)

    @pytest.mark.parametrize(
        ("kind", "attention"),
        [("gemma3", "sdpa"), ("gemma3", "eager"), ("llama", "sdpa"), ("mistral", "sdpa"),
         ("lora", "sdpa")],
    )  # fmt: skip
    def test_uneven_turns_equal_a_forward_over_the_whole_transcript(
        self, chat: Chat, kind: str, attention: str
    ) -> None:
        model = tiny(kind, attention)
        agent = self.agent(model, chat, max_episodes=4)
        rng = np.random.default_rng(0)
        texts = [rng.integers(9, 1000, size=n).tolist() for n in (5, 5, 30, 17)]
        texts[1] = texts[0]
        turns = dict.fromkeys(range(4), 0)
        logprobs: list[list[tuple[int, float]]] = [[] for _ in texts]
        agent.submit([TurnRequest(i, t, 3 + 4 * i, i) for i, t in enumerate(texts)])
        while turns:
            for turn in agent.advance(agent.clock + 3):
                i = turn.episode
                start = len(texts[i])
                logprobs[i] += list(zip(range(start, start + 99), turn.logprobs, strict=False))
                texts[i] = [*texts[i], *turn.token_ids]
                turns[i] += 1
                if turns[i] == 3:
                    agent.release(i)
                    del turns[i]
                else:
                    # What it reads next: a few tokens one by one, or many in a chunk.
                    texts[i] += rng.integers(9, 1000, size=(2, 40)[(i + turns[i]) % 2]).tolist()
                    agent.submit([TurnRequest(i, texts[i], 5, i)])
        for ids, said in zip(texts, logprobs, strict=True):
            with torch.no_grad():
                whole = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            assert len(said) >= 11
            for place, logprob in said:
                assert logprob == pytest.approx(float(whole[place - 1, ids[place]]), abs=5e-5)

    def test_the_cache_goes_with_the_last_episode(self, model: torch.nn.Module, chat: Chat) -> None:
        agent = self.agent(model, chat)  # kept, as training keeps it while it updates
        play(agent, group_size=2, max_new_tokens=20)
        gc.collect()
        caches = [each for each in gc.get_objects() if issubclass(type(each), Cache)]
        assert caches
        assert all(cache.get_seq_length() == 0 for cache in caches)

    @pytest.mark.parametrize("max_context", [100, 104, 120])
    def test_no_token_is_sampled_beyond_a_limit(
        self, model: torch.nn.Module, chat: Chat, max_context: int
    ) -> None:
        for budget in (1, 7, 30):
            for trajectory in play(
                self.agent(model, chat, max_context=max_context),
                group_size=6,
                max_new_tokens=budget,
                max_context=max_context,
            ):
                assert trajectory.sampled_tokens <= budget
                mine = [i for i, sampled in enumerate(trajectory.sampled_mask) if sampled]
                assert mine
                assert mine[-1] < max_context
                if trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW:
                    assert len(trajectory.token_ids) >= max_context
                if trajectory.stop_reason is StopReason.MAX_TOKENS:
                    assert trajectory.sampled_tokens == budget

    def test_a_full_gpu_is_the_engines_failure_in_the_prefill_too(self, chat: Chat) -> None:
        class Full(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.config = Qwen3Config()
                self.weight = torch.nn.Parameter(torch.zeros(1))

            def forward(self, **inputs: Any) -> None:
                raise torch.cuda.OutOfMemoryError

        (trajectory,) = play(self.agent(Full(), chat))
        assert trajectory.stop_reason is StopReason.ERROR
        assert "lower rollout.max_concurrent" in trajectory.error

    @pytest.mark.parametrize("layer", ["linear_attention", "chunked_attention"])
    def test_layers_that_keys_by_position_do_not_serve_are_refused(
        self, chat: Chat, layer: str
    ) -> None:
        text = SimpleNamespace(layer_types=["full_attention", layer], model_type="odd")
        model = torch.nn.Linear(1, 1)
        model.config = SimpleNamespace(get_text_config=lambda: text)  # type: ignore[assignment]
        with pytest.raises(ValueError, match=f"odd has layers of type {layer}.*use vLLM"):
            self.agent(model, chat)

    def test_an_attention_that_takes_no_masks_is_refused(self, chat: Chat) -> None:
        model = torch.nn.Linear(1, 1)
        model.config = SimpleNamespace(_attn_implementation="flash_attention_2")  # type: ignore[assignment]
        with pytest.raises(ValueError, match="load the model with attn_implementation sdpa"):
            self.agent(model, chat)

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
