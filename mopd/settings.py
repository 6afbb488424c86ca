"""From files, flags and `--set` assignments to one `Config`."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

import envs
from mopd.config import Config, Section


class SettingsError(ValueError):
    """Settings that cannot be used; the text is one line for the person who wrote them."""


def load_settings(
    *, file: Path | None, flags: Mapping[str, Any], assignments: Sequence[str]
) -> Config:
    """Resolve defaults < `configs/<env>.toml` < `file` < `flags` < `assignments`.

    The defaults are the pocket student's. Another model starts from `configs/pretrained.toml`,
    which comes before everything that was asked for.

    `flags` maps dotted settings to values, None where a flag was not given; `assignments` are
    texts "a.b=value". The word "none" (or "null") stands for no value where a setting allows it,
    also in files, since TOML has no null.

    Raises:
        SettingsError: a file that cannot be read, an unknown key, or a value that is refused.
    """
    given = _read(file) if file else {}
    given |= {key: value for key, value in flags.items() if value is not None}
    for text in assignments:
        given |= _assigned(text)
    _refuse_unknown(given)
    env = given.get("env.name", Config().env.name)
    shipped = resources.files("configs") / f"{env}.toml"
    if env in envs.NAMES and shipped.is_file():
        given = _read(shipped) | given
    if given.get("model.name", Config().model.name) != Config().model.name:
        given = _read(resources.files("configs") / "pretrained.toml") | given
    return _config(given)


def load_resolved(path: Path) -> Config:
    """The configuration that `dump_toml` wrote, and nothing else.

    Raises:
        SettingsError: as `load_settings`.
    """
    return _config(_read(path))


def dump_toml(config: Config) -> str:
    """The whole tree as TOML; a setting without a value is left out where that is the default."""
    return "\n".join(_table(config.model_dump(), "")).lstrip("\n") + "\n"


def choices(key: str) -> tuple[str, ...]:
    """The names that a setting can take, empty where it is free."""
    return envs.names() if key == "env.name" else _literals(_SETTINGS[key].annotation)


def _settings(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _literals(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(name for part in get_args(annotation) for name in _literals(part))


_SETTINGS = dict(_settings(Config))
_FREE = "env.options."  # what comes behind it are options of the environment, which checks them


# Reading: every source becomes one flat mapping, {"optim.lr": 1e-5}, so that later ones win.


def _read(path: Path | Traversable) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: broken TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text; expected a TOML file") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"{path}: {reason}; expected a TOML file of settings") from error
    values = dict(_flat(tree))
    _refuse_unknown(values, where=f"{path}: ")
    return values


def _assigned(text: str) -> dict[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals):
        raise SettingsError(f"--set got {text!r}; expected KEY=VALUE, such as optim.lr=1e-4")
    try:
        tree = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        tree = {"value": value}
    # A value with a line break could define more keys than its own.
    return dict(_flat({key: tree["value"] if len(tree) == 1 else value}))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _config(values: Mapping[str, Any]) -> Config:
    """Validate strictly: `steps = true` is a mistake and not a 1."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        allowed = () if key.startswith(_FREE) else get_args(_SETTINGS[key].annotation)
        is_none = value in ("none", "null") and type(None) in allowed
        node[name] = None if is_none else value
    try:
        # By way of JSON, because strict Python input takes neither tables nor lists for tuples.
        config = Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    if config.env.name not in envs.NAMES:  # whose classes need not be loaded to know
        try:
            envs.env_class(config.env.name)
        except envs.EnvNameError as error:
            raise SettingsError(str(error)) from error
    return config


# Writing.


def _table(values: Mapping[str, Any], path: str) -> Iterator[str]:
    if path:
        yield f"\n[{path}]"
    sections = {name: value for name, value in values.items() if isinstance(value, dict)}
    for name, value in values.items():
        key = f"{path}.{name}" if path else name
        if name not in sections and (value is not None or _SETTINGS[key].default is not None):
            yield f"{name} = {_literal(value)}"
    for name, value in sections.items():
        if not value:
            continue
        yield from _table(value, f"{path}.{name}" if path else name)


def _literal(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON escapes what TOML wants escaped, except DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)


# Refusing.


def _refuse_unknown(values: Mapping[str, Any], where: str = "") -> None:
    known = {*_SETTINGS, *(key for key in values if key.startswith(_FREE))}
    unknown = next((key for key in values if key not in known), None)
    if unknown is None:
        return
    first = unknown.partition(".")[0]
    section = [key for key in _SETTINGS if key.startswith(f"{first}.")]
    if section and unknown == first:
        raise SettingsError(f"{where}{unknown!r} is a section; set one of {', '.join(section)}")
    last = unknown.rpartition(".")[2]
    same_name = [key for key in _SETTINGS if key.rpartition(".")[2] == last]
    if section:  # its name is right, so it must not count as likeness
        names = [key.removeprefix(f"{first}.") for key in section]
        close = [f"{first}.{name}" for name in difflib.get_close_matches(last, names, n=1)]
    else:
        close = difflib.get_close_matches(unknown, _SETTINGS, n=1)
    near = same_name or close
    cure = (
        f"did you mean {' or '.join(map(repr, near[:3]))}?"
        if near
        else f"there are {', '.join(section or dict.fromkeys(k.split('.')[0] for k in _SETTINGS))}"
    )
    raise SettingsError(f"{where}unknown setting {unknown!r}; {cure}")


def _one_line(error: ValidationError) -> str:
    """The first refused setting; a union reports one problem for each of its members."""
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    key = _key(first["loc"])
    if key not in _SETTINGS:
        return first["msg"]
    wanted = [p["msg"].removeprefix("Input should be ") for p in problems if _key(p["loc"]) == key]
    return _refusal(key, first["input"], " or ".join(dict.fromkeys(wanted)))


def _key(loc: tuple[str | int, ...]) -> str:
    """The setting of an error's place, which may go on inside the value."""
    keys = (".".join(map(str, loc[:n])) for n in range(len(loc), 0, -1))
    return next((key for key in keys if key in _SETTINGS), "")


def _refusal(key: str, value: Any, expected: str) -> str:
    near = difflib.get_close_matches(str(value), choices(key), n=1)
    cure = f"; did you mean {near[0]!r}?" if near else ""
    return f"{key} is {value!r}; expected {expected}{cure}"
