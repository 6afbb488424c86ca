"""Exact, bounded arithmetic on text: what the tool `calculate` computes."""

import ast
import math
import operator
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

MAX_CHARS = 1000
MAX_DEPTH = 50
MAX_BITS = 4096  # of a numerator or denominator: enough for 1,200 digits, too few to hang
MAX_EXPONENT = 308  # of a literal like 1e308


class ArithmeticProblem(ValueError):  # noqa: N818 - the expression's problem, not an error here
    """The expression has no value that we are willing to compute; the text says why."""


_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Fraction]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": lambda x: Fraction(round(x)),
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    "sqrt": lambda x: _root(x),
}


def calculate(expression: str) -> str:
    """Evaluate `expression` exactly and write the value as text.

    Integers and finite decimals come out in full, other fractions as `1/3 (about 0.333333)`.

    Raises:
        ArithmeticProblem: not arithmetic, too long, too deep, too large, or undefined.
    """
    return show(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """The exact value of `expression`; raises as `calculate` does."""
    if len(expression) > MAX_CHARS:
        raise ArithmeticProblem(
            f"the expression has {len(expression)} characters; at most {MAX_CHARS} are allowed"
        )
    text = expression.strip().replace("^", "**").replace("\u00d7", "*").replace("\u00f7", "/")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ArithmeticProblem(f"{expression[:80]!r} is not an arithmetic expression") from error
    try:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and type(node.value) is float:
                # `_value` takes fractions for constants, which the type stubs do not foresee.
                node.value = _decimal(  # type: ignore[assignment]
                    ast.get_source_segment(text, node) or ""
                )
        return _value(tree.body, 0)
    except ZeroDivisionError as error:
        raise ArithmeticProblem("division by zero") from error
    except RecursionError as error:  # ast.unparse() in a message
        raise ArithmeticProblem(f"the expression is nested deeper than {MAX_DEPTH}") from error


def show(value: Fraction) -> str:
    """Write a value in full where that is finite."""
    if value.denominator == 1:
        return _digits(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest == 1 and places <= 12:
        whole, part = divmod(abs(value.numerator) * 10**places // value.denominator, 10**places)
        return f"{'-' if value < 0 else ''}{whole}.{part:0{places}d}"
    try:
        near = f"{float(value):.6g}"
    except OverflowError:
        near = "a number beyond 1e308"
    if rest == 1:
        return f"about {near}"
    return f"{_digits(value.numerator)}/{_digits(value.denominator)} (about {near})"


def _digits(number: int) -> str:
    if number.bit_length() > MAX_BITS:
        raise ArithmeticProblem(f"the value has more than {MAX_BITS} bits")
    return str(number)


def _value(node: ast.expr, depth: int) -> Fraction:
    if depth > MAX_DEPTH:
        raise ArithmeticProblem(f"the expression is nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant(value=int() | Fraction() as number) if not isinstance(number, bool):
            return _bounded(Fraction(number))
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, depth + 1)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, depth + 1)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bounded(_power(_value(left, depth + 1), _value(right, depth + 1)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            apply = _BINARY[type(op)]
            return _bounded(apply(_value(left, depth + 1), _value(right, depth + 1)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            values = [_value(arg, depth + 1) for arg in args]
            try:
                return _bounded(_FUNCTIONS[name](*values))
            except TypeError as error:
                raise ArithmeticProblem(f"{name} does not take {len(values)} values") from error
    raise ArithmeticProblem(
        f"{ast.unparse(node)[:80]!r} is not arithmetic; use numbers, + - * / // % **, "
        f"parentheses and {', '.join(_FUNCTIONS)}"
    )


def _decimal(written: str) -> Fraction:
    """The exact value of a decimal as it is written: 0.1 means a tenth, not the nearest binary."""
    try:
        number = Decimal(written)
    except InvalidOperation as error:  # an exponent of twenty digits
        raise ArithmeticProblem("a number is too large or too small") from error
    if abs(number.adjusted()) > MAX_EXPONENT:
        raise ArithmeticProblem("a number is too large or too small")
    return Fraction(number)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ArithmeticProblem(f"the value has more than {MAX_BITS} bits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent == Fraction(1, 2):
        return _root(base)
    if exponent.denominator != 1:
        raise ArithmeticProblem("the exponent must be a whole number (or 0.5)")
    # Refused before it is computed: this bound is what keeps 9**9**9 from hanging.
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) not in (0, 1) and bits * abs(exponent) > 2 * MAX_BITS:
        raise ArithmeticProblem(f"the value has more than {MAX_BITS} bits")
    return Fraction(base ** (int(exponent) % 2 if abs(base) == 1 else int(exponent)))


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise ArithmeticProblem("square root of a negative number")
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top * top == value.numerator and bottom * bottom == value.denominator:
        return Fraction(top, bottom)
    try:
        return Fraction(repr(math.sqrt(value)))
    except OverflowError as error:
        raise ArithmeticProblem("a number is too large") from error
