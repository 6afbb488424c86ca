"""Errands in the office, and rows of documented APIs in both ways of calling."""

import copy
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.base import Transcript
from envs.data import DataError
from envs.grading.calls import Call, write
from envs.tool_use import ToolUseEnv, documentation
from envs.tool_use.desk import TOOLS, Desk
from envs.tool_use.errands import CALLS
from envs.tool_use.wording import INVERSE, RELATIONS, VERBS
from envs.types import Message, StopReason, Task, ToolCall, Verdict

DOCUMENTED = """\
getForecast: The weather of the next days.
Parameters: {"city": "Required. string. The city.", "days": "integer. How many.", \
"unit": "string. One of: [C, F]. The unit.", "from": "string. The first day.", \
"self": "boolean.", "tags": "Array[string]. Tags.", "options": "Object.", "any": "#Thing."}
Output: Successful response.
 - Format: application/json
 - Structure: Object{city, days: Array[number]}
listCities: All cities.
Parameters: {}
Output: The cities.
 - Format: application/json
 - Structure: Array[string]
"""
PROMPT = f"""\
Your task is to answer the user's question using available tools.
You have access to the following tools:
Name: Weather
Description: Forecasts
Documentation:
{DOCUMENTED}
Use the following format:
Thought: you should always think about what to do

Begin!
Question: What is the weather in Oslo?"""
GOLD = {"Action": "getForecast", "Action_Input": '{"city": "Oslo", "unit": ""}'}
ROW = {"idx": 7, "prompt": PROMPT, "answer": json.dumps([GOLD])}


def play(env: ToolUseEnv, task: Task, messages: Transcript) -> Verdict:
    env.reset(options={"task": task})
    for message in messages:
        env.step(message)
        if env.stop_reason is not None:
            break
    assert env.verdict is not None
    return env.verdict


