"""Grading of a number at the end of a text, by exact value and by math-verify."""

import re
from fractions import Fraction

from envs.types import Verdict

MAX_ANSWER_CHARS = 200
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")


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
    for start in reversed([m.end() for m in re.finditer(r"\\boxed\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None


def equal_numbers(answer: str, expected: str) -> bool:
    """Whether two written numbers have the same value."""
    left, right = plain_number(answer), plain_number(expected)
    if left is not None and right is not None:
        return left == right
    if not answer or len(answer) > MAX_ANSWER_CHARS or _explosive(answer):
        return False
    # Late: sympy takes a second to import, and plain numbers never need it.
    from math_verify import parse, verify

    # Its timeouts use signals, which only the main thread may; the bounds above replace them.
    gold = parse(f"\\boxed{{{expected}}}", parsing_timeout=None, raise_on_error=False)
    guess = parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=False)
    return bool(verify(gold, guess, timeout_seconds=None, raise_on_error=False))


def plain_number(text: str) -> Fraction | None:
    """Value of `1,234`, `-0.5`, `$3/4`, `12%`-free plain numbers; None for anything else."""
    cleaned = text.strip().strip("$").replace("\\$", "").replace("\\,", "").replace(" ", "")
    cleaned = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", cleaned).rstrip(".")
    if not re.fullmatch(r"[-+]?(\d{1,100}(\.\d{1,100})?|\.\d{1,100})(/0*[1-9]\d{0,99})?", cleaned):
        return None
    top, _, bottom = cleaned.partition("/")
    return Fraction(top) / Fraction(bottom or 1)


def _explosive(answer: str) -> bool:
    """Towers, factorials and long exponents: sympy would try to compute them."""
    return answer.count("^") + answer.count("**") > 2 or "!" in answer or bool(
        re.search(r"(\^|\*\*)\s*\{?\s*[-+(]?\s*\d{3,}", answer)
    )
