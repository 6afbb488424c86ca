"""Which environments there are: ours, those of other packages, and any class by its address."""

import difflib
import importlib
import inspect
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.base import ToolEnv

GROUP = "mopd.envs"  # of entry points: a name, and "package.module:Class"
BUILT_IN = {
    "calculator": "envs.calculator:CalculatorEnv",
    "code": "envs.code:CodeEnv",
    "search": "envs.search:SearchEnv",
    "science_qa": "envs.science_qa:ScienceQAEnv",
    "tool_use": "envs.tool_use:ToolUseEnv",
}


class EnvNameError(ValueError):
    """A name that leads to no environment; the text says what would."""


def names() -> tuple[str, ...]:
    """The built-in names, then those that installed packages give in the group `mopd.envs`."""
    outside = {point.name for point in entry_points(group=GROUP)}
    return (*BUILT_IN, *sorted(outside - set(BUILT_IN)))


def env_class(name: str) -> type["ToolEnv"]:
    """The class of one of `names()`, or of an address `package.module:Class`.

    Raises:
        EnvNameError: no such name, module or class, or a class that is no environment.
    """
    if name in BUILT_IN:
        return _load(BUILT_IN[name], name)
    if ":" in name:
        return _load(name, name)
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        known = names()
        near = difflib.get_close_matches(name, known, n=1)
        cure = f"; did you mean {near[0]!r}?" if near else ""
        raise EnvNameError(
            f"there is no environment {name!r}; expected {', '.join(known)} or "
            f"package.module:Class{cure}"
        )
    values = {point.value for point in points}
    if len(values) > 1:
        packages = ", ".join(sorted(map(_package, points)))
        raise EnvNameError(
            f"several packages give an environment {name!r}: {packages}; name one by its class: "
            f"{' or '.join(sorted(values))}"
        )
    return _load(points[0].value, f"{name} of {_package(points[0])}")


def options_of(kind: type["ToolEnv"]) -> tuple[str, ...]:
    """The keyword arguments that a class and its bases take."""
    return tuple(
        dict.fromkeys(
            parameter.name
            for base in kind.__mro__
            if "__init__" in vars(base)
            for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        )
    )


def check_options(kind: type["ToolEnv"], given: Collection[str]) -> None:
    """Refuse an option that the class does not take.

    Raises:
        ValueError: naming the first one and what there is.
    """
    there = options_of(kind)
    for name in given:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            cure = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there)}"
            raise ValueError(f"{kind.__name__} has no option {name!r}; {cure}")


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unnamed package"


def _load(address: str, name: str) -> type["ToolEnv"]:
    from envs.base import ToolEnv  # late: it loads LangChain

    module_name, _, class_name = address.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise EnvNameError(f"env {name}: got {address!r}; expected package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module_name}.".startswith(f"{missing}."):
            raise EnvNameError(
                f"env {name}: there is no module {missing!r}; expected one that can be imported "
                "from here: install it, or add its folder to PYTHONPATH"
            ) from error
        raise EnvNameError(
            f"env {name}: {module_name} needs the module {missing!r}, which is not installed"
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, ToolEnv)):
        got = "no such class" if found is None else f"{type(found).__name__} {class_name!r}"
        there = [key for key, value in vars(module).items() if _is_env(value, ToolEnv)]
        near = difflib.get_close_matches(class_name, there, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(there) or 'none'}"
        raise EnvNameError(
            f"env {name}: {module_name} has {got}; expected a subclass of envs.base.ToolEnv; {cure}"
        )
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise EnvNameError(f"env {name}: {class_name} cannot be made: it has to define {lacking}")
    return found


def _is_env(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)