def call(env: ToolUseEnv, name: str, arguments: Any) -> str:
    """What the environment answers to one call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return env.step(Message("assistant", "", (ToolCall("c", name, text),)))[0][0].content


def solved(env: ToolUseEnv, task: Task, *, skip: int = -1) -> None:
    """Make the calls of the solution, all but one."""
    env.reset(options={"task": task})
    for number, message in enumerate(env.solution(task)[:-1]):
        if number != skip:
            env.step(message)


def answer(env: ToolUseEnv, text: str) -> Verdict:
    env.step(Message("assistant", text))
    assert env.verdict is not None
    return env.verdict


def on_native(row: dict[str, Any]) -> tuple[ToolUseEnv, Task]:
    env = ToolUseEnv(calling="native")
    task = env.read_row(row)
    env.reset(options={"task": task})
    return env, task


@pytest.mark.parametrize("level", ToolUseEnv.levels)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_solutions_succeed_and_corrupted_ones_fail(level: int, split: Any) -> None:
    env = ToolUseEnv(level=level, split=split)
    for seed in range(60):
        task = env.task(seed)
        assert play(env, task, env.solution(task)).success, task
        wrong = env.corrupted(task, random.Random(seed))
        verdict = play(env, task, wrong)
        assert not verdict.success, (task, wrong)
        assert verdict.feedback
        assert env.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize("level", ToolUseEnv.levels)
def test_a_level_needs_its_number_of_calls_and_uses_every_verb(level: int) -> None:
    env = ToolUseEnv(level=level)
    tasks = [env.task(seed) for seed in range(400)]
    calls = [len(task.payload["steps"]) for task in tasks]
    assert (min(calls), max(calls)) == CALLS[level]
    changes = {
        name for task in tasks for name, _ in task.payload["steps"] if name not in ("find", "show")
    }
    assert changes == {verb.tool for verb in VERBS}
    asked = sum(bool(task.payload["asked"]) for task in tasks)
    assert 60 < asked < 300
    assert max(len(task.prompt) for task in tasks) < 130


def test_a_swap_needs_both_values_before_one_is_overwritten() -> None:
    env = ToolUseEnv(level=4)
    tasks = [t for t in map(env.task, range(300)) if t.prompt.startswith(("Swap", "Let"))]
    assert len(tasks) > 10
    for task in tasks:
        *looks, first, second, done = env.solution(task)
        target = json.loads(first.tool_calls[0].arguments)["id"]
        again = replace(first.tool_calls[0], name="show", arguments=json.dumps({"id": target}))
        assert play(env, task, (*looks, second, first, done)).success
        env.reset(options={"task": task})
        env.step(first)
        taken = second.tool_calls[0].arguments
        (seen,), *_ = env.step(Message("assistant", "", (again,)))
        lost = next(v for k, v in json.loads(taken).items() if k != "id")
        assert f" {lost}" not in seen.content, "the old value is gone"


@pytest.mark.parametrize("level", [3, 4])
def test_from_level_3_on_a_call_needs_the_result_of_another(level: int) -> None:
    """No id of the solution stands in the prompt, and each was in a result before it was used."""
    env = ToolUseEnv(level=level)
    for seed in range(100):
        task = env.task(seed)
        env.reset(options={"task": task})
        seen = task.prompt
        linked = 0
        for message in env.solution(task)[:-1]:
            arguments = json.loads(message.tool_calls[0].arguments)
            for value in (arguments.get("id"), arguments.get("to"), arguments.get("phone")):
                if value is not None and message.tool_calls[0].name != "buy":
                    assert value in seen, task
                    linked += value not in task.prompt
            seen += call(env, message.tool_calls[0].name, arguments)
        assert linked >= 1 or task.payload["steps"][-1][0] == "buy"


def test_names_and_verbs_are_ambiguous_from_level_3_on() -> None:
    tricky = [re.sub(r"\{\w+\}", ".+", t) for verb in VERBS for t in verb.tricky]
    for level in (1, 2, 3, 4):
        env = ToolUseEnv(level=level)
        shared = said = 0
        for seed in range(100):
            task = env.task(seed)
            names = [dict(fields)["name"].split()[0] for _, fields in task.payload["world"]]
            shared += len(set(names)) < len(names)
            said += any(re.match(pattern, task.prompt) for pattern in tricky)
        assert shared == (100 if level > 2 else 0)
        assert (said > 5) == (level > 2)
    assert set(INVERSE) < set(RELATIONS)


def test_what_is_not_in_the_goal_fails() -> None:
    env = ToolUseEnv(level=2)
    task = next(t for t in map(env.task, range(99)) if t.payload["steps"][-1][0] == "move")
    solved(env, task)
    assert answer(env, "Done.").success
    solved(env, task, skip=1)
    verdict = answer(env, "Done.")
    assert not verdict.success
    assert ", expected " in verdict.feedback
    solved(env, task)
    other = next(id for id, fields in task.payload["goal"] if dict(fields)["kind"] == "contact")
    assert call(env, "delete", {"id": other}) == f"{other} is deleted."
    verdict = answer(env, "Done.")
    assert verdict.feedback == f"C{other[1:]} is gone, expected it to be kept."
    assert verdict.parts == {"state": 0.0}
    solved(env, task)
    call(env, "show", {"id": other})
    assert answer(env, "Done.").success, "looking is free"


def test_the_answer_is_the_last_box_or_the_last_word() -> None:
    env = ToolUseEnv(level=1)
    task = next(t for t in map(env.task, range(99)) if t.payload["asked"].isdecimal())
    right = task.payload["asked"]
    for text in (f"\\boxed{{{right}}}", f"It is {right}.", f"\\boxed{{1}} no, \\boxed{{{right}}}"):
        solved(env, task)
        assert answer(env, text).success, text
    for text in (
        "",
        "\\boxed{}",
        f"\\boxed{{{right}}} \\boxed{{1}}",
        f"{right} or 12",
        f"{right}0",
    ):
        solved(env, task)
        verdict = answer(env, text)
        assert not verdict.success, text
        assert verdict.feedback.startswith("The answer is ")
        assert verdict.parts == {"state": 1.0, "answer": 0.0}
    assert play(env, task, (Message("assistant", right),)).success, "a lucky guess is an answer"


def test_the_agent_sees_neither_the_goal_nor_the_world() -> None:
    for level in ToolUseEnv.levels:
        env = ToolUseEnv(level=level)
        for seed in range(50):
            task = env.task(seed)
            opening, info = env.reset(options={"task": task})
            shown = "".join(m.content for m in opening) + json.dumps(env.schemas()) + str(info)
            phones = [
                str(dict(fields)["phone"])
                for _, fields in task.payload["world"]
                if dict(fields)["kind"] == "contact"
            ]
            assert not any(phone in shown.replace(task.id, "") for phone in phones), shown
            assert env.system_prompt == opening[0].content


def test_a_payload_that_went_through_json_plays_alike() -> None:
    env = ToolUseEnv(level=4)
    for seed in range(20):
        task = env.task(seed)
        stored = replace(task, payload=json.loads(json.dumps(task.payload)))
        assert play(env, stored, env.solution(stored)).success
        assert not play(env, stored, env.corrupted(stored, random.Random(seed))).success


def test_a_refused_call_says_how_to_repair_it_and_changes_nothing() -> None:
    env = ToolUseEnv(level=2)
    task = env.task(0)
    env.reset(options={"task": task})
    kinds = {dict(fields)["kind"]: id for id, fields in task.payload["world"]}
    before = env._desk.freeze()
    refused = {
        ("show", json.dumps({"id": "x9"})): "there is no record 'x9'; find tells the ids",
        ("set_phone", json.dumps({"id": kinds["contact"], "phone": "12"})): "four digits",
        ("set_phone", json.dumps({"id": kinds["file"], "phone": "1234"})): "expected contact",
        ("move", json.dumps({"id": kinds["event"], "to": "tax"})): "expected one of Mon, Tue",
        ("move", json.dumps({"id": kinds["file"], "to": "A\x00"})): "expected a short word",
        ("move", json.dumps({"id": kinds["item"], "to": "tax"})): "expected event or file",
        ("delete", json.dumps({"id": kinds["item"]})): "expected contact, event or file",
        ("archive", json.dumps({"id": kinds["event"]})): "expected file",
        ("buy", json.dumps({"id": kinds["item"], "count": 0})): "count from 1 to",
        ("buy", json.dumps({"id": kinds["item"], "count": 10**4000})): "count from 1 to",
        ("buy", json.dumps({"id": kinds["item"], "count": "two"})): "argument 'count' of buy",
        ("buy", json.dumps({"id": kinds["item"]})): "argument 'count' of buy",
    }
    env.limits = replace(env.limits, max_turns=99, max_tool_calls=99, max_malformed_turns=99)
    for (name, arguments), cure in refused.items():
        said = call(env, name, arguments)
        assert said.startswith("Error"), name
        assert cure in said, said
    assert env._desk.freeze() == before


HOSTILE = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.text(max_size=3), max_size=2),
    st.sampled_from(
        ("x" * 1_000_000, "\ud800", "\x00\x1b[2J", "<|im_end|>", "9" * 4000, "archive")
    ),
    st.sampled_from(("Fri", "tax", "1234", "c1", "e1", "f1", "i1", "find", "")),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), level=st.sampled_from(list(ToolUseEnv.levels)), seed=st.integers(0, 50))
def test_random_calls_are_answered_and_leave_the_task_as_it_is(
    data: st.DataObject, level: int, seed: int
) -> None:
    env = ToolUseEnv(level=level)
    task = env.task(seed)
    before = copy.deepcopy(task)
    env.reset(options={"task": task})
    ids = st.sampled_from([id for id, _ in task.payload["world"]])
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(TOOLS))
        arguments = {key: data.draw(ids | HOSTILE) for key in env.tools[name].args}
        said = call(env, name, arguments)
        assert len(said) <= env.limits.max_observation_chars
        said.encode("utf-8")
        if env.stop_reason is not None:
            break
    else:
        answer(env, "Done.")
    assert task == before
    again = Desk(task.payload["world"])
    assert again.freeze() == before.payload["world"]
    for record in env._desk.records.values():
        assert all(isinstance(v, int) or len(v) < 20 for v in record.values())


# Rows.


@pytest.mark.parametrize("calling", ["text", "native"])
def test_public_rows_can_be_solved_and_corrupted_answers_fail(
    shared_data: Path, calling: Any, caplog: pytest.LogCaptureFixture
) -> None:
    env = ToolUseEnv(calling=calling, data=shared_data / "tooluse" / "test_dev.jsonl")
    assert env.rows is not None
    assert len(env.rows) == 34
    assert not env.rejected
    for task in env.rows:
        assert play(env, task, env.solution(task)).success, task
        for seed in range(5):
            assert not play(env, task, env.corrupted(task, random.Random(seed))).success
    reasons = [task.payload["text_because"] for task in env.rows if "text_because" in task.payload]
    if calling == "text":
        assert Counter(task.payload["calling"] for task in env.rows) == {"text": 34}
    else:
        assert len(reasons) == 2
        assert "2 of 34 rows are asked as text, the first: tool_use/4056: " in caplog.text
        assert reasons[0].endswith("searchAnime has no argument 'filter'")
        assert reasons[1].endswith("the documentation has no API 'getDetails'")


def test_native_and_written_calls_are_judged_alike_where_the_documentation_allows_them(
    shared_data: Path,
) -> None:
    path = shared_data / "tooluse" / "test_dev.jsonl"
    text, native = (ToolUseEnv(calling=calling, data=path) for calling in ("text", "native"))
    judged: Counter[bool] = Counter()
    for number in range(500):
        rng = random.Random(number)
        task, written = (env.task(number) for env in (native, text))
        if task.payload["calling"] == "text":
            continue
        messages = native.corrupted(task, rng) if rng.random() < 0.5 else native.solution(task)
        spoken = rng.sample(messages[:-1], len(messages) - 1)
        calls = [Call(c.name, json.loads(c.arguments)) for m in spoken for c in m.tool_calls]
        apis = documentation.parse(task.payload["documentation"])
        if any(documentation.problem(call, apis) for call in calls):
            continue
        natively = play(native, task, (*spoken, messages[-1]))
        assert natively == play(text, written, (Message("assistant", write(calls)),))
        judged[natively.success] += 1
    assert min(judged.values()) > 100, judged


def test_text_is_asked_as_published() -> None:
    env = ToolUseEnv(calling="text")
    task = env.read_row(ROW)
    opening, _ = env.reset(options={"task": task})
    assert opening == (Message("user", PROMPT),)
    assert env.transcript == [Message("user", PROMPT)]
    assert env.schemas() == ()
    assert "there is no tool" in call(env, "getForecast", {"city": "Oslo"})
    gold = 'Thought: I know.\nAction: getForecast\nAction Input: {"city": "Oslo", "unit": ""}'
    assert play(env, task, (Message("assistant", gold),)).success
    assert not play(env, task, (Message("assistant", gold.replace("Oslo", "Rome")),)).success


def test_native_rows_have_their_documented_tools() -> None:
    env, task = on_native(ROW)
    opening, _ = env.reset(options={"task": task})
    assert tuple(map(json.loads, opening[0].tools)) == env.schemas()
    assert task.prompt == "Weather: Forecasts\n\nWhat is the weather in Oslo?"
    assert [schema["function"]["name"] for schema in env.schemas()] == ["getForecast", "listCities"]
    parameters = env.schemas()[0]["function"]["parameters"]
    assert parameters["required"] == ["city"]
    assert parameters["properties"]["unit"] == {
        "type": "string",
        "enum": ["C", "F"],
        "description": "One of: [C, F]. The unit.",
    }
    assert parameters["properties"]["tags"]["items"] == {"type": "string"}
    assert parameters["properties"]["any"] == {"description": "#Thing."}
    good = {"city": "Oslo", "unit": ""}
    assert json.loads(call(env, "getForecast", good)) == {"status": "success", "api": "getForecast"}
    assert answer(env, "Done.").success
    env.reset(options={"task": task})
    assert not answer(env, "Action: getForecast").success, "nothing is left from the last episode"


@pytest.mark.parametrize(
    ("name", "arguments", "cure"),
    [
        ("getforecast", {"city": "Oslo"}, "there is no tool 'getforecast'"),
        ("getForecast", {}, "getForecast needs the argument 'city'"),
        ("getForecast", {"city": 7}, "the argument 'city' of getForecast is '7'; expected string"),
        ("getForecast", {"city": "Oslo", "days": "3"}, "expected integer"),
        ("getForecast", {"city": "Oslo", "days": True}, "expected integer"),
        ("getForecast", {"city": "Oslo", "days": 1.5}, "expected integer"),
        ("getForecast", {"city": "Oslo", "unit": "K"}, "expected ['C', 'F']"),
        ("getForecast", {"city": "Oslo", "tags": ["a", 1]}, "expected array"),
        ("getForecast", {"city": "Oslo", "options": []}, "expected object"),
        ("getForecast", {"city": "Oslo", "self": 1}, "expected boolean"),
        ("getForecast", {"city": "Oslo", "town": "x"}, "has no argument 'town'"),
        ("getForecast", {"city": "x", "days": 10**4000}, ""),
        ("getForecast", '{"city": ', "not valid JSON"),
        ("getForecast", {"city": "x" * 1_000_000, "days": "\ud800"}, "expected integer"),
    ],
)
def test_a_refused_native_call_does_not_count_and_can_be_repaired(
    name: str, arguments: Any, cure: str
) -> None:
    env, _ = on_native(ROW)
    said = call(env, name, arguments)
    if not cure:  # large, but an integer: allowed, and counted
        assert not answer(env, "Done.").success
        return
    assert said.startswith("Error")
    assert cure in said
    assert len(said) <= env.limits.max_observation_chars
    call(env, "getForecast", {"city": "Oslo", "unit": ""})
    assert answer(env, "Done.").success


def test_a_needless_native_call_counts() -> None:
    env, _ = on_native(ROW)
    call(env, "getForecast", {"city": "Oslo", "unit": ""})
    call(env, "listCities", {})
    verdict = answer(env, "Done.")
    assert not verdict.success
    assert verdict.feedback == "The calls are getForecast, listCities, expected getForecast."


def test_awkward_parameter_names_reach_the_tool() -> None:
    made: list[Call] = []
    apis = documentation.parse(
        'run: Run.\nParameters: {"self": "string.", "config": "string.", "callbacks": "string.", '
        '"run_manager": "string.", "from": "string.", "schema": "string.", "type": "string."}\n'
        "Output: Done.\n"
    )
    (tool,) = documentation.tools(apis, made.append)
    arguments = dict.fromkeys(tool.args, "x")
    tool.invoke(arguments)
    assert made == [Call("run", arguments)]


@pytest.mark.parametrize(
    ("documented", "reason"),
    [
        ("", "0 lists of parameters, of which 0 could be read"),
        ("run: Run.\nParameters: {}\n", "1 lists of parameters, of which 0"),
        ("run: Run.\nParameters: {#Ref}\nOutput: x", "the parameters of run are no JSON"),
        ('run: Run.\nParameters: ["a"]\nOutput: x', "no JSON object of descriptions"),
        ('run: Run.\nParameters: {"a": 1}\nOutput: x', "no JSON object of descriptions"),
        ("a: x\nParameters: {}\nOutput: x\n" * 2, "has the API 'a' twice"),
    ],
)
def test_documentation_of_another_form_is_asked_as_text(documented: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"expected|the parameters of"):
        documentation.parse(documented)
    row = ROW | {"prompt": PROMPT.replace(DOCUMENTED.rstrip(), documented.rstrip())}
    _, task = on_native(row)
    assert task.payload["calling"] == "text"
    assert reason in task.payload["text_because"]
    assert task.prompt == row["prompt"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ""}, "expected a text in 'prompt', got an empty text"),
        ({"prompt": 3}, "expected a text in 'prompt', got int"),
        ({"answer": "{"}, "expected JSON in 'answer'"),
        ({"answer": "[" * 100_000}, "expected JSON in 'answer'"),
        ({"answer": []}, "expected a list of calls in 'answer'"),
        ({"answer": {"Action": "a"}}, "expected a list of calls in 'answer', got dict"),
        ({"answer": [{"Action_Input": "{}"}]}, "expected an 'Action'"),
        ({"answer": [{"Action": "a"}]}, "expected a JSON object in 'Action_Input', got NoneType"),
        ({"answer": [{"Action": "a", "Action_Input": "[]"}]}, "got list"),
        ({"answer": [{"Action": "a", "Action_Input": "{"}]}, "expected JSON in 'Action_Input'"),
        (
            {"answer": [{"Action": "get-a", "Action_Input": {}}]},
            "the published rule does not accept the answer: The calls are get, expected get-a.",
        ),
    ],
)
def test_a_malformed_row_says_what_was_expected(change: dict[str, Any], reason: str) -> None:
    for calling in ("text", "native"):
        with pytest.raises(ValueError, match=r"expected|accept") as caught:
            ToolUseEnv(calling=calling).read_row(ROW | change)  # type: ignore[arg-type]
        assert reason in str(caught.value)
        with pytest.raises(KeyError, match="answer"):
            ToolUseEnv().read_row({"prompt": PROMPT})


def test_toolalpacas_own_files_are_read(tmp_path: Path) -> None:
    api = {
        "Name": "Weather",
        "Description": "Forecasts",
        "NLDocumentation": DOCUMENTED,
        "Instructions": ["What is the weather in Oslo?", "Which cities are there?"],
        "Golden_Answers": [[GOLD], [{"Action": "listCities", "Action_Input": "{}"}]],
    }
    path = tmp_path / "eval.json"
    path.write_text(json.dumps([api]), encoding="utf-8")
    env = ToolUseEnv(data=path, calling="native")
    assert env.rows is not None
    assert [task.id for task in env.rows] == ["tool_use/Weather/0", "tool_use/Weather/1"]
    assert {task.payload["calling"] for task in env.rows} == {"native"}
    assert all(play(env, task, env.solution(task)).success for task in env.rows)
    text = ToolUseEnv(data=path, calling="text")
    assert text.task(0).prompt.endswith("\n\nBegin!\nQuestion: What is the weather in Oslo?")
    broken = {**api, "Golden_Answers": [[GOLD]]}
    path.write_text(json.dumps([broken]), encoding="utf-8")
    with pytest.raises(DataError, match="no rows from here on"):
        ToolUseEnv(data=path, strict=True)


def test_the_published_prompt_is_rebuilt_to_the_letter(shared_data: Path) -> None:
    """The prompts of the published rows are ToolAlpaca's fields in the template used here."""
    lines = (shared_data / "tooluse" / "test_dev.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        prompt = json.loads(line)["prompt"]
        head, _, rest = prompt.partition("\nDocumentation:\n")
        documented, _, rest = rest.partition("\n\nUse the following format:")
        name, _, about = head.partition("\nName: ")[2].partition("\nDescription: ")
        (row,) = ToolUseEnv.rows_of(
            {
                "Name": name,
                "Description": about,
                "NLDocumentation": documented,
                "Instructions": [rest.partition("\nBegin!\nQuestion: ")[2]],
                "Golden_Answers": [[GOLD]],
            }
        )
        assert row["prompt"] == prompt


def test_an_unknown_way_of_calling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.calling='morse': expected 'text' or 'native'"):
        ToolUseEnv(calling="morse")  # type: ignore[arg-type]
