"""ToolAlpaca's questions, in the prompts of the published experiments or in its own files."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from envs.data import text_field
from envs.grading.calls import Call, grade_written, write
from envs.tasks import stable_seed
from envs.tool_use import documentation
from envs.types import Task

Calling = Literal["text", "native"]

_DOCUMENTATION = "\nDocumentation:\n"
_FORMAT = "\n\nUse the following format:"
_QUESTION = "\nBegin!\nQuestion: "
# The first line ends with a space, as published.
_PROMPT = """\
Your task is to answer the user's question using available tools.\x20
You have access to the following tools:
Name: {name}
Description: {description}
Documentation:
{documentation}

Use the following format:
Thought: you should always think about what to do
Action: the action to take, should be one of the tool names.
Action Input: the input to the action, must be in JSON format. \
All of the action input must be realistic and from the user.

Begin!
Question: {question}"""


def rows_of(document: Any) -> Iterable[Any]:
    """One row for each question: ToolAlpaca's own files hold many to an API."""
    for api in document if isinstance(document, list) else [document]:
        if not (isinstance(api, dict) and "Instructions" in api):
            yield api
            continue
        questions, answers = api["Instructions"], api["Golden_Answers"]
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield {
                "id": f"{api['Name']}/{number}",
                "answer": answer,
                "prompt": _PROMPT.format(
                    name=api["Name"],
                    description=api["Description"],
                    documentation=str(api["NLDocumentation"]).rstrip(),
                    question=question,
                ),
            }


def read(row: Mapping[str, Any], calling: Calling) -> Task:
    """A task from a row with `prompt` and `answer`, a list of `Action` and `Action_Input`.

    A row that cannot be posed natively is posed as text, and `payload["text_because"]` says why.

    Raises:
        KeyError, ValueError: a field is missing or of another form, or no reply can be right.
    """
    prompt = text_field(row, "prompt")
    expected = _expected(row["answer"])
    if not (verdict := grade_written(write(expected), expected)).success:
        raise ValueError(f"the published rule does not accept the answer: {verdict.feedback}")
    name = row.get("idx", row.get("id"))
    identity = name if isinstance(name, (int, str)) else f"{stable_seed(prompt):x}"
    payload: dict[str, Any] = {
        "kind": "api",
        "calling": "text",
        "expected": tuple((c.name, json.dumps(dict(c.arguments))) for c in expected),
    }
    if calling == "native":
        try:
            prompt, payload["documentation"] = _native(prompt, expected)
            payload["calling"] = "native"
        except ValueError as error:
            payload["text_because"] = str(error)
    return Task(f"tool_use/{identity}", prompt, json.dumps(row["answer"]), payload)


def expected_calls(task: Task) -> tuple[Call, ...]:
    """The calls that answer the task's question."""
    return tuple(Call(name, json.loads(text)) for name, text in task.payload["expected"])


def _native(prompt: str, expected: Iterable[Call]) -> tuple[str, str]:
    """The prompt without what the tools say themselves, and the documentation."""
    head, cut, rest = prompt.partition(_DOCUMENTATION)
    documented, cut_format, rest = rest.partition(_FORMAT)
    _, cut_question, question = rest.partition(_QUESTION)
    if not (cut and cut_format and cut_question):
        raise ValueError(
            "the prompt is not of the published form: 'Documentation:', 'Use the following "
            "format:' and 'Question:' were expected in this order"
        )
    apis = documentation.parse(documented)
    for call in expected:
        if reason := documentation.problem(call, apis):
            raise ValueError(f"the answer does not fit the documentation: {reason}")
    _, named, about = head.partition("\nName: ")
    about = about.replace("\nDescription: ", ": ", 1)
    return (f"{about}\n\n{question}" if named else question), documented


def _expected(answer: Any) -> tuple[Call, ...]:
    calls = _json(answer, "'answer'")
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"expected a list of calls in 'answer', got {type(calls).__name__}")
    return tuple(map(_call, calls))


def _call(item: Any) -> Call:
    if not isinstance(item, dict) or not isinstance(item.get("Action"), str):
        raise ValueError("expected an 'Action', the name of an API, in each call of 'answer'")
    arguments = _json(item.get("Action_Input"), "'Action_Input'")
    if not isinstance(arguments, dict):
        raise ValueError(
            f"expected a JSON object in 'Action_Input', got {type(arguments).__name__}"
        )
    return Call(item["Action"], arguments)


def _json(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {where}: {str(error)[:120]}") from error
