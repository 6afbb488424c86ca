"""OpenAI-compatible servers: vLLM's real one, one without tokens, and servers that misbehave."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from openai_servers import Answer, Proxy, chat_only, serving, vllm_server
from transformers import AutoModelForCausalLM

import agents.server_http
import envs
from agents import pocket
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.server_agent import (
    ServerAgent,
    served_model,
    why_no_adapters,
    why_no_tokens,
)
from agents.server_http import RefusedError, Server, ServerError
from agents.transformers_agent import TransformersAgent
from agents.types import Trajectory
from envs.base import ToolEnv
from envs.evaluate import main as evaluate
from envs.play import main as play_command
from envs.run import main as run
from mopd.config import Config
from mopd.run_folder import RunFolder
from mopd.student import load_student, load_tokenizer
from mopd.sync import FolderWeights, WrongWeightsError, check_engine, synced

ROOT = Path(__file__).parent.parent
MODEL = str(pocket.PATH)
SMALL = shlex.split("--env calculator --set env.level=1 --set rollout.engine=server")


def calculator() -> ToolEnv:
    return envs.make("calculator")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(load_tokenizer(Config().model), calculator().schemas())


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture
def proxy(vllm: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, str]]:
    """A proxy before vLLM's server, and its address."""
    monkeypatch.setattr(agents.server_http, "PAUSES_S", (0.01, 0.02))
    between = Proxy(vllm)
    with serving(between) as url:
        yield between, url


def agent(url: str, chat: Chat, *, timeout_s: float = 60, **options: Any) -> ServerAgent:
    options = {"max_context": 600, "max_episodes": 16, **options}
    return ServerAgent(Server(url, timeout_s=timeout_s), MODEL, chat, **options)


def play(agent: Any, tasks: int = 4, group_size: int = 4, seed: int = 0) -> list[Trajectory]:
    drawn = [calculator().task(number) for number in range(tasks)]
    groups = rollout_groups(
        agent, calculator, drawn, group_size, seed=seed, max_new_tokens=120, max_context=600
    )
    return [t for group in groups for t in group.trajectories]


def of_turn(body: dict[str, Any] | None) -> bool:
    return body is not None and "prompt" in body


