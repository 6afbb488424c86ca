"""Test scripts as published, in a form that needs no NumPy."""

import re
from collections.abc import Sequence
from typing import Any

# The little of NumPy that the scripts of HumanEval+ and MBPP+ use; a sandbox has none.
_NUMPY = """\
class np:
    ndarray = type("ndarray", (), {})
    float32 = float64 = float

    @staticmethod
    def allclose(a, b, rtol=1e-05, atol=1e-08):
        if isinstance(a, (list, tuple)) or isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(np.allclose(x, y, rtol, atol) for x, y in zip(a, b))
        return a == b or abs(a - b) <= atol + rtol * abs(b)
"""
_IMPORT = re.compile(r"^import numpy as np[ \t]*$", re.MULTILINE)
_PLUS = """\
{numpy}
def is_floats(x):
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    return isinstance(x, float)

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

def reference():
    scope = {{}}
    exec({solution!r}, scope)
    return scope[{entry_point!r}]

inputs = {inputs!r}

def check(candidate):
    import copy
    expected = reference()
    for inp in inputs:
        out = candidate(*inp)
        {judged}
"""
_COMPARED = "assertion(out, expected(*copy.deepcopy(inp)), {atol!r})"
# A zero of a polynomial is judged by its value: there may be several.
_ZERO = "assert abs(sum(c * out ** i for i, c in enumerate(inp[0]))) <= 1e-4"


def without_numpy(script: str) -> str:
    """The script with its import of NumPy replaced by what it uses."""
    return _IMPORT.sub(lambda _: _NUMPY, script)


def evalplus_script(entry_point: str, solution: str, inputs: Sequence[Any], atol: Any) -> str:
    """The tests of a row that has inputs and a reference solution, as EvalPlus judges them.

    Raises:
        ValueError: inputs or tolerance are not what a call and a comparison take.
    """
    if not all(isinstance(arguments, list) for arguments in inputs):
        raise ValueError("expected a list of argument lists in 'base_input' and 'plus_input'")
    if not isinstance(atol, int | float):
        raise ValueError(f"expected a number in 'atol', got {atol!r:.60}")
    judged = _ZERO if entry_point == "find_zero" else _COMPARED.format(atol=atol)
    return _PLUS.format(
        numpy=_NUMPY, solution=solution, entry_point=entry_point, inputs=inputs, judged=judged
    )
