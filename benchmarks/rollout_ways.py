"""The ways to roll out that `benchmarks/rollout.py` compares."""

import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from langchain_core.tools import tool
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.utils.logging import disable_progress_bar

from agents import pocket
from agents.base import TurnRequest
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.transformers_agent import TransformersAgent
from agents.types import Turn, TurnEnd
from envs.calculator import CalculatorEnv
from envs.tasks import stable_seed
from envs.types import Task
from mopd.config import ModelSection
from mopd.student import device_of, dtype_of, model_path

GROUP = 8  # rollouts that share a prompt
TOKENS, CONTEXT = 256, 1024  # of an episode that is played for real
REPEATS = 2
WORDS = 700  # of ordinary words, in every vocabulary used here


@dataclass(frozen=True, slots=True)
class Case:
    """What is played; lengths are in tokens."""

    episodes: int
    turns: int
    prompt: int
    observation: int
    tokens: int = 30  # of a turn, on average
    in_flight: int = 10**6
    model: str = "pocket"

    def of(self, model: str, **changes: int) -> "Case":
        """The same with another model, and other changes."""
        return replace(self, model=model, **changes)  # type: ignore[arg-type]  # all fields but `model` are int

    def prompts(self) -> list[list[int]]:
        """One for each episode; those of a group are equal, and no two others begin alike."""
        rng = random.Random(1)
        groups = -(-self.episodes // GROUP)
        drawn = [[rng.randrange(10, WORDS) for _ in range(self.prompt)] for _ in range(groups)]
        return [drawn[i // GROUP] for i in range(self.episodes)]

    def turn_lengths(self) -> list[list[int]]:
        """Of each episode, its turns'."""
        rng = random.Random(0)
        least, most = self.tokens // 3, self.tokens * 5 // 3
        return [[rng.randint(least, most) for _ in range(self.turns)] for _ in range(self.episodes)]

    def final_lengths(self) -> list[int]:
        """Of whole transcripts."""
        between = (self.turns - 1) * self.observation
        return [self.prompt + sum(turns) + between for turns in self.turn_lengths()]


def load(case: Case) -> tuple[Any, Chat]:
    """The model in eval mode, and a chat in which no turn ends before its scripted length."""
    disable_progress_bar()
    section = ModelSection(name=case.model)
    device = device_of(section)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if case.model == "gemma-270m-shape":
        torch.manual_seed(0)
        config = Gemma3TextConfig(
            vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
            num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512,
            eos_token_id=None,
        )  # fmt: skip
        model: Any = Gemma3ForCausalLM(config)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            model_path(case.model), dtype=dtype_of(section, device)
        )
    chat = Chat(AutoTokenizer.from_pretrained(pocket.PATH))
    chat.eos_id = -1
    return model.eval().to(device), chat


def ours(model: Any, chat: Chat, case: Case) -> list[list[int]]:
    """Every turn follows the one before at once; a new episode begins where one ends."""
    transcripts, left = case.prompts(), case.turn_lengths()
    room = min(case.in_flight, case.episodes)
    agent = TransformersAgent(model, chat, max_context=2**31, max_episodes=room)
    observation = [5] * case.observation

    def start(episodes: Sequence[int]) -> None:
        agent.submit([TurnRequest(i, transcripts[i], left[i].pop(0), i) for i in episodes])

    transcripts = [list(prompt) for prompt in transcripts]
    to_come = list(range(case.episodes))
    start(to_come[:room])
    del to_come[:room]
    playing = case.episodes
    while playing:
        for turn in agent.advance():
            i = turn.episode
            transcripts[i] += turn.token_ids
            if left[i]:
                transcripts[i] += observation
                start([i])
                continue
            agent.release(i)
            playing -= 1
            if to_come:
                start([to_come.pop(0)])
    return transcripts


@torch.no_grad()
def anew(model: Any, chat: Chat, case: Case) -> list[list[int]]:
    """What most loops do: all episodes generate a turn, then all observe, then all generate."""
    transcripts, lengths = [list(prompt) for prompt in case.prompts()], case.turn_lengths()
    for number in range(case.turns):
        for transcript in transcripts if number else ():
            transcript += [5] * case.observation
        longest, tokens = max(map(len, transcripts)), max(turns[number] for turns in lengths)
        padded = [[0] * (longest - len(ids)) + ids for ids in transcripts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in transcripts]
        ids_BT = model.generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
            top_k=0,
        )
        said = ids_BT[:, longest:].tolist()
        for transcript, ids, turns in zip(transcripts, said, lengths, strict=True):
            transcript += ids[: turns[number]]
    return transcripts


class Calculator(CalculatorEnv):
    """The environment with a tool that takes up to `most_s` seconds, by its task and call."""

    most_s = 0.0

    def make_tools(self) -> Sequence[Any]:
        """The tool, made slow."""
        (inner,) = super().make_tools()

        @tool
        def calculate(expression: str) -> str:
            """Calculate."""
            assert self.current_task is not None
            drawn = random.Random(f"{self.current_task.id} {len(self.transcript)} {expression}")
            time.sleep(drawn.random() * self.most_s)
            return str(inner.invoke({"expression": expression}))

        return (calculate,) if self.most_s else (inner,)


class SlowCalculator(Calculator):
    """Tools of 0 to 1 s."""

    most_s = 1.0


def clock_of(model: Any) -> Callable[[], float]:
    """On a CPU, processor time of one thread: others on the machine then matter less."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    return time.perf_counter if on_gpu else time.process_time


def played(way: str, make_env: type[Calculator], tasks: int) -> tuple[float, int, float]:
    """Seconds, sampled tokens and success of `GROUP` rollouts of each task.

    Wall seconds where tools are slow, and else those of `clock_of`.
    """
    model, chat = load(Case(0, 0, 0, 0))
    env = make_env()
    chat = Chat(chat.tokenizer, env.schemas())
    agent = TransformersAgent(
        model, chat, max_context=CONTEXT, max_episodes=tasks * GROUP,
        reproducible=way != "as soon as they can",
    )  # fmt: skip
    drawn = [env.task(stable_seed(0, "task", place)) for place in range(tasks)]  # as trl.dataset
    now = time.perf_counter if make_env.most_s else clock_of(model)
    seconds, found = [], (0, 0.0)
    for _ in range(REPEATS):
        started = now()
        if way == "all wait for all, each turn":
            found = _turn_by_turn(agent, make_env, [t for t in drawn for _ in range(GROUP)])
        else:
            groups = rollout_groups(
                agent, make_env, drawn, GROUP, seed=0, max_new_tokens=TOKENS,
                max_context=CONTEXT, tool_workers=tasks * GROUP,
            )  # fmt: skip
            all_of = [t for group in groups for t in group.trajectories]
            rewards = sum(t.reward for t in all_of) / len(all_of)
            found = sum(t.sampled_tokens for t in all_of), rewards
        seconds.append(now() - started)
    return min(seconds), *found


def _turn_by_turn(
    agent: TransformersAgent, make_env: type[Calculator], tasks: Sequence[Task]
) -> tuple[int, float]:
    """The same engine without rollout_groups: a turn of all, then the tools of all."""
    envs = [make_env() for _ in tasks]
    transcripts = [
        agent.chat.prompt_ids(env.reset(options={"task": task})[0])
        for env, task in zip(envs, tasks, strict=True)
    ]
    seeds = [stable_seed(0, i // GROUP, task.id, i % GROUP) for i, task in enumerate(tasks)]
    left = [TOKENS] * len(tasks)
    speaking, tokens = set(range(len(tasks))), 0
    with ThreadPoolExecutor(len(tasks)) as pool:
        while speaking:
            agent.submit(
                [TurnRequest(i, transcripts[i], left[i], seeds[i]) for i in sorted(speaking)]
            )
            said: list[Turn] = []
            while len(said) < len(speaking):
                said += agent.advance()
            for turn in said:
                transcripts[turn.episode] += turn.token_ids
                left[turn.episode] -= len(turn.token_ids)
                tokens += len(turn.token_ids)
            steps = [pool.submit(envs[turn.episode].step, turn.message) for turn in said]
            for turn, step in zip(said, steps, strict=True):
                i, observation = turn.episode, step.result()[0]
                transcripts[i] += agent.chat.continuation_ids(observation) if observation else []
                over = envs[i].stop_reason is not None or turn.end is not TurnEnd.END_OF_TURN
                if over or len(transcripts[i]) >= CONTEXT or left[i] <= 0:
                    speaking.discard(i)
                    agent.release(i)
    return tokens, sum(env.verdict.reward for env in envs if env.verdict) / len(envs)


def played_by_trl(tasks: int) -> tuple[float, int, float]:
    """Seconds, sampled tokens and success of the rollouts that a GRPOTrainer makes."""
    warnings.filterwarnings("ignore")
    from trl import GRPOConfig, GRPOTrainer

    from envs import trl

    model, chat = load(Case(0, 0, 0, 0))
    tokenizer = chat.tokenizer
    tokenizer.response_template = trl.RESPONSE_TEMPLATE  # type: ignore[attr-defined]  # TRL's own
    factory = trl.trl_environment("calculator")
    rows = list(trl.dataset(factory, tasks))
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, max_steps=1, per_device_train_batch_size=tasks * GROUP,
            num_generations=GROUP, max_completion_length=TOKENS, report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=None, disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, processing_class=tokenizer, args=arguments,
            reward_funcs=trl.verdict_reward, environment_factory=factory,
            train_dataset=trl.dataset(factory, tasks),
        )  # fmt: skip
        trainer.model.train()
        seconds: list[float] = []
        inputs = [row for row in rows for _ in range(GROUP)]
        now = clock_of(model)
        for _ in range(REPEATS):
            started = now()
            made = trainer._generate_and_score_completions([dict(row) for row in inputs])
            seconds.append(now() - started)
        sampled = made["completion_mask"] * made.get("tool_mask", 1)
        rewards = trainer._metrics["train"]["reward"][-1]
    return min(seconds), int(sampled.sum()), float(rewards)
