"""What every environment promises, whatever it is about."""

import contextlib
import json
import logging
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.tools import BaseTool, tool

import envs
from envs.base import EnvLimits, ToolEnv
from envs.text_actions import TextActions
from envs.tools import MalformedCall, WorldError, call_tool, clip
from envs.types import Message, StopReason, Task, ToolCall
from envs.validate import examine, validate
from sandboxes.base import SandboxError

# Options that change what an environment is come behind its name.
WORLDS = (*envs.names(), "tool_use world=generated")
EACH = pytest.mark.parametrize("name", WORLDS)
CONTROL = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "\\boxed{", "```python\n")


def open_env(name: str, **options: Any) -> ToolEnv:
    name, more = parted(name)
    options |= more
    if name not in envs.NAMES:  # of another package, which Gymnasium does not know
        return envs.make(name, **options)
    return gymnasium.make(f"mopd/{name}-v0", **options).unwrapped  # type: ignore[return-value]


def parted(name: str) -> tuple[str, dict[str, Any]]:
    name, *assignments = name.split(" ")
    return name, dict(text.split("=", 1) for text in assignments)


@pytest.fixture
def env(name: str) -> Iterator[ToolEnv]:
    opened = open_env(name)
    opened.reset(seed=0)
    yield opened
    opened.close()


def first_tool(env: ToolEnv) -> BaseTool:
    return next(iter(env.tools.values()))


def good_call(env: ToolEnv, identity: str = "call_0", text: str = "1") -> ToolCall:
    """A well-formed call of the first tool; "1" is an expression, a program, a query, an id."""
    tool = first_tool(env)
    arguments = {
        key: field["enum"][0]
        if "enum" in field
        else (text if field.get("type", "string") == "string" else 1)
        for key, field in tool.args.items()
        if "default" not in field
    }
    return ToolCall(identity, tool.name, json.dumps(arguments))


def said(*calls: ToolCall, content: str = "") -> Message:
    return Message("assistant", content, calls)


@EACH
def test_gymnasium_finds_nothing_to_warn_about(env: ToolEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=False)


@EACH
def test_equal_seeds_give_equal_episodes(env: ToolEnv, name: str) -> None:
    other = open_env(name)
    for seed in range(5):
        assert env.reset(seed=seed) == other.reset(seed=seed)
        assert env.current_task == other.current_task
        assert env.task(seed) == other.task(seed)
    assert len({env.task(seed).id for seed in range(20)}) > 15
    other.close()


@EACH
def test_a_given_task_is_the_episode(env: ToolEnv) -> None:
    task = env.task(3)
    first = env.reset(seed=1, options={"task": task})
    assert env.reset(seed=1, options={"task": task}) == first
    assert first[0][-1] == Message("user", task.prompt)
    assert env.step(said(good_call(env)))[0] == replay(env, task)[0]
    with pytest.raises(TypeError, match=r"expected envs\.types\.Task"):
        env.reset(options={"task": "text"})


def replay(env: ToolEnv, task: Task) -> Any:
    env.reset(seed=1, options={"task": task})
    return env.step(said(good_call(env)))


@EACH
def test_every_level_generates_and_the_splits_are_disjoint(name: str) -> None:
    env = open_env(name)
    for level in env.levels:
        train, held_out = (open_env(name, level=level, split=s) for s in ("train", "held_out"))
        seen = [train.task(seed) for seed in range(300)]
        unseen = [held_out.task(seed) for seed in range(300)]
        assert not {t.id for t in seen} & {t.id for t in unseen}
        assert not {t.prompt for t in seen} & {t.prompt for t in unseen}
        assert all(t.prompt and t.answer for t in (*seen, *unseen))
        named = {(t.id, t.prompt) for t in (*seen, *unseen)}
        assert len(named) == len({identity for identity, _ in named}), "two tasks share an id"


@EACH
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_solutions_succeed_and_corrupted_ones_fail_at_every_level(name: str, split: str) -> None:
    for level in open_env(name).levels:
        env = open_env(name, level=level, split=split)
        for seed in range(3):
            finding = examine(env, env, env.task(seed))
            assert finding.reasons == (), finding
            assert finding.gold == finding.corrupted == {"native": True, "text": True}
        env.close()


