"""Calls written as text: read as they are meant, answered as text, repaired with advice."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs.text_actions import REPAIR, TextActions, instructions, read_actions, write_actions
from envs.types import Message, StopReason, ToolCall


def said(text: str) -> Message:
    return Message("assistant", text)


@pytest.fixture
def player() -> TextActions:
    made = TextActions(envs.make("calculator"))
    made.reset(seed=0)
    return made


def test_the_system_message_describes_tools_and_format() -> None:
    env = envs.make("calculator")
    (system, user), info = TextActions(env).reset(seed=0)
    assert system.content == (
        f"{env.system_prompt}\n\nTools:\n"
        "calculate(expression: string): Evaluate an arithmetic expression.\n\n"
        "To use a tool, write these two lines and wait for its result:\n"
        "Action: name of the tool\n"
        'Action Input: {"argument": value}\n'
        "A message without an action is your final answer."
    )
    assert user.role == "user"
    assert info["task"]


def test_arguments_show_what_is_optional_and_what_can_be_chosen() -> None:
    schema = {
        "function": {
            "name": "paint",
            "description": "Paint it.",
            "parameters": {
                "properties": {
                    "colour": {"enum": ["red", "blue"], "description": "of the wall"},
                    "coats": {"type": "integer"},
                },
                "required": ["colour"],
            },
        }
    }
    line = 'paint(colour: "red" | "blue" (of the wall), coats?: integer): Paint it.'
    assert line in instructions([schema])
    assert instructions([]) == ""


def test_an_action_is_answered_with_an_observation(player: TextActions) -> None:
    action = 'I compute.\nAction: calculate\nAction Input: {"expression": "6 * 7"}'
    observation, reward, terminated, truncated, info = player.step(said(action))
    assert observation == (Message("user", "Observation: 42"),)
    assert (reward, terminated, truncated, info["tool_calls"]) == (0.0, False, False, 1)
    assert player.tool_env.transcript[-2].content == action


def test_several_actions_are_answered_in_order(player: TextActions) -> None:
    action = "\n".join(
        f'Action: {name}\nAction Input: {{"expression": "{n} + 1"}}'
        for n, name in enumerate(("calculate", "compute", "calculate"))
    )
    (message,), *_ = player.step(said(action))
    first, second, third = message.content.split("\n")
    assert (first, third) == ("Observation: 1", "Observation: 3")
    assert second.startswith("Observation: Error: there is no tool 'compute'. Tools: calculate")


def test_text_without_an_action_is_the_answer(player: TextActions) -> None:
    task = player.tool_env.current_task
    assert task is not None
    observation, reward, terminated, _, _ = player.step(said(f"It is \\boxed{{{task.answer}}}."))
    assert (observation, reward, terminated) == ((), 1.0, True)


@pytest.mark.parametrize(
    "text",
    [
        "Action: calculate",
        "Action: calculate\nAction Input: ",
        'Action: calculate\nAction Input: {"expression": ',
        "Action: calculate\nAction Input: 6 * 7",
        "Action: calculate\nAction Input: [1]",
        "Action:",
        'Action:\nAction Input: {"expression": "1"}',
        "Action: calculate\nAction Input: " + "[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_answered_with_how_to_write_it(
    player: TextActions, text: str
) -> None:
    for turn in range(3):
        observation, _, _, truncated, _ = player.step(said(text))
        assert observation == (Message("user", f"Observation: {REPAIR}"),)
        assert truncated == (turn == 2)
    assert player.tool_env.stop_reason is StopReason.MALFORMED


def test_line_breaks_within_a_text_are_read(player: TextActions) -> None:
    text = 'Action: calculate\nAction Input:\n {"expression": "(1 +\n 2)"}\nObservation: 4'
    (message,), *_ = player.step(said(text))
    assert message.content == "Observation: 3"


names = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), min_size=1)
arguments = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()))
calls = st.builds(lambda n, a: ToolCall("", n, json.dumps(a)), names, arguments)


@given(st.lists(calls, max_size=4))
def test_what_is_written_is_read_again(written: list[ToolCall]) -> None:
    text = write_actions(Message("assistant", "So:", tuple(written))).content
    read = read_actions(text)
    assert [(call.name, json.loads(call.arguments)) for call in read] == [
        (call.name, json.loads(call.arguments)) for call in written
    ]


def test_a_native_call_is_refused(player: TextActions) -> None:
    with pytest.raises(TypeError, match="got 1 tool calls; expected them as text"):
        player.step(Message("assistant", "", (ToolCall("0", "calculate", "{}"),)))


def test_what_is_exchanged_belongs_to_the_spaces(player: TextActions) -> None:
    player.action_space.seed(0)
    for _ in range(20):
        observation, _ = player.reset(seed=1)
        assert player.observation_space.contains(observation)
        action = player.action_space.sample()
        assert player.action_space.contains(action)
        assert player.observation_space.contains(player.step(action)[0])
