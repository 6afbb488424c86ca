"""Grading of a number at the end of a text, by exact value or by math-verify."""

import re
from fractions import Fraction

from envs.grading.math_worker import MathWorker
from envs.types import Verdict

MAX_ANSWER_CHARS = 200
_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")
_BRACE = re.compile(r"\\boxed\{|[{}]")
_PLAIN = re.compile(r"[-+]?(\d{1,100}(\.\d{1,100})?|\.\d{1,100})(/0{0,50}[1-9]\d{0,99})?")
_math_verify = MathWorker()


def grade_number(text: str, expected: str) -> Verdict:
    """Judge the last `\\boxed{}` of `text`, or without one its last number.

    Plain numbers are compared exactly; anything else that is boxed goes to math-verify.
    """
    answer = boxed(text)
    if answer is None:
        numbers = _NUMBER.findall(text)
        if not numbers:
            return Verdict(0.0, False, "There is no \\boxed{} answer and no number in the reply.")
        answer = numbers[-1]
    if equal_numbers(answer, expected):
        return Verdict(1.0, True, f"The answer {answer[:60]} is correct.")
    return Verdict(0.0, False, f"The answer {answer[:60]} is not correct.")


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}`, its braces balanced."""
    opened: list[int | None] = []  # where each open brace's content starts; None: not a box
    start = end = -1
    for brace in _BRACE.finditer(text):
        if brace.group() != "}":
            opened.append(None if brace.group() == "{" else brace.end())
        elif opened and (inside := opened.pop()) is not None and inside > start:
            start, end = inside, brace.start()
    return None if start < 0 else text[start:end].strip()


def equal_numbers(answer: str, expected: str) -> bool:
    """Whether two written numbers have the same value."""
    if not answer or len(answer) > MAX_ANSWER_CHARS:
        return False
    left, right = plain_number(answer), plain_number(expected)
    if left is not None and right is not None:
        return left == right
    return _math_verify.equal(expected, answer)


def plain_number(text: str) -> Fraction | None:
    """The value of a number like `1,234`, `-0.5`, `$12` or `3/4`; None for anything else."""
    cleaned = text.replace("\\$", "$").replace("\\,", " ").strip(" $").rstrip(".")
    cleaned = re.sub(r"(?<=\d)[, ](?=\d{3}(?!\d))", "", cleaned)
    cleaned = re.sub(r"\s*/\s*", "/", cleaned)
    if not _PLAIN.fullmatch(cleaned):
        return None
    top, _, bottom = cleaned.partition("/")
    return Fraction(top) / Fraction(bottom or 1)