@EACH
def test_solutions_use_the_tools(name: str) -> None:
    env = open_env(name)
    messages = env.solution(env.task(0))
    assert messages[0].tool_calls
    assert not messages[-1].tool_calls
    env.close()


@EACH
def test_the_highest_level_takes_several_turns_or_steps(name: str) -> None:
    env = open_env(name, level=max(open_env(name).levels))
    assert all(1 < len(env.solution(env.task(seed))) <= 8 for seed in range(20))
    env.close()


@EACH
def test_a_corrupted_solution_depends_on_the_task_and_the_generator_alone(name: str) -> None:
    env, other = open_env(name), open_env(name)
    for seed in range(5):
        task = env.task(seed)
        drawn = [each.corrupted(task, random.Random(seed)) for each in (env, other)]
        assert drawn[0] == drawn[1] != env.solution(task)
    env.close()
    other.close()


@EACH
def test_validation_from_the_name_alone(name: str) -> None:
    name, options = parted(name)
    report = validate(name, tasks=8, options=options)
    assert report["passed"], report
    assert (report["tasks"], report["gold_passed"], report["corrupted_failed"]) == (8, 8, 8)


@EACH
def test_the_data_formats_have_names(name: str) -> None:
    formats = open_env(name).formats
    assert formats
    assert all(isinstance(each, str) and each for each in formats)
    assert len(set(formats)) == len(formats)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = (
    *("id", "task_id", "prompt", "question", "answer", "problem", "solution", "final_answer"),
    *("test", "entry_point", "cases", "stdin_cases", "test_list", "code", "plus_input"),
    *("private_test_cases", "public_test_cases", "official_tests", "private_tests", "metadata"),
    *("choices", "options", "context", "supporting_facts", "golden_answers", "answers", "kind"),
    *("system", "paragraphs", "data", "qas", "documentation", "name", "golden_answer"),
)


@EACH
@settings(max_examples=150, deadline=None)
@given(row=st.dictionaries(st.sampled_from(FIELDS), values, max_size=8))
def test_any_row_is_a_task_or_a_typed_error(name: str, row: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        assert isinstance(open_env(name).read_row(row), Task)


@EACH
@settings(max_examples=100, deadline=None)
@given(document=values | st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_any_document_has_rows_or_is_a_typed_error(name: str, document: Any) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        list(type(open_env(name)).rows_of(document))


@EACH
def test_an_unknown_level_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"env\.level=99: \w+ has levels \d to \d"):
        open_env(name, level=99)


@EACH
def test_a_message_without_a_call_is_the_answer(env: ToolEnv) -> None:
    observation, reward, terminated, truncated, info = env.step(said(content="I do not know."))
    assert (observation, reward, terminated, truncated) == ((), 0.0, True, False)
    assert env.verdict is not None
    assert not env.verdict.success
    assert env.verdict.feedback
    assert env.stop_reason is StopReason.ANSWERED
    assert info["stop_reason"] == "answered"
    with pytest.raises(RuntimeError, match="reset"):
        env.step(said(content="Once more."))


@EACH
def test_step_before_reset_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="reset"):
        open_env(name).step(said(content="7"))


@EACH
def test_several_and_repeated_calls_are_answered_in_order(env: ToolEnv) -> None:
    twin = good_call(env, "c")
    calls = (good_call(env, "a"), ToolCall("b", "nothing", "{}"), twin, twin)
    observation, _, terminated, truncated, info = env.step(said(*calls, content="Trying."))
    assert not terminated
    assert not truncated
    assert [m.role for m in observation] == ["tool"] * 4
    assert [m.tool_call_id for m in observation] == ["a", "b", "c", "c"]
    assert observation[2].content == observation[3].content
    assert "nothing" in observation[1].content
    assert info["tool_calls"] == 4


