"""The judge of a programming task, chosen by what its payload holds."""

import re
from collections.abc import Mapping
from typing import Any

from envs.code.contests import hidden_cases
from envs.grading.feedback import Reveal
from envs.grading.program import judge_cases, judge_script
from envs.grading.stdio import judge_stdio
from envs.types import Verdict
from sandboxes.base import Sandbox

_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


def judge(sandbox: Sandbox, program: str, payload: Mapping[str, Any], reveal: Reveal) -> Verdict:
    """Run the program against the hidden tests of a task.

    Raises:
        SandboxError: the sandbox failed, so there is no verdict.
        ValueError: the tests are none.
    """
    program = surrounded(program, payload.get("preamble", ""), payload.get("epilogue", ""))
    tolerance = payload.get("tolerance", 0.0)
    if "stdin_cases" in payload:
        return judge_stdio(
            sandbox, program, hidden_cases(payload), tolerance=tolerance, reveal=reveal
        )
    entry_point = str(payload["entry_point"])
    if "cases" in payload:
        cases = hidden_cases(payload)
        return judge_cases(sandbox, program, entry_point, cases, tolerance=tolerance, reveal=reveal)
    support = str(payload["support"])
    return judge_script(
        sandbox, program, entry_point, str(payload["test"]), support=support, reveal=reveal
    )


def surrounded(program: str, preamble: str, epilogue: str) -> str:
    """The program between what its data brings; imports of the future stay in front."""
    if not preamble:
        return program + epilogue
    future = "".join(f"{line}\n" for line in _FUTURE.findall(program))
    # An empty line stays for each, so that line numbers of an error do not move.
    return future + preamble + _FUTURE.sub("", program) + epilogue
