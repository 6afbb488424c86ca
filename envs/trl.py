"""Our environments in `trl.GRPOTrainer(environment_factory=...)`: factory, data set and reward."""

import inspect
import json
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union

from envs.base import ToolEnv
from envs.registry import check_options, env_class
from envs.tasks import stable_seed
from envs.tools import WORLD_ERRORS
from envs.types import Message, Task, ToolCall

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped]

# For `tokenizer.response_template` where TRL does not know the chat template, as with the pocket
# student: turns of ChatML, calls as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
OVER = "The episode is over."
_HINTS = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


class TrlEnvironment:
    """One `ToolEnv` as TRL wants it; the subclasses of `trl_environment` have tools as methods.

    What differs from an episode of our own, because TRL owns the loop: each call is a turn, also
    where the agent makes several at once; a call that TRL cannot read is a final answer, and so
    is a text that it has cut off; a tool's world that fails is told to the agent, and the
    rollout has no reward.
    """

    _name: ClassVar[str]
    _tasks: ClassVar[ToolEnv]  # has read the data file, if there is one
    _schemas: ClassVar[tuple[dict[str, Any], ...]]  # of the tools that are methods

    @staticmethod
    def _open() -> ToolEnv:
        raise NotImplementedError("use a subclass that trl_environment() makes")

    def __init__(self) -> None:
        self._env = self._open()
        self._broken = False
        self._calls = 0
        weakref.finalize(self, self._env.close)  # TRL closes nothing

    def reset(self, *, task_seed: int, **_: Any) -> None:
        """Start the episode of a row of `dataset`, whose prompt says it all."""
        self._broken, self._calls = False, 0
        self._env.reset(options={"task": self._tasks.task(task_seed)})

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What a tool answers."""
        if self._env.stop_reason is not None:
            return OVER
        call = ToolCall(f"call_{self._calls}", name, json.dumps(arguments))
        self._calls += 1
        try:
            observation, *_ = self._env.step(Message("assistant", "", (call,)))
        except WORLD_ERRORS:
            self._broken = True
            raise
        return "\n".join(message.content for message in observation) or OVER

    def _judge(self, completion: Sequence[Mapping[str, Any]]) -> float | None:
        """The reward of what TRL has recorded; None where the world has failed."""
        last = completion[-1] if completion else {}
        answered = last.get("role") == "assistant" and not last.get("tool_calls")
        if answered and self._env.stop_reason is None and not self._broken:
            try:
                self._env.step(Message("assistant", last.get("content") or ""))
            except WORLD_ERRORS:
                self._broken = True
        if self._broken:
            return None
        return self._env.verdict.reward if self._env.verdict else 0.0


def trl_environment(name: str, **options: Any) -> type[TrlEnvironment]:
    """A factory for `GRPOTrainer(environment_factory=...)`.

    Args:
        name: of an environment, or its address `package.module:Class`.
        **options: of the environment, such as `level=1`.

    Raises:
        ValueError: no such environment or option, or a tool whose name TRL cannot have.
    """
    kind = env_class(name)
    check_options(kind, options)
    tasks = kind(**options)
    schemas = tasks.schemas()
    if not kind.needs_data:
        options["data"] = None
    methods = {
        schema["function"]["name"]: _method(schema["function"], kind.__name__) for schema in schemas
    }
    body = {
        "_name": name,
        "_tasks": tasks,
        "_schemas": schemas,
        "_open": staticmethod(partial(kind, **options)),
    }
    return type(kind.__name__, (TrlEnvironment,), methods | body)


def dataset(factory: type[TrlEnvironment], tasks: int, seed: int = 0) -> "Dataset":
    """Prompts of `tasks` tasks: rows of the data file in their order, or procedural ones.

    Answers stay in the environment. The column `environment` makes rows of several environments
    fit `GRPOTrainer(environment_factory={name: factory, ...})`.

    Raises:
        ValueError: a task that brings tools of its own, which TRL cannot show.
    """
    from datasets import Dataset

    env, rows = factory._tasks, []
    for place in range(tasks):
        task_seed = place if env.rows is not None else stable_seed(seed, "task", place)
        task = env.task(task_seed)
        observation, _ = env.reset(options={"task": task})
        _check_tools(env, task, factory._schemas)
        rows.append(
            {
                "prompt": [{"role": m.role, "content": m.content} for m in observation],
                "task_seed": task_seed,
                "environment": factory._name,
            }
        )
    return Dataset.from_list(rows)


def verdict_reward(
    completions: Sequence[Sequence[Mapping[str, Any]]],
    environments: Sequence[TrlEnvironment],
    **_: Any,
) -> list[float | None]:
    """For `GRPOTrainer(reward_funcs=...)`: the environment's verdict on each rollout."""
    return [
        environment._judge(completion)
        for environment, completion in zip(environments, completions, strict=True)
    ]


def _check_tools(env: ToolEnv, task: Task, shown: Sequence[dict[str, Any]]) -> None:
    there = env.schemas()
    if there != shown:
        extra = sorted({s["function"]["name"] for s in there if s not in shown})
        raise ValueError(
            f"task {task.id} has tools of its own ({', '.join(extra) or 'fewer'}); expected the "
            "same for all tasks, as TRL takes them from the class"
        )


def _method(function: Mapping[str, Any], owner: str) -> Any:
    """A method with the signature and the docstring from which TRL makes the schema again."""
    name: str = function["name"]
    if name.startswith("_") or not name.isidentifier() or name in ("reset", "get_reward"):
        raise ValueError(
            f"{owner} has a tool {name!r}; expected a Python name other than reset and "
            "get_reward, without a leading underscore, as TRL takes tools from methods"
        )
    schema = function.get("parameters", {})
    fields: dict[str, Any] = schema.get("properties", {})
    required = schema.get("required", ())

    def tool(self: TrlEnvironment, **arguments: Any) -> str:
        return self._call(name, arguments)

    tool.__name__ = name
    tool.__qualname__ = f"{owner}.{name}"
    tool.__doc__ = _docstring(function.get("description", name), fields)
    tool.__annotations__ = {field: _hint(spec) for field, spec in fields.items()}
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        inspect.Parameter(
            field,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field in required else spec.get("default"),
            annotation=_hint(spec),
        )
        for field, spec in fields.items()
    ]
    tool.__signature__ = inspect.Signature([receiver, *parameters])  # type: ignore[attr-defined]
    return tool


def _docstring(description: str, fields: Mapping[str, Any]) -> str:
    """In Google's style; each argument needs a description, on one line."""
    if not fields:
        return description
    lines = [
        f"    {field}: {' '.join(str(spec.get('description') or field).split())}"
        for field, spec in fields.items()
    ]
    return "\n".join([description, "", "Args:", *lines])


def _hint(spec: Mapping[str, Any]) -> Any:
    """The type hint that becomes this JSON schema again, as far as hints go."""
    if spec.get("enum"):
        return Literal[tuple(spec["enum"])]
    if "anyOf" in spec:
        return Union[tuple(_hint(part) for part in spec["anyOf"])]  # noqa: UP007 - computed
    kind = spec.get("type")
    if kind == "array" and spec.get("items"):
        return list[_hint(spec["items"])]  # type: ignore[misc]
    return _HINTS.get(str(kind), Any)
