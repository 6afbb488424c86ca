"""Weights on their way into an engine: what arrives is proven, and what does not stops the run."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import envs
from agents.base import EngineError
from agents.chat import Chat
from agents.transformers_agent import TransformersAgent
from agents.vllm_agent import VllmAgent
from envs.evaluate import main as evaluate
from envs.run import main
from mopd.config import Config, ModelSection
from mopd.engines import vllm_agent
from mopd.run_folder import RunFolder
from mopd.student import acting, load_student, load_tokenizer
from mopd.sync import FolderWeights, SharedWeights, WrongWeightsError, check_engine, synced, trained

ROOT = Path(__file__).parent.parent
CONFIG = Config.model_validate({"rollout": {"max_context": 600, "max_concurrent": 16}})
SETTINGS = shlex.split(
    "--env calculator --tasks-per-step 2 --group-size 4 --set env.level=1 --set eval.tasks=4 "
    "--set eval.samples=2 --set checkpoint.every=1 --set optim.micro_batch=4 "
    "--set peers.without_evidence=anchor --set rollout.engine=vllm --steps 4"
)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(load_tokenizer(CONFIG.model), envs.make("calculator").schemas())


@pytest.fixture
def student() -> PeftModel:
    return load_student(CONFIG.model, CONFIG.lora, seed=0)


@pytest.fixture(scope="module")
def agent(chat: Chat) -> Iterator[VllmAgent]:
    agent = vllm_agent(CONFIG, chat, adapter_rank=CONFIG.lora.r)
    yield agent
    agent.close()


def move(student: PeftModel, size: float = 0.01) -> None:
    """A step of training: the adapter's weights change a little."""
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


class Bare(SharedWeights):
    """An engine that the adapter never reached."""

    def student(self) -> AbstractContextManager[None]:
        return acting(self._student, None)


@pytest.mark.parametrize("merge", [True, False])
def test_an_engine_in_the_trainers_model_says_what_the_trainer_computes(
    chat: Chat, student: PeftModel, merge: bool
) -> None:
    agent = TransformersAgent(student, chat, max_context=600)
    weights = SharedWeights(agent, student, merge=merge)
    assert not trained(student)
    for step in range(3):
        with synced(weights, student, f"step-{step}", 1.0, pytest.fail):
            assert agent.version == f"step-{step}"
        assert check_engine(weights, student, 1.0) < 1e-5
        move(student)
        assert trained(student)


@pytest.mark.parametrize("merge", [True, False])
def test_what_half_precision_rounds_is_no_other_adapter(chat: Chat, merge: bool) -> None:
    half = ModelSection(dtype="bfloat16")
    student = load_student(half, CONFIG.lora, seed=0)
    agent = TransformersAgent(student, chat, max_context=600)
    for size in (1e-4, 1e-3, 1e-2, 1e-1):
        move(student, size)
        check_engine(SharedWeights(agent, student, merge=merge), student, 1.0)
    with pytest.raises(WrongWeightsError, match="the adapter is missing in the engine"):
        check_engine(Bare(agent, student, merge=merge), student, 1.0)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2])
def test_an_adapter_that_is_missing_stops_the_run_from_the_first_step_on(
    chat: Chat, student: PeftModel, size: float
) -> None:
    weights = Bare(TransformersAgent(student, chat, max_context=600), student, merge=False)
    check_engine(weights, student, 1.0)  # nothing to miss yet
    move(student, size)
    with pytest.raises(WrongWeightsError, match="the adapter is missing in the engine"):
        check_engine(weights, student, 1.0)


def test_another_base_model_stops_the_run(chat: Chat, student: PeftModel) -> None:
    other = load_student(CONFIG.model, CONFIG.lora, seed=0)
    other.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight.data *= 1.5
    weights = SharedWeights(TransformersAgent(other, chat, max_context=600), other, merge=False)
    with pytest.raises(WrongWeightsError, match="base model is not the trainer's"):
        check_engine(weights, student, 1.0)


def test_another_temperature_is_other_weights_too(chat: Chat, student: PeftModel) -> None:
    agent = TransformersAgent(student, chat, max_context=600, temperature=0.8)
    with pytest.raises(WrongWeightsError):
        check_engine(SharedWeights(agent, student, merge=False), student, 1.0)