@EACH
def test_a_faulty_call_is_answered_with_how_to_repair_it(env: ToolEnv) -> None:
    tool = first_tool(env)
    field = next(iter(tool.args))
    signature = f"Expected {tool.name}({field}"
    faults = {
        ToolCall("1", "", "not a call"): f"Tools: {', '.join(sorted(env.tools))}",
        ToolCall("2", "calculater", "{}"): f"Tools: {', '.join(sorted(env.tools))}",
        ToolCall("3", tool.name, "{"): "not valid JSON",
        ToolCall("4", tool.name, "[" * 100_000): "not valid JSON",
        ToolCall("5", tool.name, "9" * 10_000): "not valid JSON",
        ToolCall("6", tool.name, "[1]"): signature,
        ToolCall("7", tool.name, "null"): signature,
        ToolCall("8", tool.name, "{}"): signature,
        ToolCall("9", tool.name, json.dumps({field: {"a": 1}})): signature,
        ToolCall("10", tool.name, json.dumps({field: None})): signature,
        ToolCall("11", tool.name, json.dumps({field: "1", "colour": "red"})): signature,
        ToolCall("12", tool.name, json.dumps({"type": "tool_call", "args": {}})): signature,
    }
    for call, cure in faults.items():
        env.reset(seed=0)
        (observation,), _, terminated, truncated, _ = env.step(said(call))
        assert cure in observation.content, call
        assert observation.content.startswith("Error")
        assert not terminated
        assert not truncated


@EACH
def test_malformed_turns_in_a_row_end_the_episode(env: ToolEnv) -> None:
    bad = said(ToolCall("x", "", "?"))
    # A turn with one good call is not malformed, and starts the count again.
    for message in (bad, bad, said(ToolCall("x", "", "?"), good_call(env)), bad, bad):
        assert not env.step(message)[3]
    _, reward, terminated, truncated, _ = env.step(bad)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert env.stop_reason is StopReason.MALFORMED
    assert env.verdict is not None
    assert "malformed" in env.verdict.feedback


@EACH
@pytest.mark.parametrize(
    ("limits", "calls", "turns", "reason"),
    [
        (EnvLimits(max_turns=2), 1, 2, StopReason.MAX_TURNS),
        (EnvLimits(max_tool_calls=3), 2, 2, StopReason.MAX_TOOL_CALLS),
        (EnvLimits(max_episode_s=0.0), 1, 1, StopReason.TIMEOUT),
    ],
)
def test_a_limit_ends_the_episode_with_its_reason(
    name: str, limits: EnvLimits, calls: int, turns: int, reason: StopReason
) -> None:
    env = open_env(name, limits=limits)
    env.reset(seed=0)
    message = said(*(good_call(env, f"call_{i}") for i in range(calls)))
    for turn in range(1, turns + 1):
        _, _, terminated, truncated, info = env.step(message)
        assert not terminated
        assert truncated == (turn == turns)
    assert env.stop_reason is reason
    assert info["stop_reason"] == reason.value
    assert reason.cut_off
    env.close()


@EACH
def test_long_observations_are_clipped(name: str) -> None:
    env = open_env(name, limits=EnvLimits(max_observation_chars=60))
    env.reset(seed=0)
    for call in (good_call(env, text="'" + "x" * 500 + "'"), good_call(env, text="9" * 500)):
        (observation,), *_ = env.step(said(call))
        assert len(observation.content) <= 60
        assert "left out" in observation.content
    env.close()


@EACH
def test_closing_twice_is_fine(env: ToolEnv) -> None:
    env.step(said(good_call(env)))
    env.close()
    env.close()


@EACH
def test_an_environment_works_again_after_it_was_closed(env: ToolEnv) -> None:
    before = env.step(said(good_call(env)))
    env.close()
    env.reset(seed=0)
    assert env.step(said(good_call(env))) == before


@EACH
def test_render_shows_the_transcript(name: str) -> None:
    env = open_env(name, render_mode="ansi")
    env.reset(seed=0)
    assert str(env.render()).startswith("system: ")
    assert open_env(name).render() is None


@EACH
def test_the_docstring_has_the_four_headings(name: str) -> None:
    text = type(open_env(name)).__doc__ or ""
    for heading in ("Task:", "Tools:", "Reward:", "Episode end:"):
        assert f"\n    {heading}\n" in text


texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(CONTROL) | st.text(max_size=8), max_size=6).map("".join),
    st.sampled_from(("x" * 10**6, "\ud800", "(" * 5000, "\x00", "9" * 5000, "\\boxed{" * 5000)),
)
arguments = st.one_of(
    texts,
    st.dictionaries(texts, st.none() | st.booleans() | texts, max_size=3).map(json.dumps),
    st.recursive(st.integers() | st.floats() | texts, st.lists, max_leaves=5).map(json.dumps),
)


@EACH
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_message_raises(env: ToolEnv, data: st.DataObject) -> None:
    env.reset(seed=0)
    tool = first_tool(env)
    fields = st.dictionaries(st.sampled_from(list(tool.args)), texts, min_size=1).map(json.dumps)
    calls = st.builds(ToolCall, texts, st.just(tool.name) | texts | st.just(""), arguments | fields)
    message = data.draw(
        st.builds(said, calls, content=texts) | st.builds(lambda c: said(content=c), texts)
    )
    observation, reward, terminated, _, _ = env.step(message)
    assert [m.tool_call_id for m in observation] == [c.id for c in message.tool_calls]
    assert reward in (0.0, 1.0)
    assert terminated == (not message.tool_calls)
    for answer in observation:
        assert len(answer.content) <= env.limits.max_observation_chars
        answer.content.encode("utf-8")  # half a surrogate pair would break tokenizers and files


@EACH
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=texts | st.builds("Action: {}\nAction Input: {}\n{}".format, texts, arguments, texts))
def test_no_text_of_an_agent_without_tool_calls_raises(env: ToolEnv, text: str) -> None:
    player = TextActions(env)
    player.reset(seed=0)
    observation, reward, _, _, _ = player.step(said(content=text))
    assert all(message.role == "user" for message in observation)
    assert reward in (0.0, 1.0)
    assert env.stop_reason is not None or observation


@tool
def fragile(x: str) -> str:
    """Fail in the way that x names."""
    raise {"bug": KeyError, "world": WorldError, "sandbox": SandboxError}[x]("the cause")


def test_a_tool_that_raises_is_an_observation_and_a_failing_world_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def call(x: str) -> str:
        return call_tool({"fragile": fragile}, ToolCall("0", "fragile", json.dumps({"x": x})), 200)

    with caplog.at_level(logging.WARNING):
        assert call("bug") == "Error: fragile raised KeyError: 'the cause'"
    assert "fragile raised" in caplog.text
    for world, error in (("world", WorldError), ("sandbox", SandboxError)):
        with pytest.raises(error, match="the cause"):
            call(world)


def test_an_unknown_tool_with_a_long_name_is_cut() -> None:
    with pytest.raises(MalformedCall) as caught:
        call_tool({"fragile": fragile}, ToolCall("0", "x" * 9000, "{}"), 200)
    assert len(str(caught.value)) < 200


def test_clip_keeps_both_ends() -> None:
    assert clip("short", 10) == "short"
    assert clip("half a pair: \ud800 \u00e9", 20) == "half a pair: ? \u00e9"
    cut = clip("a" * 500 + "b" * 500, 100)
    assert len(cut) == 100
    assert cut.startswith("aaa")
    assert cut.endswith("bbb")


@pytest.mark.parametrize("code", ["raise ValueError('\\ud800')", "'\\ud800'", "\ud800"])
def test_what_a_program_says_can_be_encoded(code: str) -> None:
    env = open_env("code")
    env.reset(seed=0)
    call = replace(good_call(env), arguments=json.dumps({"code": code}))
    env.step(said(call))[0][0].content.encode("utf-8")
    env.close()


def test_an_instance_keeps_nothing_of_the_last_episode() -> None:
    env = open_env("code")
    env.reset(seed=0)
    env.step(said(replace(good_call(env), arguments='{"code": "x = 41"}')))
    env.reset(seed=0)
    (observation,), *_ = env.step(said(replace(good_call(env), arguments='{"code": "x + 1"}')))
    assert "NameError" in observation.content
    env.close()
