"""Grading of multiple choice by SciKnowEval's published rule: a letter between answer tags."""

import re

from envs.types import Verdict

_SHOWN_CHARS = 60
_WELL_FORMED = re.compile(r"<answer>\s*[A-Z]\s*</answer>$")


def grade_choice(text: str, letter: str) -> Verdict:
    """Judge the reply: `tagged(text)` must equal the letter.

    As published, nothing else is asked of the form: a missing tag is as good as one at that end
    of the text. The part `format` says whether the reply ends with one letter between two tags.
    """
    answer = tagged(text)
    well_formed = _WELL_FORMED.search(text[-1000:]) is not None
    parts = {"format": float(well_formed)}
    cure = "" if well_formed else " End the reply with one letter, like <answer>A</answer>."
    if answer == letter:
        return Verdict(1.0, True, f"The answer {letter} is correct.{cure}", parts)
    said = f"The answer {shown(answer)} is not correct." if answer else "There is no answer."
    return Verdict(0.0, False, said + cure, parts)


def tagged(text: str) -> str:
    """What stands between the last `<answer>` and the next `</answer>`, stripped."""
    after = text.rpartition("<answer>")[2]
    return after.partition("</answer>")[0].strip()


def shown(answer: str) -> str:
    """An answer as it stands in a feedback: one short line that any file takes."""
    line = " ".join(answer[: 4 * _SHOWN_CHARS].split())
    line = line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 3] + "..."
    return line.encode("utf-8", "replace").decode("utf-8")
