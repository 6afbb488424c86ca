"""Our environments in TRL's GRPOTrainer: its contract, and a real short training."""

import importlib.util
import inspect
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import StructuredTool, tool
from transformers.utils import get_json_schema

import envs
from agents import pocket
from envs import trl
from envs.base import EnvLimits
from envs.calculator import CalculatorEnv
from envs.tools import WorldError
from envs.types import Message

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl")
needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs datasets, which comes with trl"
)


def play(environment: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What TRL records when a model says these messages."""
    completion: list[dict[str, Any]] = []
    for message in messages:
        told: dict[str, Any] = {"role": "assistant", "content": message.content}
        calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
        if calls:
            told["tool_calls"] = [{"function": {"name": n, "arguments": a}} for n, a in calls]
        completion.append(told)
        for name, arguments in calls:
            result = getattr(environment, name)(**arguments)
            completion.append({"role": "tool", "name": name, "content": result})
    return completion


def described(schema: dict[str, Any]) -> Any:
    """A function's schema in what both ways of writing it can say."""
    function = schema["function"]
    fields = {
        name: {key: value for key, value in field.items() if key == "type"}
        for name, field in function["parameters"]["properties"].items()
    }
    required = sorted(function["parameters"].get("required", ()))
    return function["name"], function["description"], fields, required


@pytest.mark.parametrize("name", envs.NAMES)
def test_methods_tell_trl_the_tools_of_the_environment(name: str) -> None:
    factory = trl.trl_environment(name)
    env = envs.make(name)
    # As GRPOTrainer finds tools: functions of the class without an underscore.
    found = {
        key: getattr(factory(), key)
        for key, _ in inspect.getmembers(factory, predicate=inspect.isfunction)
        if not key.startswith("_") and key != "reset"
    }
    assert sorted(found) == sorted(env.tools)
    for schema in env.schemas():
        made = get_json_schema(found[schema["function"]["name"]])
        assert described(made) == described(schema)
    env.close()


@needs_datasets
@pytest.mark.parametrize("name", envs.NAMES)
def test_a_reference_solution_is_rewarded_and_a_corrupted_one_is_not(name: str) -> None:
    factory = trl.trl_environment(name, level=1)
    env = envs.make(name, level=1)
    rows = list(trl.dataset(factory, 3))
    environment = factory()
    for row in rows:
        task = env.task(row["task_seed"])
        assert row["prompt"][-1] == {"role": "user", "content": task.prompt}
        wrong = env.corrupted(task, random.Random(0))
        for messages, reward in ((env.solution(task), 1.0), (wrong, 0.0)):
            environment.reset(**row)
            completion = play(environment, messages)
            assert trl.verdict_reward([completion], [environment]) == [reward]
    env.close()


@needs_datasets
def test_rows_say_no_answers_and_depend_on_the_seed_alone() -> None:
    factory = trl.trl_environment("calculator", level=2)
    first, again, other = (list(trl.dataset(factory, 8, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert not {row["task_seed"] for row in first} & {row["task_seed"] for row in other}
    assert set(first[0]) == {"prompt", "task_seed", "environment"}


@needs_datasets
def test_rows_of_a_data_file_keep_their_order(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = trl.dataset(trl.trl_environment("calculator", data=file), 3)
    assert [row["prompt"][-1]["content"] for row in made] == [row["question"] for row in rows]


def test_what_is_no_final_answer_has_no_success() -> None:
    factory = trl.trl_environment("calculator", level=1, limits=EnvLimits(max_tool_calls=1))
    environment: Any = factory()
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}
    for completion in ([], [call], [call, {"role": "tool", "content": "4"}]):
        environment.reset(task_seed=0)
        assert trl.verdict_reward([completion], [environment]) == [0.0]
    assert environment.calculate(expression="2 * 3") == "6"
    assert environment.calculate(expression="2 * 3") == trl.OVER
    assert environment.calculate(expression="2 * 3") == trl.OVER
    answer = {"role": "assistant", "content": "\\boxed{6}"}
    assert trl.verdict_reward([[answer]], [environment]) == [0.0]


def test_a_call_with_wrong_arguments_is_answered_with_the_repair() -> None:
    environment: Any = trl.trl_environment("calculator")()
    environment.reset(task_seed=0)
    assert "no argument 'formula'" in environment.calculate(formula="1")
    assert "Error" in environment.calculate(expression=7)


class BrokenWorld(CalculatorEnv):
    """Its calculator is out of order."""

    def make_tools(self) -> Any:
        @tool
        def calculate(expression: str) -> str:
            """Evaluate."""
            raise WorldError("no power")

        return (calculate,)


def test_a_rollout_whose_world_failed_has_no_reward() -> None:
    environment: Any = trl.trl_environment(f"{__name__}:BrokenWorld")()
    environment.reset(task_seed=0)
    with pytest.raises(WorldError, match="no power"):  # TRL tells the model
        environment.calculate(expression="1")
    answer = {"role": "assistant", "content": "\\boxed{6}"}
    assert trl.verdict_reward([[answer]], [environment]) == [None]


class UnfitTool(CalculatorEnv):
    """Its tool has a name that TRL keeps for itself."""

    def make_tools(self) -> Any:
        return (StructuredTool.from_function(lambda: "", name="reset", description="Again."),)


def test_a_tool_that_trl_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="UnfitTool has a tool 'reset'; expected a Python name"):
        trl.trl_environment(f"{__name__}:UnfitTool")
    with pytest.raises(ValueError, match="has no option 'levle'; did you mean 'level'"):
        trl.trl_environment("calculator", levle=1)


@needs_datasets
def test_tasks_with_tools_of_their_own_are_refused(shared_data: Path) -> None:
    file = shared_data / "tooluse" / "test_dev.jsonl"
    factory = trl.trl_environment("tool_use", data=file, calling="native")
    with pytest.raises(ValueError, match=r"has tools of its own \(.+\); expected the same"):
        trl.dataset(factory, 1)


def grpo(tmp_path: Path, **arguments: Any) -> Any:
    """A trainer of the pocket student on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(pocket.PATH)
    tokenizer.response_template = trl.RESPONSE_TEMPLATE
    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=200,
        learning_rate=1e-4,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=None,  # TRL's default is a name that transformers has changed
        disable_tqdm=True,
        seed=0,
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(pocket.PATH),
        processing_class=tokenizer,
        args=args,
        reward_funcs=trl.verdict_reward,
        **arguments,
    )


# TRL, which the dev extra pins, warns that `environment_factory` may change.
experimental = pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")


@needs_trl
@experimental
def test_grpo_trains_the_pocket_student(tmp_path: Path) -> None:
    import torch

    factory = trl.trl_environment("calculator", level=2)
    trainer = grpo(tmp_path, environment_factory=factory, train_dataset=trl.dataset(factory, 4))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 2
    assert sum(entry["tools/call_frequency"] for entry in steps) > 0.5
    assert any(0 < entry["rewards/verdict_reward/mean"] < 1 for entry in steps)
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)


@needs_trl
@experimental
def test_grpo_takes_several_environments_in_one_run(tmp_path: Path) -> None:
    from datasets import concatenate_datasets

    factories = {name: trl.trl_environment(name, level=1) for name in ("calculator", "tool_use")}
    rows = concatenate_datasets([trl.dataset(factory, 1) for factory in factories.values()])
    trainer = grpo(tmp_path, environment_factory=factories, train_dataset=rows)
    trainer.args.max_steps = 1
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert 0 <= step["rewards/verdict_reward/mean"] <= 1
