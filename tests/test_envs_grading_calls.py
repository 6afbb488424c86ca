"""The published rule for calls, against the published reading of texts."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.grading.calls import (
    Call,
    grade_recorded,
    grade_written,
    write,
    written_inputs,
    written_names,
)

WEATHER = (
    Call("getWeather", {"city": "Oslo", "days": 3}),
    Call("setAlert", {"city": "Oslo", "when": ["rain", "snow"]}),
)


def as_published(text: str, expected: Sequence[Call]) -> bool:
    """The rule as the published experiments compute it: an object ends at its first brace."""
    merged: dict[str, Any] = {}
    for block in re.findall(r"Action Input:\s*({.*?})", text, re.DOTALL):
        try:
            merged.update(json.loads(block))
        except json.JSONDecodeError:
            continue
    wanted: dict[str, Any] = {}
    for call in expected:
        wanted.update(call.arguments)
    names = re.findall(r"Action:\s*(\w+)", text)
    return Counter(names) == Counter(call.name for call in expected) and merged == wanted


def as_described(text: str, expected: Sequence[Call]) -> bool:
    """The rule in its words: the names, and the whole JSON objects after each `Action Input:`."""
    merged: dict[str, Any] = {}
    for piece in text.split("Action Input:")[1:]:
        try:
            merged.update(json.JSONDecoder().raw_decode(piece.lstrip())[0])
        except (ValueError, TypeError):
            continue
    wanted: dict[str, Any] = {}
    for call in expected:
        wanted.update(call.arguments)
    names = re.findall(r"Action:\s*(\w+)", text)
    return sorted(names) == sorted(call.name for call in expected) and merged == wanted


def spoil(text: str, rng: random.Random, old: str, new: str) -> str:
    """`text` with one of the places of `old` replaced."""
    places = [found.start() for found in re.finditer(re.escape(old), text)]
    if not places:
        return text
    place = rng.choice(places)
    return text[:place] + new + text[place + len(old) :]


Mutation = Callable[[list[Call], random.Random], str]
EDITS = (
    ("Action:", "Action: "), ("Action:", "Action:\n"), ("Action:", "**Action:**"),
    ("Action:", "action:"), ("Action:", "Action: Action:"), ("Action:", "Action"),
    ("Action Input:", "Action Input:\n  "), ("Action Input:", "Action Input: ```json\n"),
    ("Action Input:", "Action Input"), ("Action Input:", "Observation: ok\nAction Input:"),
    ("}", ""), ("}", "}}"), ("}", "} and more {}"), ("}", "}\nAction Input: {}"), ("}", ",}"),
    ("{", ""), ("{", "{ "), ("{", "{{"), ('"', "'"), ('"', ""), (",", ",,"), (": ", ":"),
    ("1", "1.0"), ("1", "01"), ("true", "1"), ("a", "\u00e4"), ("e", "E"), ("\n", "\n\n"),
    ("\n", " "), ("\n", "\nThought: the next Action: none\n"), ("get", "get-"), ('": ', '" : '),
)  # fmt: skip


def change(calls: Sequence[Call], rng: random.Random) -> list[Call]:
    """Calls with one dropped, repeated, swapped or with another argument; sometimes as they are."""
    place = rng.randrange(len(calls))
    call = calls[place]
    key = rng.choice(list(call.arguments) or ["none"])
    other = rng.choice(["x", 0, None, [], {}, {"a": 1}, "}", "{", str(call.arguments.get(key))])
    return rng.choice(
        [
            list(calls),
            [*calls[:place], *calls[place + 1 :]],
            [*calls, call],
            list(reversed(calls)),
            rng.sample(calls, len(calls)),
            [*calls[:place], Call(call.name, {**call.arguments, key: other}), *calls[place + 1 :]],
            [*calls[:place], Call(call.name + "s", call.arguments), *calls[place + 1 :]],
        ]
    )


def mutated(expected: Sequence[Call], rng: random.Random) -> str:
    calls = change(expected, rng) if rng.random() < 0.5 else expected
    text = f"Thought: easy.\n{write(calls)}"
    for _ in range(rng.choice((0, 1, 1, 2))):
        text = spoil(text, rng, *rng.choice(EDITS))
    return text + rng.choice(("", "\nThought: done.", "\n}", " {}"))


def has_inner_braces(text: str) -> bool:
    """Whether some object has a brace inside, where the published reading ends too early."""
    objects = written_inputs(text)
    return any(set("{}") & set(json.dumps(value)[1:-1]) for value in objects)


def check_parity(rows: Sequence[Sequence[Call]], count: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(number)
        expected = rows[number % len(rows)]
        text = mutated(expected, rng)
        ours, published = grade_written(text, expected).success, as_published(text, expected)
        seen["success" if ours else "failure"] += 1
        if has_inner_braces(text):
            seen["inner braces"] += 1
            assert ours == as_described(text, expected), text
        else:
            assert ours == published, text
        seen["differs from the published code"] += ours != published
        seen["differs from the words"] += ours != as_described(text, expected)
    return seen


def test_500_mutated_responses_are_judged_as_published() -> None:
    rows = [
        WEATHER,
        (Call("getFacts", {}),),
        (Call("a", {"x": 1}), Call("a", {"x": 1, "y": True})),
        (Call("find", {"text": "caf\u00e9 \"quoted\" \\ 1", "page": 1}), Call("stop", {})),
    ]  # fmt: skip
    seen = check_parity(rows, 500)
    assert min(seen["success"], seen["failure"]) > 100, seen
    # Only where an object has a brace inside, which the published code cannot read.
    assert seen["differs from the published code"] <= seen["inner braces"] < 60, seen
    assert seen["differs from the words"] == 0


def test_500_mutated_responses_to_the_public_rows_are_judged_as_published(
    shared_data: Path,
) -> None:
    lines = (shared_data / "tooluse" / "test_dev.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(json.loads(line)["answer"]) for line in lines]
    rows = [
        [Call(call["Action"], json.loads(call["Action_Input"])) for call in answer]
        for answer in answers
    ]
    seen = check_parity(rows, 500)
    assert min(seen["success"], seen["failure"]) > 100, seen
    assert seen["differs from the published code"] <= seen["inner braces"] < 30, seen
    assert seen["differs from the words"] == 0


def test_an_object_inside_an_object_is_read_whole() -> None:
    expected = (Call("update", {"id": "g", "data": {"url": "https://x.org/{id}"}}),)
    text = write(expected)
    assert grade_written(text, expected).success
    assert not as_published(text, expected)
    assert written_inputs(text) == [dict(expected[0].arguments)]


def test_order_matters_only_where_inputs_share_a_key() -> None:
    assert grade_written(write(reversed(WEATHER)), WEATHER).success
    steps = (Call("a", {"x": 1}), Call("b", {"x": 2}))
    assert not grade_written(write(reversed(steps)), steps).success
    assert not grade_recorded(steps[::-1], steps).success
    assert grade_recorded(steps, steps).success


@pytest.mark.parametrize(
    ("calls", "feedback"),
    [
        ((), "The calls are none, expected getWeather, setAlert."),
        (WEATHER[:1], "The calls are getWeather, expected getWeather, setAlert."),
        ((*WEATHER, WEATHER[0]), "The calls are getWeather, setAlert, getWeather, expected"),
        (
            (Call("getWeather", {"city": "Oslo", "days": 4}), WEATHER[1]),
            "The argument 'days' is 4, expected 3.",
        ),
        (
            (Call("getWeather", {"city": "Oslo"}), WEATHER[1]),
            "The argument 'days' is missing, expected 3.",
        ),
        (
            (Call("getWeather", {"city": "Oslo", "days": 3, "unit": "C"}), WEATHER[1]),
            "The argument 'unit' was not expected.",
        ),
    ],
)
def test_the_feedback_names_the_first_difference(calls: tuple[Call, ...], feedback: str) -> None:
    for verdict in (grade_recorded(calls, WEATHER), grade_written(write(calls), WEATHER)):
        assert not verdict.success
        assert verdict.reward == 0.0
        assert verdict.feedback.startswith(feedback)
        assert set(verdict.parts) == {"names", "inputs"}


@pytest.mark.parametrize(
    "text",
    [
        "Action Input: " + '{"a": ' * 100_000,
        'Action Input: {"a": ' + "[" * 100_000 + "}",
        'Action Input: {"a": ' + "9" * 10_000 + "}",
        "Action Input: {" * 60_000 + "}",
        "Action: " * 100_000,
        "Action:" + " " * 1_000_000,
        'Action Input: {"\ud800": "\ud800"} Action: \ud800x',
        "Action Input: {}" * 60_000,
    ],
)
def test_hostile_texts_fail_quickly_and_say_why(text: str) -> None:
    verdict = grade_written(text, WEATHER)
    assert not verdict.success
    assert len(verdict.feedback) < 1000
    verdict.feedback.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ("Action:", "Action Input:", " ", "\n", "{", "}", '"', "a", ":", "1", ",", "[", "]")
        ),
        max_size=30,
    ).map("".join)
)
def test_any_text_is_read_as_published_unless_braces_nest(text: str) -> None:
    expected = (Call("a", {"a": 1}),)
    if not has_inner_braces(text):
        assert grade_written(text, expected).success == as_published(text, expected)
    assert written_names(text) == re.findall(r"Action:\s*(\w+)", text)