@pytest.mark.vllm
class TestVllm:
    def test_every_push_arrives_and_the_one_before_is_deleted(
        self, agent: VllmAgent, student: PeftModel, tmp_path: Path
    ) -> None:
        weights = FolderWeights(agent, student, tmp_path / "sync")
        for step in range(4):
            with synced(weights, student, f"step-{step}", 1.0, pytest.fail):
                assert [path.name for path in (tmp_path / "sync").iterdir()] == [f"step-{step}"]
            assert check_engine(weights, student, 1.0) < 1e-5
            move(student)
        weights.close()
        assert not (tmp_path / "sync").exists()

    def test_a_name_and_an_id_that_come_again_are_stale_and_are_caught(
        self,
        agent: VllmAgent,
        student: PeftModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        weights = FolderWeights(agent, student, tmp_path / "sync")
        move(student)
        weights.push("step-1")
        check_engine(weights, student, 1.0)
        # What happens where ids are not new: vLLM is told nothing, and given the same again.
        monkeypatch.setattr(agent, "remove_adapter", lambda adapter: None)
        monkeypatch.setattr(agent, "_adapters", agent._adapters - 1)
        move(student)
        weights.push("step-1")
        with pytest.raises(WrongWeightsError, match="stale adapter"):
            check_engine(weights, student, 1.0)
        weights.push("step-1")
        check_engine(weights, student, 1.0)

    def test_an_adapter_that_is_missing_is_caught(
        self,
        agent: VllmAgent,
        student: PeftModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        weights = FolderWeights(agent, student, tmp_path / "sync")
        move(student, 1e-5)
        weights.push("step-1")
        monkeypatch.setattr(agent, "use_adapter", lambda _: VllmAgent.use_adapter(agent, None))
        with pytest.raises(WrongWeightsError, match="the adapter is missing in the engine"):
            check_engine(weights, student, 1.0)

    def test_an_engine_that_died_is_started_again_and_proven_again(
        self, agent: VllmAgent, student: PeftModel, tmp_path: Path
    ) -> None:
        weights = FolderWeights(agent, student, tmp_path / "sync")
        move(student)
        weights.push("step-1")
        check_engine(weights, student, 1.0)
        assert agent.engine_pid is not None
        os.kill(agent.engine_pid, signal.SIGKILL)
        told: list[str] = []
        with synced(weights, student, "step-2", 1.0, told.append):
            assert check_engine(weights, student, 1.0) < 1e-5
        assert all("the vLLM engine is gone" in line for line in told)

    def test_an_adapter_that_cannot_be_read_is_the_engines_failure(
        self, agent: VllmAgent, student: PeftModel, tmp_path: Path
    ) -> None:
        weights = FolderWeights(agent, student, tmp_path / "sync")
        weights.push("step-1")
        (tmp_path / "sync" / "step-1" / "adapter_model.safetensors").unlink()
        with pytest.raises(EngineError):
            check_engine(weights, student, 1.0)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "envs.run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def metrics(folder: Path) -> list[dict[str, object]]:
    path = RunFolder(folder).metrics_path
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.005)


def engine_of(process: subprocess.Popen[str]) -> int:
    """Process id of the run's engine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        if b"agents.vllm_worker" in words and int(parent) == process.pid:
            return int(path.parent.name)
    raise AssertionError("the run has no engine")


def without_timing(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k != "timing"} for line in metrics(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    out, err = start(*SETTINGS, "--out", folder).communicate(timeout=300)
    assert err == "", out
    return folder


@pytest.mark.vllm
class TestRun:
    def test_a_run_leaves_no_adapter_on_its_way_and_names_each(self, whole: Path) -> None:
        assert not (whole / "sync").exists()
        assert (whole / "adapter" / "adapter_model.safetensors").is_file()
        for step in range(1, 5):
            lines = RunFolder(whole).rollouts_path(step).read_text().splitlines()
            assert {json.loads(x)["adapter_version"] for x in lines} == {f"step-{step - 1}"}

    def test_the_engine_evaluates_its_adapter(
        self, whole: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = "--env calculator --set env.level=1 --set rollout.engine=vllm --tasks 2 --adapter"
        assert evaluate([*command.split(), str(whole / "adapter"), "--samples", "2"]) == 0
        assert f"{whole / 'adapter'}: 2 held-out tasks x 2" in capsys.readouterr().out

    def test_killed_and_resumed_it_equals_one_that_nothing_disturbed(
        self, whole: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        process = start(*SETTINGS, "--out", folder)
        wait_until(process, lambda: len(metrics(folder)) >= 2)
        engine = engine_of(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for_end(engine)
        out, err = start("--resume", folder).communicate(timeout=300)
        assert err == "", out
        assert without_timing(folder) == without_timing(whole)
        weights = Path("adapter", "adapter_model.safetensors")
        assert (folder / weights).read_bytes() == (whole / weights).read_bytes()

    def test_an_engine_killed_in_the_middle_of_a_step_does_not_end_the_run(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        process = start(*SETTINGS, "--out", folder)
        wait_until(process, lambda: len(metrics(folder)) >= 1)
        os.kill(engine_of(process), signal.SIGKILL)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), out
        assert "the vLLM engine is gone: ended by signal 9" in out
        assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
        for step in range(1, 5):
            for line in RunFolder(folder).rollouts_path(step).read_text().splitlines():
                record = json.loads(line)
                if record["stop_reason"] == "error":  # and so takes no part in the loss
                    assert record["verdict"] is None
                    assert record.get("teacher_logprobs") is None


def wait_for_end(pid: int) -> None:
    """An engine ends when the run that it serves is gone."""
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "the engine outlives its run"
        time.sleep(0.05)


def test_a_run_without_vllm_is_told_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mopd.engines.vllm_package", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert main([*SETTINGS, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: rollout.engine=vllm: vLLM is not installed; ")


@pytest.mark.vllm
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_dry_run_names_the_engine(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SETTINGS, "--set", f"rollout.engine={engine}", "--dry-run"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("# engine:"))
    assert engine in line
    assert "128 episodes at once" in line
