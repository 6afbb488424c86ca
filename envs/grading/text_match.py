"""Grading of a short text by SQuAD's rule: exact match and F1 after its normalisation."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

from envs.types import Verdict

MAX_ANSWER_CHARS = 10_000  # far beyond any short answer; what is longer is not compared
OPEN, CLOSE = "<answer>", "</answer>"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def grade_text(text: str, answers: Sequence[str]) -> Verdict:
    """Judge the final answer of `text`: reward 1 for an exact match, F1 as a part."""
    answer = final_answer(text)
    if not answer:
        return Verdict(0.0, False, f"There is no answer in {OPEN}{CLOSE}.", {"f1": 0.0})
    correct = exact_match(answer, answers)
    judged = "is correct" if correct else "is not correct"
    parts = {"f1": best_f1(answer, answers)}
    return Verdict(float(correct), correct, f"The answer {answer[:60]!r} {judged}.", parts)


def final_answer(text: str) -> str:
    """What stands between the last `<answer>` and the next `</answer>`, or without one all."""
    start = text.rfind(OPEN)
    if start < 0:
        return text.strip()
    end = text.find(CLOSE, start)
    return text[start + len(OPEN) : end].strip() if end >= 0 else ""


def exact_match(answer: str, expected: Iterable[str]) -> bool:
    """Whether `answer` equals one of `expected`, both normalised."""
    return len(answer) <= MAX_ANSWER_CHARS and comparable(answer) in map(comparable, expected)


def best_f1(answer: str, expected: Iterable[str]) -> float:
    """The highest F1 of the words of `answer` against those of each of `expected`."""
    if len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    return max(
        (_f1(comparable(answer).split(), comparable(e).split()) for e in expected), default=0
    )


def comparable(text: str) -> str:
    """The normalised text, or where nothing is left of it (`The`, `!`) the small letters."""
    return normalise(text) or text.strip().lower()


def normalise(text: str) -> str:
    """SQuAD's normalisation: small letters, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(answer: Sequence[str], expected: Sequence[str]) -> float:
    common = (Counter(answer) & Counter(expected)).total()
    return 2 * common / (len(answer) + len(expected)) if common else 0.0