@pytest.mark.vllm
class TestVllmServer:
    def test_greedy_rollouts_equal_those_of_transformers(self, vllm: str, chat: Chat) -> None:
        model = AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32)
        ours = play(agent(vllm, chat, temperature=0.0), tasks=16, group_size=1)
        theirs = play(
            TransformersAgent(model, chat, temperature=1e-6, max_context=600), 16, group_size=1
        )
        for one, other in zip(ours, theirs, strict=True):
            assert (one.token_ids, one.sampled_mask) == (other.token_ids, other.sampled_mask)

    def test_it_can_train(self, vllm: str) -> None:
        server = Server(vllm, timeout_s=60)
        assert served_model(server, "pocket") == MODEL
        assert why_no_tokens(server, MODEL) == why_no_adapters(server) == ""

    def test_adapters_are_loaded_and_unloaded_while_it_runs(
        self, vllm: str, chat: Chat, tmp_path: Path
    ) -> None:
        student = load_student(Config().model, Config().lora, seed=0)
        weights = FolderWeights(agent(vllm, chat), student, tmp_path / "sync")
        for step in range(3):
            with synced(weights, student, f"step-{step}", 1.0, pytest.fail):
                models = Server(vllm, timeout_s=60).get("/v1/models")["data"]
                assert [m["id"].split("-")[1] for m in models if m["parent"]] == [str(step)]
            assert check_engine(weights, student, 1.0) < 1e-5
            move(student)
        weights.close()

    def test_a_wrong_adapter_is_found_before_anything_is_learnt(
        self, proxy: tuple[Proxy, str], chat: Chat, tmp_path: Path
    ) -> None:
        between, url = proxy
        student = load_student(Config().model, Config().lora, seed=0)
        weights = FolderWeights(agent(url, chat), student, tmp_path / "sync")
        move(student)
        weights.push("step-1")
        check_engine(weights, student, 1.0)
        old = {"lora_name": "old", "lora_path": str(tmp_path / "old")}
        shutil.copytree(tmp_path / "sync" / "step-1", old["lora_path"])
        assert isinstance(between.forward("/v1/load_lora_adapter", old), bytes)

        def serve_the_old(path: str, asked: dict[str, Any] | None) -> bytes | None:
            if asked is None or not str(asked.get("model", "")).startswith("step-2"):
                return None
            said = between.forward(path, asked | {"model": "old"})
            assert isinstance(said, bytes)
            return said.replace(b'"model":"old"', f'"model":"{asked["model"]}"'.encode())

        between.meddle = serve_the_old
        move(student)
        weights.push("step-2")
        with pytest.raises(WrongWeightsError, match="stale adapter"):
            check_engine(weights, student, 1.0)
        between.forward("/v1/unload_lora_adapter", old)
        weights.close()

    def test_a_server_that_answers_500_now_and_then_costs_nothing(
        self, proxy: tuple[Proxy, str], chat: Chat
    ) -> None:
        between, url = proxy
        # Greedy: what is in a batch differs between the two, and with it the last bits.
        whole = play(agent(url, chat, temperature=0.0))
        tried: Counter[str] = Counter()

        def fail(path: str, body: dict[str, Any] | None) -> Answer | None:
            turn = json.dumps(body)
            tried[turn] += 1
            return (500, {"error": "down"}) if of_turn(body) and tried[turn] < 3 else None

        between.meddle = fail
        played = play(agent(url, chat, temperature=0.0))
        assert [t.error for t in played] == [""] * len(played)
        assert [t.token_ids for t in played] == [t.token_ids for t in whole]

    @pytest.mark.parametrize("what", ["500", "hangs", "another model", "another prompt", "no ids"])
    def test_an_episode_that_gets_no_answer_is_lost_alone(
        self, what: str, proxy: tuple[Proxy, str], chat: Chat
    ) -> None:
        between, url = proxy
        lost = chat.prompt_ids(calculator().reset(options={"task": calculator().task(1)})[0])
        done = threading.Event()

        def fail(path: str, body: dict[str, Any] | None) -> Answer | bytes | None:
            if body is None or body["prompt"][: len(lost)] != lost:
                return None
            if what == "500":
                return 500, {"error": "down"}
            if what == "hangs":
                done.wait(60)
                return None
            said = between.forward(path, body)
            assert isinstance(said, bytes)
            answer = json.loads(said)
            if what == "another model":
                answer["model"] = "another"
            elif what == "another prompt":
                answer["choices"][0]["prompt_token_ids"].pop()
            else:
                answer["choices"][0]["token_ids"] = None
            return json.dumps(answer).encode()

        between.meddle = fail
        played = play(agent(url, chat, timeout_s=5 if what == "hangs" else 60))
        done.set()
        errored = [t for t in played if t.errored]
        assert {t.task.id for t in errored} == {calculator().task(1).id}
        assert len(errored) == 4
        assert all(t.verdict is None and t.error.startswith("EngineError: ") for t in errored)

    def test_a_run_goes_on_without_what_a_bad_server_lost(
        self, proxy: tuple[Proxy, str], tmp_path: Path
    ) -> None:
        between, url = proxy
        loaded: list[str] = []
        turns = iter(range(10**6))

        def fail(path: str, body: dict[str, Any] | None) -> Answer | None:
            if path == "/v1/load_lora_adapter" and body is not None and body["lora_name"]:
                loaded.append(body["lora_name"])
            if body is None or len(body.get("prompt", ())) < 20:  # probes have short prompts
                return None
            # The third adapter is that of the second step's first try.
            lost = len(loaded) == 3 or next(turns) % 5 == 0
            return (400, {"error": "refused"}) if lost else None

        between.meddle = fail
        out = train(url, tmp_path / "run", steps=3)
        assert "rollouts errored and are left out, such as: EngineError: " in out
        assert "step 2: 8 of 8 rollouts errored, such as: EngineError: " in out
        assert "playing them once more" in out
        folder = RunFolder(tmp_path / "run")
        lines = [json.loads(x) for x in folder.metrics_path.read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert sum(line["errors"] for line in lines) > 0
        for step in (1, 2, 3):
            for text in folder.rollouts_path(step).read_text().splitlines():
                record = json.loads(text)
                assert (record["stop_reason"] == "error") == (record["verdict"] is None)
                if record["stop_reason"] == "error":
                    assert record.get("teacher_logprobs") is None

    def test_it_evaluates_and_plays(
        self, vllm: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        address = ["--set", f"rollout.server={vllm}"]
        report = tmp_path / "report.json"
        command = [*SMALL, *address, "--tasks", "2", "--samples", "2", "--json", str(report)]
        assert evaluate(command) == 0
        assert json.loads(report.read_text())["rollouts"] == 4
        assert play_command([*SMALL, *address, "--no-pause"]) == 0
        assert "reward" in capsys.readouterr().out


def move(student: torch.nn.Module) -> None:
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)


def train(url: str, folder: Path, steps: int) -> str:
    """What a small run prints."""
    settings = (
        f"--steps {steps} --tasks-per-step 2 --group-size 4 --set eval.tasks=2 "
        f"--set eval.samples=4 --set peers.without_evidence=anchor --set rollout.server={url}"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "envs.run", *SMALL, *settings.split(), "--out", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout


class TestWithoutTokens:
    """A server that speaks in messages only."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        with serving(chat_only) as url:
            yield url

    def test_training_is_refused_with_the_reason(
        self, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run([*SMALL, "--set", f"rollout.server={url}", "--dry-run"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "cannot train: the server's completions have no token ids" in err

    def test_it_evaluates_through_native_tool_calls(
        self, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = tmp_path / "report.json"
        command = [*SMALL, "--set", f"rollout.server={url}", "--tasks", "4", "--samples", "1"]
        assert evaluate([*command, "--json", str(report)]) == 0
        numbers = json.loads(report.read_text())
        assert numbers["stop_reasons"] == {"answered": 4}
        records = report.with_suffix(".rollouts.jsonl").read_text().splitlines()[1:]
        roles = [m["role"] for m in json.loads(records[0])["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "assistant"]
        assert json.loads(records[0])["token_ids"] == []
        assert "37" in json.loads(records[0])["messages"][-1]["content"]

    def test_it_is_played_with(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert play_command([*SMALL, "--set", f"rollout.server={url}", "--no-pause"]) == 0
        assert "It is \\boxed{37}." in capsys.readouterr().out


def answers(*codes: int) -> Any:
    left = list(codes)

    def handle(path: str, body: Any) -> Answer:
        return left.pop(0) if left else 200, {"said": "yes"}

    return handle


@pytest.mark.parametrize("codes", [(), (500,), (503, 429), (408, 500)])
def test_a_bad_moment_is_waited_for(codes: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.server_http, "PAUSES_S", (0.01, 0.02))
    with serving(answers(*codes)) as url:
        assert Server(url + "/v1", timeout_s=5).get("/v1/models") == {"said": "yes"}


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        ((500, 500, 500), ServerError, r"answered 500: .*\(after 3 attempts\)"),
        ((404,), RefusedError, "answered 404"),
    ],
)
def test_what_does_not_pass_is_an_error_that_names_the_address(
    codes: Sequence[int],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents.server_http, "PAUSES_S", (0.01, 0.02))
    with serving(answers(*codes)) as url, pytest.raises(error, match=message) as caught:
        Server(url, timeout_s=5).post("/v1/x", {})
    assert url in str(caught.value)


def test_nobody_there_is_told_with_the_way_to_start_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents.server_http, "PAUSES_S", (0.01, 0.02))
    assert run([*SMALL, "--set", "rollout.server=http://127.0.0.1:9", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert "http://127.0.0.1:9/v1/models: " in err
    assert "--model MODEL --enable-lora" in err


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.server_http, "PAUSES_S", (0.01, 0.02))
    done = threading.Event()

    def hang(path: str, body: Any) -> Answer:
        done.wait(20)
        return 200, {}

    with serving(hang) as url:
        started = time.monotonic()
        with pytest.raises(ServerError, match="timed out"):
            Server(url, timeout_s=0.2).get("/v1/models")
        assert time.monotonic() - started < 10
        done.set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("rollout.engine=server", "rollout.engine=server and rollout.server=http://... go togeth"),
        ("rollout.server=http://x", "rollout.engine=server and rollout.server=http://... go toge"),
        ("rollout.server_adapters=x", "rollout.server_adapters is for rollout.engine=server"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--env", "calculator", "--dry-run", "--set", settings]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
