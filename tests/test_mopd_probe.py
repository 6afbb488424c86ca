"""What peers do to success and to a teacher's scores, on rollouts whose numbers are known."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from openai_servers import Answer, chat_only, serving, vllm_server
from transformers import AutoTokenizer

import envs
from agents import pocket
from agents.base import TurnRequest
from agents.by_message import play_episode, play_episodes
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.scripted import ScriptedAgent
from agents.types import TrajectoryGroup
from envs.base import ToolEnv
from envs.types import Message, Task, ToolCall
from mopd.analysis import (
    CONDITIONS,
    agreement,
    peer_effect,
    peers_of_judged_rollouts,
    peers_of_new_rollouts,
    teacher_scores,
    without_peers,
)
from mopd.config import Config, LoraSection, TeacherSection
from mopd.evaluate import held_out_tasks
from mopd.probe import main
from mopd.student import load_student, save_adapter
from mopd.teacher import LocalTeacher

TASKS = (Task("sum", "What is 17 + 4?", "21"), Task("product", "What is 3 * 7?", "21"))
# Of the first task two successes that are twins, another success, a failure; of the second one
# success and three failures, two of them twins.
SAID = (
    ("It is \\boxed{21}.", "It is \\boxed{21}.", "So \\boxed{21}.", "It is \\boxed{4}."),
    ("It is \\boxed{21}.", "It is \\boxed{1}.", "It is \\boxed{1}.", "It is \\boxed{2}."),
)
CONFIG = Config()
LIMITS = {"seed": 0, "max_new_tokens": 100, "max_context": 500}


def calculator() -> ToolEnv:
    return envs.make("calculator")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(pocket.PATH), envs.make("calculator").schemas())


@pytest.fixture(scope="module")
def groups(chat: Chat) -> tuple[TrajectoryGroup, ...]:
    agent = ScriptedAgent(chat, lambda episode, _: SAID[episode // 4][episode % 4])
    return rollout_groups(agent, calculator, TASKS, 4, **LIMITS)


def counts(groups: Sequence[TrajectoryGroup], condition: str) -> dict[tuple[int, int], str]:
    contexts = peers_of_new_rollouts(groups, CONDITIONS[condition], CONFIG)
    return {
        place: "S" * len(context.successes) + "F" * len(context.failures)
        for place, context in contexts.items()
    }


def test_a_new_rollout_finds_the_distinct_peers_of_the_other_places(
    groups: tuple[TrajectoryGroup, ...],
) -> None:
    # In place 2 of the first task only the twins are left, which show one success; in place 0 of
    # the second task there is none.
    places = [*((0, i) for i in range(4)), *((1, i) for i in (1, 2, 3))]
    assert counts(groups, "1S") == dict.fromkeys(places, "S")
    assert counts(groups, "2S") == {(0, 0): "SS", (0, 1): "SS", (0, 3): "SS"}
    assert counts(groups, "2S+1F") == {(0, 0): "SSF", (0, 1): "SSF"}
    first = dict.fromkeys([(0, 0), (0, 1), (0, 2)], "F")
    second = {(1, 0): "FF", (1, 1): "FF", (1, 2): "FF", (1, 3): "F"}
    assert counts(groups, "all F") == first | second


def test_what_a_rollout_said_does_not_choose_the_evidence_that_it_is_compared_with(
    groups: tuple[TrajectoryGroup, ...],
) -> None:
    first, *others = groups[0].trajectories
    failed = replace(first, messages=groups[0].trajectories[3].messages, verdict=others[2].verdict)
    changed = (TrajectoryGroup(TASKS[0], (failed, *others)), groups[1])
    for slots in CONDITIONS.values():
        before, after = (peers_of_new_rollouts(g, slots, CONFIG) for g in (groups, changed))
        assert before.get((0, 0)) == after.get((0, 0))


def test_a_judged_rollout_never_sees_its_twin(groups: tuple[TrajectoryGroup, ...]) -> None:
    contexts = peers_of_judged_rollouts(groups, ("all", "all"), CONFIG)
    assert [t.index for t in contexts[0, 0].successes] == [2]
    assert [t.index for t in contexts[1, 1].failures] == [3]
    assert contexts[1, 0].successes == ()


class Follower(ScriptedAgent):
    """Answers rightly where it reads of a correct solution, wrongly elsewhere."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, lambda episode, _: self.answers[episode])
        self.answers: dict[int, str] = {}

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        for request in requests:
            shown = "A correct solution:" in self.chat.tokenizer.decode(request.token_ids)
            self.answers[request.episode] = f"It is \\boxed{{{21 if shown else 0}}}."
        super().submit(requests)


