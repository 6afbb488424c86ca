"""Short answers are judged by SQuAD's rule, here beside that rule written down once more."""

import re
import string
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.grading.text_match import (
    best_f1,
    comparable,
    exact_match,
    final_answer,
    grade_text,
    normalise,
)


def published_normalisation(text: str) -> str:
    """As in SQuAD's evaluation: small letters, punctuation, articles, white space."""
    bare = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def published_f1(answer: str, expected: str) -> float:
    """As in SQuAD's evaluation, from precision and recall."""
    left, right = (published_normalisation(text).split() for text in (answer, expected))
    same = sum((Counter(left) & Counter(right)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("answer", "expected", "match", "f1"),
    [
        ("Denver Broncos", "The Denver Broncos!", True, 1.0),
        ("denver  broncos", "Denver Broncos", True, 1.0),
        ("Broncos", "Denver Broncos", False, 2 / 3),
        ("U.S.A.", "USA", True, 1.0),
        ("1,000", "1000", True, 1.0),
        ("an apple a day", "apple day", True, 1.0),
        ("theatre", "atre", False, 0.0),
        ("half-life", "half life", False, 0.0),
        ("Café", "cafe", False, 0.0),
        ("the the cat", "cat cat", False, 2 / 3),
        ("", "cat", False, 0.0),
        ("The", "A", False, 0.0),
        ("The", "the", True, 1.0),
        ("!", "?", False, 0.0),
        ("6½", "6½", True, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(
    answer: str, expected: str, match: bool, f1: float
) -> None:
    assert exact_match(answer, [expected]) is match
    assert best_f1(answer, [expected]) == pytest.approx(f1)


@given(st.text(max_size=40) | st.text("aAnthe .,!-'\n\t", max_size=40))
def test_normalisation_is_the_published_one(text: str) -> None:
    assert normalise(text) == published_normalisation(text)


@given(*[st.lists(st.sampled_from(["a", "the", "red", "cat.", "Cat", "sat"]), max_size=6)] * 2)
def test_f1_is_the_published_one(answer: list[str], expected: list[str]) -> None:
    left, right = " ".join(answer), " ".join(expected)
    if normalise(left) and normalise(right):
        assert best_f1(left, [right]) == pytest.approx(published_f1(left, right))
        assert exact_match(left, [right]) == (normalise(left) == normalise(right))


def test_the_best_of_several_accepted_answers_counts() -> None:
    assert exact_match("NYC", ["New York", "nyc"])
    assert best_f1("York", ["Denver", "New York"]) == pytest.approx(2 / 3)
    assert not exact_match("NYC", [])
    assert best_f1("NYC", []) == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> Oslo </answer>", "Oslo"),
        ("<answer>Rome</answer> No: <answer>Oslo</answer>. Sure.", "Oslo"),
        ("  Oslo\n", "Oslo"),
        ("<answer>Oslo", ""),
        ("<answer></answer>", ""),
        ("Oslo</answer>", "Oslo</answer>"),
        ("", ""),
    ],
)
def test_the_answer_stands_in_the_last_tags_or_is_the_whole(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_the_verdict_has_f1_beside_the_reward_and_tells_no_answer() -> None:
    right = grade_text("So: <answer>the Oslo fjord</answer>", ["Oslo Fjord"])
    assert (right.reward, right.success, right.parts) == (1.0, True, {"f1": 1.0})
    wrong = grade_text("<answer>Oslo</answer>", ["Oslo Fjord"])
    assert (wrong.reward, wrong.success) == (0.0, False)
    assert wrong.parts["f1"] == pytest.approx(2 / 3)
    assert "'Oslo'" in wrong.feedback
    assert "Fjord" not in wrong.feedback
    assert "no answer" in grade_text("<answer>", ["Oslo"]).feedback


def test_a_huge_answer_is_wrong_at_once() -> None:
    started = time.process_time()
    for text in (
        "<answer>" * 100_000,
        "the " * 500_000,
        "<answer>" + "x, " * 500_000 + "</answer>",
    ):
        assert not grade_text(text, ["Oslo"]).success
    assert time.process_time() - started < 2
    assert comparable("x") == "x"
