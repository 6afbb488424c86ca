"""Grading of a number at the end of a text, by exact value or by math-verify."""

import re
from fractions import Fraction

from envs.grading.math_worker import MathWorker
from envs.types import Verdict

MAX_ANSWER_CHARS = 200
_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")
_BRACE = re.compile(r"\\boxed\{|[{}]")
_PLAIN = re.compile(r"[-+]?(\d{1,100}(\.\d{1,100})?|\.\d{1,100})(/0{0,50}[1-9]\d{0,99})?")
_FORMULA = re.compile(r"\$([^$]{1,500})\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL)
_MIXED = re.compile(r"(-?)(\d{1,50}) (\d{1,50})/(0{0,9}[1-9]\d{0,40})")
_MEASURED = re.compile(r"([-+]?[\d,]{1,50}(?:\.\d{1,50})?) ?([A-Za-z]{3,}(?: [A-Za-z]+){0,5})\.?")
# Words behind a number that are no unit: they change what it says.
_CHANGING = {
    *("hundred", "thousand", "million", "billion", "trillion", "dozen", "percent", "half"),
    *("squared", "cubed", "plus", "minus", "times", "over", "and", "not", "than", "mod"),
    *("log", "sin", "cos"),
}
_math_verify = MathWorker()


def grade_number(text: str, expected: str) -> Verdict:
    """Judge the last `\\boxed{}` of `text`, or without one its last number or formula.

    Plain numbers are compared exactly; anything else that is boxed goes to math-verify.
    """
    answer = boxed(text)
    if answer is None:
        answer = _unboxed(text, expected)
    if answer is None:
        return Verdict(0.0, False, "There is no \\boxed{} answer and no number in the reply.")
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
    """Whether two written answers have the same value; a unit behind a number does not count."""
    if not answer or len(answer) > max(MAX_ANSWER_CHARS, 2 * len(expected)):
        return False
    left, right = plain_number(answer), plain_number(expected)
    if left is not None and right is not None:
        return left == right
    answer, expected = _tidy(answer), _tidy(expected)
    if answer == expected:
        return True
    if right is not None:
        mixed, measured = _MIXED.fullmatch(answer), _MEASURED.fullmatch(answer)
        if mixed:
            value = Fraction(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
            return right == (-value if mixed[1] else value)
        if measured and not _CHANGING.intersection(measured[2].lower().split()):
            return plain_number(measured[1]) == right
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


def _unboxed(text: str, expected: str) -> str | None:
    """What an answer without a box most likely means: its last number, or its last formula."""
    if plain_number(expected) is None:
        *_, last = (None, *_FORMULA.finditer(text))
        if last is not None:
            return str(last[last.lastindex or 0]).strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _tidy(text: str) -> str:
    """The same answer in one of its many spellings."""
    text = re.sub(r"\\(left|right)(?![a-zA-Z])", "", text.replace("\\varnothing", "\\emptyset"))
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac(\\[a-zA-Z]+|\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    whole = re.fullmatch(r"\s*\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}\s*", text)
    return " ".join((whole[1] if whole else text).split())
