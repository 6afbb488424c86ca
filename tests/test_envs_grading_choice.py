"""Multiple choice is judged as it was published."""

import json
import random
from pathlib import Path

import pytest

from envs.grading.choice import grade_choice

REPLY = "<reasoning>\nBy elimination: not {other}.\n</reasoning>\n<answer>\n{letter}\n</answer>"


def published(text: str, letter: str) -> bool:
    """The rule, written without a look at ours: walk to the last opening tag, then to the end."""
    start = 0
    for place in range(len(text)):
        if text.startswith("<answer>", place):
            start = place + len("<answer>")
    end = text.find("</answer>", start)
    return (text[start:] if end < 0 else text[start:end]).strip() == letter


def mutate(rng: random.Random, text: str, letter: str, other: str) -> str:
    """One change such as models make, and some that only an adversary would."""
    place = rng.randrange(len(text) + 1)
    changes = (
        lambda: text.replace("<answer>", "", 1),
        lambda: text.replace("</answer>", "", 1),
        lambda: text.replace("</answer>", "<answer>"),
        lambda: text.replace("<answer>", "</answer>"),
        lambda: text.replace("<answer>", rng.choice(("<ANSWER>", "< answer>", "<answer >"))),
        lambda: text + f"\n<answer>{rng.choice((letter, other, ''))}</answer>",
        lambda: text + f"\n<answer>{rng.choice((letter, other))}",
        lambda: f"<answer>{rng.choice((letter, other))}</answer>\n" + text,
        lambda: f"</answer>{text}",
        lambda: text.replace(
            f"\n{letter}\n", rng.choice((letter, f" {letter}\t", f"\r\n{letter}"))
        ),
        lambda: text.replace(f"\n{letter}\n", f"\n{other}\n"),
        lambda: text.replace(f"\n{letter}\n", f"\n{letter.lower()}\n"),
        lambda: text.replace(
            f"\n{letter}\n", f"\n{rng.choice(('({})', '{}.', '{}: 1.5'))}\n"
        ).replace("{}", letter),
        lambda: text.replace(letter, rng.choice(("\u0410", "\u200b" + letter, "\u00a0" + letter))),
        lambda: text.replace("\n", rng.choice(("", " ", "\n\n", "\u2028", "\x1f"))),
        lambda: text[:place],
        lambda: text[place:],
        lambda: text[:place] + rng.choice(("<answer>", "</answer>", letter, "\x00")) + text[place:],
        lambda: rng.choice((letter, other, f"\n{letter} ", "")),
        lambda: text.swapcase(),
    )
    return rng.choice(changes)()


def test_six_hundred_mutated_replies_are_judged_as_published() -> None:
    rng = random.Random(4)
    outcomes = []
    for number in range(600):
        letter, other = rng.sample("ABCDEFGHIJ" if number % 3 else "ABCD", 2)
        text = REPLY.format(letter=letter, other=other)
        for _ in range(rng.randint(1, 3)):
            text = mutate(rng, text, letter, other)
        verdict = grade_choice(text, letter)
        assert verdict.success == published(text, letter), text
        assert verdict.reward == float(verdict.success)
        assert verdict.feedback
        outcomes.append(verdict.success)
    assert 150 < sum(outcomes) < 450


def test_mutated_answers_to_published_questions_are_judged_as_published(shared_data: Path) -> None:
    rng = random.Random(5)
    for name in ("biology_test", "chemistry_test"):
        lines = (shared_data / "sciknoweval" / f"{name}.jsonl").read_text().splitlines()
        for line in lines * 2:
            row = json.loads(line)
            letter, other = row["answer"], rng.choice("ABCD".replace(row["answer"], ""))
            text = mutate(
                rng, row["prompt"] + REPLY.format(letter=letter, other=other), letter, other
            )
            assert grade_choice(text, letter).success == published(text, letter), text


@pytest.mark.parametrize(
    ("text", "success", "says"),
    [
        ("<answer>\nB\n</answer>", True, "The answer B is correct."),
        ("<answer>C</answer>", False, "The answer C is not correct."),
        ("<answer>B</answer> I am sure.", True, "End the reply with one letter"),
        ("<answer>b</answer>", False, "The answer b is not correct. End the reply with one letter"),
        ("<answer></answer>", False, "There is no answer. End the reply with one letter"),
        ("It is " + "x" * 10_000_000, False, "The answer It is xxx"),
    ],
)
def test_the_feedback_says_what_was_wrong(text: str, success: bool, says: str) -> None:
    verdict = grade_choice(text, "B")
    assert verdict.success == success
    assert verdict.feedback.startswith(says) or says in verdict.feedback
    assert len(verdict.feedback) < 200


def test_a_feedback_can_be_written_to_any_file() -> None:
    grade_choice("<answer>\ud800</answer>", "B").feedback.encode()


def test_the_form_is_a_part_of_its_own() -> None:
    assert grade_choice("<answer>\nC\n</answer>", "B").parts == {"format": 1.0}
    assert grade_choice("B", "B").parts == {"format": 0.0}
