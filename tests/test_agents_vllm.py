"""vLLM's engine, the real one: the same rollouts as transformers', and an engine that is lost."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import envs
from agents import pocket
from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.transformers_agent import TransformersAgent
from agents.types import Trajectory, Turn, TurnEnd
from agents.vllm_agent import VllmAgent
from agents.vllm_messages import EngineOptions
from agents.vllm_worker import lora_rank
from envs.base import ToolEnv
from envs.types import StopReason
from mopd.config import LoraSection, ModelSection
from mopd.scoring import Scored, sampled_hidden, sampled_ids
from mopd.student import load_student, save_adapter

GREEDY = 1e-6  # of other tokens it leaves nothing; vLLM says 0 for it


def calculator() -> ToolEnv:
    return envs.make("calculator")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(pocket.PATH), calculator().schemas())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32)


def engine(chat: Chat, **options: Any) -> VllmAgent:
    return VllmAgent(
        EngineOptions(
            model=str(pocket.PATH),
            dtype="float32",
            eos_id=chat.eos_id,
            max_context=600,
            max_episodes=64,
            kv_cache_bytes=2**28,
            adapter_rank=8,
        ),
        chat,
        **options,
    )


@pytest.fixture(scope="module")
def agent(chat: Chat) -> Iterator[VllmAgent]:
    agent = engine(chat)
    yield agent
    agent.close()


def play(
    agent: Any,
    tasks: int = 8,
    group_size: int = 8,
    make_env: Callable[[], ToolEnv] = calculator,
    **options: Any,
) -> list[Trajectory]:
    options = {"seed": 0, "max_new_tokens": 200, "max_context": 600, **options}
    drawn = [calculator().task(seed) for seed in range(tasks)]
    groups = rollout_groups(agent, make_env, drawn, group_size, **options)
    return [t for group in groups for t in group.trajectories]


def rescored(model: torch.nn.Module, played: Sequence[Trajectory], temperature: float) -> Any:
    """(now, then): log-probabilities by a forward over the whole, and as they were recorded."""
    rows = [Scored(t.token_ids[: t.prompt_length], t.response_ids, t.response_mask) for t in played]
    with torch.no_grad():
        logits = model.get_output_embeddings()(sampled_hidden(model, rows))  # type: ignore[operator]
    ids = sampled_ids(rows, torch.device("cpu"))
    now = (logits / temperature).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    then = [p for t in played for p, m in zip(t.logprobs, t.sampled_mask, strict=True) if m]
    return now, torch.tensor(then)


def say(agent: VllmAgent, prompts: Sequence[Sequence[int]], budget: int = 20) -> list[Turn]:
    agent.submit([TurnRequest(i, tuple(ids), budget, i) for i, ids in enumerate(prompts)])
    turns: dict[int, Turn] = {}
    while len(turns) < len(prompts):
        turns |= {turn.episode: turn for turn in agent.advance()}
    return [turns[i] for i in range(len(prompts))]


@pytest.mark.vllm
class TestAgreement:
    def test_greedy_rollouts_equal_those_of_transformers_token_by_token(
        self, agent: VllmAgent, model: torch.nn.Module, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "temperature", 0.0)
        ours = play(agent, tasks=64, group_size=1)
        theirs = play(
            TransformersAgent(model, chat, temperature=GREEDY, max_context=600), 64, group_size=1
        )
        assert sum(sum(m.role == "assistant" for m in t.messages) > 1 for t in ours) > 50
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_ids == other.token_ids
            assert one.sampled_mask == other.sampled_mask
            assert one.messages == other.messages
        # vLLM gives a greedy token the probability that it has at temperature 1.
        torch.testing.assert_close(*rescored(model, ours, 1.0), atol=1e-4, rtol=0)

    def test_log_probabilities_are_those_of_the_distribution_that_was_sampled_from(
        self, agent: VllmAgent, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "temperature", 0.7)
        torch.testing.assert_close(*rescored(model, play(agent), 0.7), atol=1e-4, rtol=0)

    def test_equal_seeds_give_equal_rollouts_on_a_new_engine_too_however_slow_the_tools(
        self, agent: VllmAgent, chat: Chat
    ) -> None:
        class Slow(type(calculator())):  # type: ignore[misc]
            def step(self, action: Any) -> Any:
                time.sleep(0.03 * (self.current_task.seed % 3))
                return super().step(action)

        first, other = play(agent), play(agent, seed=1)
        agent.close()  # the next turn starts a new engine
        assert play(agent, make_env=lambda: Slow()) == first
        assert [t.token_ids for t in first] != [t.token_ids for t in other]
        assert len({t.token_ids for t in first[:8]}) > 1  # one task, several ways

    def test_episodes_that_wait_for_nobody_end_as_the_others(self, chat: Chat) -> None:
        free = engine(chat, reproducible=False)
        try:
            played = play(free)
        finally:
            free.close()
        assert {t.stop_reason for t in played} <= {StopReason.ANSWERED, StopReason.MAX_TOKENS}
        assert all(t.verdict is not None for t in played)


@pytest.mark.vllm
def test_no_token_is_sampled_beyond_a_limit(agent: VllmAgent) -> None:
    cut, full = say(agent, [range(5, 25)], budget=7)[0], say(agent, [range(5, 599)])[0]
    assert (len(cut.token_ids), cut.end) == (7, TurnEnd.MAX_TOKENS)
    assert (len(full.token_ids), full.end) == (6, TurnEnd.CONTEXT_OVERFLOW)


@pytest.mark.vllm
def test_more_prompts_than_one_step_of_the_engine_reads(agent: VllmAgent) -> None:
    prompts = [[*range(5 + i, 405 + i)] for i in range(40)]  # 16,000 tokens, seeded
    assert all(turn.token_ids for turn in say(agent, prompts, budget=3))


@pytest.mark.vllm
def test_adapters_of_student_and_teacher_speak_side_by_side(
    agent: VllmAgent, tmp_path: Path
) -> None:
    student = load_student(ModelSection(), LoraSection(r=8), seed=0)
    adapters = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        save_adapter(student, tmp_path / str(seed))
        adapters.append(agent.add_adapter(tmp_path / str(seed)))
    prompt = tuple(range(5, 45))
    for i, adapter in enumerate([*adapters, *adapters]):
        agent.use_adapter(adapter)
        agent.submit([TurnRequest(i, prompt, 20, 0)])
    with pytest.raises(ValueError, match="vLLM mixes up the bare base model and adapters"):
        agent.use_adapter(None)
    turns: dict[int, Turn] = {}
    while len(turns) < 4:
        turns |= {turn.episode: turn for turn in agent.advance()}
    agent.use_adapter(None)
    for i in range(4):
        base = AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, tmp_path / str(i % 2))
        ids = torch.tensor([[*prompt, *turns[i].token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        logprobs = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        now = logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(now, torch.tensor(turns[i].logprobs), atol=1e-4, rtol=0)
    assert turns[0].token_ids != turns[1].token_ids
    for adapter in adapters:
        agent.remove_adapter(adapter)


@pytest.mark.vllm
def test_an_engine_that_is_killed_costs_the_episodes_in_flight_and_no_others(
    agent: VllmAgent,
) -> None:
    whole = play(agent)

    class Killing(type(calculator())):  # type: ignore[misc]
        begun = 0

        def step(self, action: Any) -> Any:
            Killing.begun += 1
            if Killing.begun == 130 and agent.engine_pid is not None:
                os.kill(agent.engine_pid, signal.SIGKILL)
            return super().step(action)

    broken = play(agent, make_env=lambda: Killing())
    lost = [t for t in broken if t.errored]
    assert 0 < len(lost) < len(broken)
    assert all(t.verdict is None and "vLLM engine" in t.error for t in lost)
    for one, other in zip(broken, whole, strict=True):
        assert one.errored or one == other
    assert play(agent) == whole  # on a new engine


@pytest.mark.vllm
def test_an_engine_that_hangs_is_given_up(chat: Chat) -> None:
    hanging = engine(chat, stall_s=5.0)
    try:
        say(hanging, [range(5, 25)])
        pid = hanging.engine_pid
        assert pid is not None
        timer = threading.Timer(0.05, os.kill, (pid, signal.SIGSTOP))
        timer.start()
        with pytest.raises(EngineError, match="gave no sign for 5 s"):
            say(hanging, [range(5, 25)], budget=500)
        timer.join()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        hanging.close()


def test_an_engine_that_does_not_start_says_why(chat: Chat, tmp_path: Path) -> None:
    options = EngineOptions(str(tmp_path / "nothing"), "float32", 0, 600, 8, 2**28, None)
    agent = VllmAgent(options, chat)
    with pytest.raises(EngineError, match=r"the vLLM engine (failed|is gone|did not start): .*\w"):
        agent.submit([TurnRequest(0, (1, 2), 3, 0)])
    assert agent.engine_pid is None


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (16, 16), (17, 32), (600, 600)])
def test_the_engine_reserves_the_smallest_rank_that_holds_the_adapter(rank: int, room: int) -> None:
    assert lora_rank(rank) == room
