"""Rows of SciKnowEval, MMLU-Pro and GPQA files as multiple-choice tasks."""

import random
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from envs.data import text_field
from envs.tasks import stable_seed
from envs.types import Task

FORMATS = ("SciKnowEval", "SciKnowEval of SDPO", "MMLU-Pro", "GPQA")
# The published prompts, to the letter: SciKnowEval's are the same for two options and for four.
SYSTEM = """
Given a question and {number} options, please select the right answer. \
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option ({letters}), \
and nothing else. Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
CLOSING = "\nPlease reason step by step."
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_OPTION = re.compile(r"^([A-Z]): ?(.*)$", re.MULTILINE)
_GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read_row(row: Mapping[str, Any]) -> Task:
    """The task of a row, whose format is told by its fields.

    | format | fields |
    |---|---|
    | SciKnowEval | `question`, `choices` of `text` and `label`, `answerKey` |
    | SciKnowEval of SDPO | `kind` "mcq", `system`, `prompt` with its options, `answer` |
    | MMLU-Pro | `question_id`, `question`, `options`, `answer`, `answer_index` |
    | GPQA | `Question`, `Correct Answer`, `Incorrect Answer 1` to 3, `Record ID` |

    GPQA's options are shuffled, each question's in an order of its own.

    Raises:
        KeyError, ValueError: the row is none of them, or not one of its options is the answer.
    """
    if "kind" in row:
        return _prepared(row)
    if "choices" in row:
        return _sciknoweval(row)
    if "options" in row:
        return _mmlu_pro(row)
    if _GPQA[0] in row:
        return _gpqa(row)
    fields = ", ".join(map(repr, list(row)[:20]))[:300]
    raise ValueError(f"expected the fields of {' or '.join(FORMATS)}; got {fields or 'none'}")


def system(count: int) -> str:
    """The published system prompt, for a number of options."""
    letters = ", ".join(ascii_uppercase[: count - 1])
    return SYSTEM.format(
        number=_NUMBERS[count], letters=f"{letters}, or {ascii_uppercase[count - 1]}"
    )


def _prepared(row: Mapping[str, Any]) -> Task:
    if row["kind"] != "mcq":
        raise ValueError(f"expected 'kind' \"mcq\", got {str(row['kind'])[:40]!r}")
    prompt, answer = text_field(row, "prompt"), text_field(row, "answer")
    # The options are the last lines A, B, ...: a question may hold such lines, too.
    found = _OPTION.findall(prompt)
    starts = [place for place, (letter, _) in enumerate(found) if letter == "A"]
    options = found[starts[-1] :] if starts else []
    letters = "".join(letter for letter, _ in options)
    _check(letters, [text for _, text in options], answer)
    identity = f"sciknoweval/{_digest(prompt)}"
    return _task(identity, prompt, answer, letters, text_field(row, "system"))


def _sciknoweval(row: Mapping[str, Any]) -> Task:
    choices = row["choices"]
    if not isinstance(choices, Mapping):
        raise ValueError(f"expected a mapping in 'choices', got {type(choices).__name__}")
    labels, texts = _texts(choices, "label"), _texts(choices, "text")
    if not labels:
        raise ValueError(
            f"no choices; the type {str(row.get('type'))[:40]!r} is no multiple choice"
        )
    prompt = _written(text_field(row, "question"), labels, texts)
    answer = text_field(row, "answerKey").strip()
    letters = "".join(labels)
    _check(letters, texts, answer)
    return _task(f"sciknoweval/{_digest(prompt)}", prompt, answer, letters, system(4))


def _mmlu_pro(row: Mapping[str, Any]) -> Task:
    # As its own evaluation does: N/A fills up what had fewer than ten options.
    options = [option for option in _texts(row, "options") if option != "N/A"]
    letters, answer = ascii_uppercase[: len(options)], text_field(row, "answer").strip()
    index = row.get("answer_index")
    if index is not None and letters.find(answer) != index:
        raise ValueError(f"'answer' {answer[:20]!r} and 'answer_index' {index!r} disagree")
    prompt = _written(text_field(row, "question"), letters, options)
    _check(letters, options, answer)
    identity = row.get("question_id", _digest(prompt))
    return _task(f"mmlu_pro/{identity}", prompt, answer, letters, system(len(options)))


def _gpqa(row: Mapping[str, Any]) -> Task:
    question = text_field(row, "Question").strip()
    options = [text_field(row, field).strip() for field in _GPQA]
    correct = options[0]
    random.Random(stable_seed("options", question)).shuffle(options)
    letters = ascii_uppercase[: len(options)]
    answer = letters[options.index(correct)]
    _check(letters, options, answer)
    prompt = _written(question, letters, options)
    identity = row.get("Record ID", _digest(question))
    return _task(f"gpqa/{identity}", prompt, answer, letters, system(4))


def _written(question: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """SciKnowEval's published prompt."""
    pairs = zip(letters, options, strict=True)
    return f"{question}\n\n" + "\n".join(f"{a}: {text}" for a, text in pairs) + CLOSING


def _check(letters: str, options: Sequence[str], answer: str) -> None:
    """The options are A, B, ... and one of them, once, is the answer."""
    if not 2 <= len(letters) <= 10 or letters != ascii_uppercase[: len(letters)]:
        raise ValueError(f"expected 2 to 10 options A, B, ..., got {letters[:40]!r}")
    if answer not in list(letters):
        raise ValueError(f"expected an answer out of {letters}, got {answer[:40]!r}")
    texts = [text.strip() for text in options]
    right = texts[letters.index(answer)]
    if texts.count(right) > 1:
        raise ValueError(f"defective: the right option {answer} {right[:60]!r} stands there twice")


def _texts(row: Mapping[str, Any], field: str) -> list[str]:
    values = row[field]
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"expected a list of texts in {field!r}, got {type(values).__name__}")
    return list(values)


def _task(identity: str, prompt: str, answer: str, letters: str, system_prompt: str) -> Task:
    payload = {"kind": "choice", "system": system_prompt, "letters": letters}
    return Task(identity, prompt, answer, payload)


def _digest(text: str) -> str:
    return f"{stable_seed(text) % 16**12:012x}"