def test_the_effect_is_counted_on_the_same_rollouts_paired_by_task(
    chat: Chat, groups: tuple[TrajectoryGroup, ...]
) -> None:
    rooms = []

    def agent_with_room(max_context: int) -> Follower:
        rooms.append(max_context)
        return Follower(chat)

    def effect(condition: str):  # type: ignore[no-untyped-def]
        contexts = peers_of_new_rollouts(groups, CONDITIONS[condition], CONFIG)
        return peer_effect(agent_with_room, chat, calculator, groups, contexts, CONFIG)

    shown = effect("1S")
    assert (shown.rollouts, shown.tasks) == (7, 2)
    assert shown.alone.mean == pytest.approx((3 / 4 + 0) / 2)
    assert shown.with_peers.mean == 1.0
    assert shown.gain.mean == pytest.approx((1 / 4 + 1) / 2)
    warned = effect("1F")
    assert warned.alone.mean == pytest.approx((3 / 3 + 1 / 4) / 2)
    assert warned.with_peers.mean == 0.0
    one_task = effect("2S+1F")
    assert (one_task.rollouts, one_task.tasks, one_task.gain) == (2, 1, None)
    assert all(room > CONFIG.rollout.max_context for room in rooms)


def test_a_given_prompt_stands_in_front_of_the_same_episode(chat: Chat) -> None:
    agent = ScriptedAgent(chat, ["It is \\boxed{21}."])
    prompt = tuple(chat.encode("<|im_start|>user\nread me<|im_end|>\n<|im_start|>assistant\n"))

    def play(*prompts: Sequence[int]) -> tuple[TrajectoryGroup, ...]:
        return rollout_groups(agent, calculator, TASKS, 1, prompts=prompts, **LIMITS)

    for group in play(prompt, prompt):
        (trajectory,) = group.trajectories
        assert trajectory.token_ids[: trajectory.prompt_length] == prompt
        assert trajectory.messages[1].content == group.task.prompt
        assert trajectory.verdict.success
    with pytest.raises(ValueError, match="got 1 prompts for 2 tasks"):
        play(prompt)


def test_scores_are_the_base_weights_mean_log_probability_of_the_sampled_tokens(
    chat: Chat, groups: tuple[TrajectoryGroup, ...]
) -> None:
    student = load_student(CONFIG.model, CONFIG.lora, seed=0)
    with torch.no_grad():  # an adapter that must make no difference
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    teacher = LocalTeacher(student, TeacherSection(kind="base"), temperature=1.0)
    scores = teacher_scores(teacher, groups, without_peers(groups), CONFIG, chat)
    assert len(scores) == 8
    for (number, index), score in scores.items():
        t = groups[number].trajectories[index]
        ids = torch.tensor([t.token_ids])
        with torch.no_grad(), student.disable_adapter():
            logprobs = student(input_ids=ids).logits[0, :-1].log_softmax(-1)
        wanted = logprobs.gather(-1, ids[0, 1:, None])[torch.tensor(t.sampled_mask[1:]), 0].mean()
        assert score == pytest.approx(float(wanted), abs=1e-4)
    shown = peers_of_judged_rollouts(groups, CONDITIONS["1S"], CONFIG)
    with_peers = teacher_scores(teacher, groups, shown, CONFIG, chat)
    assert with_peers[1, 0] == pytest.approx(scores[1, 0], abs=1e-5)  # it has no successful peer
    assert with_peers[1, 1] != pytest.approx(scores[1, 1], abs=1e-3)


def test_agreement_compares_inside_tasks_only(groups: tuple[TrajectoryGroup, ...]) -> None:
    scores = {(0, 0): -1.0, (0, 1): -1.0, (0, 2): -3.0, (0, 3): -2.0}  # 2 of 3 pairs
    scores |= {(1, 0): -9.0, (1, 1): -8.0, (1, 2): -9.0}  # one pair wrong, one tie
    found = agreement(groups, scores)
    assert found.tasks == 2
    assert found.auc is not None
    assert found.auc.mean == pytest.approx((2 / 3 + 1 / 4) / 2)


def test_a_speaker_reads_a_given_prompt_in_front_of_the_same_episode() -> None:
    class Reader:
        version = "reader"

        def __init__(self) -> None:
            self.read: list[tuple[str, ...]] = []

        def reply(
            self, transcript: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int
        ) -> Message:
            self.read.append(tuple(message.content for message in transcript))
            if len(self.read) == 1:
                return Message(
                    "assistant", "", (ToolCall("a", "calculate", '{"expression": "21"}'),)
                )
            return Message("assistant", "\\boxed{21}")

    reader, env = Reader(), calculator()
    played = play_episode(reader, env, TASKS[0], prompt=(Message("user", "read me"),))
    assert reader.read == [("read me",), ("read me", "", "21")]
    assert played.messages[1].content == TASKS[0].prompt
    assert played.verdict is not None
    assert played.verdict.success
    with pytest.raises(ValueError, match="got 0 prompts for 1 places"):
        play_episodes(reader, calculator, [(TASKS[0], 0, 0)], at_once=1, prompts=())


def test_the_command_reports_all_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "probe.json"
    options = "--env calculator --level 1 --tasks 3 --samples 4 --seed 1"
    assert main([*options.split(), "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["without_peers"]["samples"] == 4
    assert list(report["with_peers"]) == list(CONDITIONS)
    assert list(report["teacher_auc"]) == ["none", *CONDITIONS]
    out = capsys.readouterr().out
    assert all(name in out for name in CONDITIONS)
    assert "…" not in out


class Pupil(BaseChatModel):
    """Right every other time; of who sees evidence, right where it reads of a correct solution."""

    fails: bool = False
    reads_no_more_than: int = 10**6  # characters
    said: int = 0

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> "Pupil":
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **more: Any
    ) -> ChatResult:
        question = messages[-1].text
        if self.fails or len(question) > self.reads_no_more_than:
            raise ConnectionError("the provider refuses")
        (task,) = [task for task in HELD_OUT if question.startswith(task.prompt)]
        self.said += 1
        right = self.said % 2 == 1
        if question.endswith(CONFIG.prompt.closing):
            right = "A correct solution:\nAttempt " in question
        said = AIMessage(f"Attempt {self.said}: \\boxed{{{task.answer if right else -1}}}")
        return ChatResult(generations=[ChatGeneration(message=said)])

    @property
    def _llm_type(self) -> str:
        return "pupil"


HELD_OUT = held_out_tasks(envs.make("calculator", split="held_out", level=1), 3)
PUPIL = (
    "--env calculator --level 1 --tasks 3 --samples 4 --set rollout.max_concurrent=1 --model "
    f"langchain:{__name__}:"
)


def failing() -> Pupil:
    return Pupil(fails=True)


def short_of_room() -> Pupil:
    return Pupil(reads_no_more_than=max(len(task.prompt) for task in HELD_OUT))


def probed(options: str, folder: Path) -> dict[str, Any]:
    """The report of the command."""
    file = folder / "probe.json"
    assert main([*options.split(), "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_a_chat_model_of_langchain_reads_its_peers_and_has_no_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = probed(PUPIL + "Pupil", tmp_path)
    assert report["engine"] == "langchain"
    assert report["without_peers"]["mean"] == 0.5
    assert report["teacher_auc"] is None
    effects = report["with_peers"]
    assert list(effects) == list(CONDITIONS)
    assert {name: effects[name]["rollouts"] for name in effects} == {
        **dict.fromkeys(("1S", "1S+1F", "1F", "all F"), 12),
        **dict.fromkeys(("2S", "2S+1F"), 6),  # only a failed rollout has two successes beside it
    }
    for name, effect in effects.items():
        assert effect["tasks"] == 3
        assert effect["alone"]["mean"] == (0.0 if name.startswith("2S") else 0.5)
        assert effect["with_peers"]["mean"] == (1.0 if "S" in name else 0.0)
    out = capsys.readouterr().out
    assert all(name in out for name in CONDITIONS)
    assert "AUC" not in out


def test_rollouts_that_error_with_peers_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = probed(PUPIL + "short_of_room", tmp_path)
    assert report["without_peers"]["mean"] == 0.5
    assert [e["rollouts"] for e in report["with_peers"].values()] == [0] * len(CONDITIONS)
    assert "12 of 12 rollouts with peers errored and are left out, such as: " in caplog.text


def test_who_never_answers_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main((PUPIL + "failing").split()) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: every rollout of task ")
    assert "the provider refuses" in err
    assert err.count("\n") == 1


def test_a_server_without_tokens_reads_its_peers_in_its_last_user_message(tmp_path: Path) -> None:
    questions: list[str] = []

    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        if path == "/v1/chat/completions" and body is not None:
            questions.append([m["content"] for m in body["messages"] if m["role"] == "user"][-1])
        return chat_only(path, body)  # which always calculates 30 + 7

    data = tmp_path / "tasks.jsonl"
    rows = [{"question": f"{n}?", "answer": f"#### {37 if n < 2 else n}"} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(handle) as url:
        report = probed(
            f"--env calculator --set env.data={data} --set env.eval_data={data} --tasks 4 "
            f"--samples 2 --set rollout.engine=server --set rollout.server={url}",
            tmp_path,
        )
    assert report["without_peers"]["mean"] == 0.5
    assert report["teacher_auc"] is None
    shown = {name: effect["with_peers"] for name, effect in report["with_peers"].items()}
    assert shown["1S"]["mean"] == 1.0
    assert shown["1F"]["mean"] == shown["all F"]["mean"] == 0.0
    assert shown["1S+1F"] is None
    said = 'call calculate {"expression": "30 + 7"}\nresult: 37\nIt is \\boxed{37}.'
    peer = CONFIG.prompt.first_success.replace("{peer}", said)
    assert f"0?\n\n{peer}\n\n{CONFIG.prompt.closing}" in questions


def engines() -> int:
    """How many vLLM engines this process has beside it."""
    commands = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"PPid:\t{os.getpid()}\n" in status.read_text():
                commands.append(status.with_name("cmdline").read_text())
        except OSError:  # it has ended
            continue
    return sum("agents.vllm_worker" in command for command in commands)


@pytest.mark.vllm
def test_each_engine_with_tokens_plays_with_the_adapter_and_is_closed(tmp_path: Path) -> None:
    student = load_student(CONFIG.model, LoraSection(r=8), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    save_adapter(student, tmp_path / "adapter")
    # Nearly greedy: other seeds hardly matter.
    options = (
        "--env calculator --level 3 --tasks 6 --samples 2 --seed 1 --set rollout.temperature=0.01 "
        "--set rollout.engine="
    )
    adapted = f" --adapter {tmp_path / 'adapter'}"
    base = probed(options + "transformers --alone", tmp_path)
    wanted = probed(options + "transformers" + adapted, tmp_path)
    assert wanted["without_peers"] != base["without_peers"]
    own = probed(options + "vllm" + adapted, tmp_path)
    assert engines() == 0
    with vllm_server(tmp_path / "log") as url:
        served = probed(f"{options}server --set rollout.server={url}{adapted}", tmp_path)
    for got, engine in ((own, "vllm"), (served, "server")):
        assert got | {"with_peers": None} == wanted | {"with_peers": None, "engine": engine}
        for name, effect in wanted["with_peers"].items():
            same = got["with_peers"][name]
            assert (same["tasks"], same["rollouts"]) == (effect["tasks"], effect["rollouts"])
            if effect["gain"]:
                # One rollout of ten may fall the other way: where two tokens are as likely.
                assert same["gain"]["mean"] == pytest.approx(effect["gain"]["mean"], abs=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--env calculater", "there is no environment 'calculater'; expected "),
        ("--env calculator --level 99", "env.level=99: "),
        ("--env calculator --adapter nowhere", "--adapter got nowhere, which holds no adapter_con"),
        ("--env calculator --model langchain:math:pi", "--model langchain:math:pi: it is a float"),
        (
            "--env calculator --set algo=grpo --set prompt.max_tokens=4096",
            "pocket has 2048 positions, but rollout.max_context=1024 and prompt.max_tokens=4096",
        ),
    ],
)
def test_bad_input_is_one_line(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_chat_model_of_langchain_takes_no_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    assert main([*f"{PUPIL}Pupil --adapter".split(), str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --adapter {tmp_path}: langchain:{__name__}:Pupil takes no adap")
    assert err.count("\n") == 1
