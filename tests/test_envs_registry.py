"""Environments from outside: by address, and by a name that another package gives."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import envs
from envs.base import ToolEnv
from envs.registry import check_options, options_of
from envs.validate import main

SOURCE = '''
"""Say it backwards."""

from langchain_core.tools import tool

from envs.base import ToolEnv
from envs.types import Message, Task, Verdict


@tool
def backwards(text: str) -> str:
    """Turn a text around."""
    return text[::-1]


class BackwardsEnv(ToolEnv):
    system_prompt = "Turn the word around."
    levels = range(1, 2)
    default_level = 1
    formats = ("words",)

    def __init__(self, *, shout=False, **options):
        super().__init__(**options)
        self.shout = shout

    def make_tools(self):
        return (backwards,)

    def grade(self, task, answer):
        success = answer.content == task.answer
        return Verdict(float(success), success, "" if success else "that is something else")

    def generate_task(self, rng):
        word = "".join(rng.choices("abc" if self.split == "train" else "xyz", k=9))
        return self.read_row({"word": word})

    def read_row(self, row):
        return Task(row["word"], row["word"], row["word"][::-1])


class Unfinished(ToolEnv):
    pass


seven = 7
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a package with environments and the entry points given; returns how."""
    (tmp_path / "tiny_worlds").mkdir()
    (tmp_path / "tiny_worlds" / "__init__.py").write_text("")
    (tmp_path / "tiny_worlds" / "words.py").write_text(SOURCE)
    (tmp_path / "tiny_worlds" / "greedy.py").write_text("import no_such_library")

    def install(distribution: str, **points: str) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n"
        )
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (folder / "entry_points.txt").write_text(f"[mopd.envs]\n{lines}")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for name in [name for name in sys.modules if name.startswith("tiny_worlds")]:
        del sys.modules[name]


def test_a_class_is_found_by_its_address(package: Callable[..., None]) -> None:
    env = envs.make("tiny_worlds.words:BackwardsEnv", split="held_out")
    assert isinstance(env, ToolEnv)
    assert set(env.reset(seed=0)[0][-1].content) <= set("xyz")


def test_a_package_gives_names_by_entry_points(package: Callable[..., None]) -> None:
    package("tiny-worlds", backwards="tiny_worlds.words:BackwardsEnv")
    assert envs.names() == (*envs.NAMES, "backwards")
    assert type(envs.make("backwards")).__name__ == "BackwardsEnv"


@pytest.mark.parametrize("name", ["backwards", "tiny_worlds.words:BackwardsEnv"])
def test_an_environment_from_outside_can_be_validated(
    package: Callable[..., None], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package("tiny-worlds", backwards="tiny_worlds.words:BackwardsEnv")
    assert main(["--env", name, "--tasks", "10"]) == 0
    data = tmp_path / "words.jsonl"
    for words in ("abc", "abd"), ("abc",):
        data.write_text("".join(f'{{"word": "{word}"}}\n' for word in words))
        assert main(["--env", name, "--data", str(data)]) == 0
        assert f'"gold_passed": {len(words)}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coed", r"there is no environment 'coed'; expected calculator, .*; did you mean 'code'\?"),
        ("backward", r"or package\.module:Class; did you mean 'backwards'\?"),
        ("tiny_worlds.words.BackwardsEnv", r"expected calculator, .* or package\.module:Class"),
        ("no_such_package.words:Env", r"there is no module 'no_such_package'; expected one that"),
        (
            "tiny_worlds.no_such:Env",
            r"there is no module 'tiny_worlds\.no_such'; expected one that",
        ),
        (
            "tiny_worlds.greedy:Env",
            r"tiny_worlds\.greedy needs the module 'no_such_library', which",
        ),
        ("tiny_worlds.words:BackwardEnv", r"has no such class; .* did you mean 'BackwardsEnv'\?"),
        ("tiny_worlds.words:seven", r"has int 'seven'; expected a subclass of envs\.base\.ToolEnv"),
        ("tiny_worlds.words:Message", r"has type 'Message'; expected a subclass of envs\.base\."),
        ("tiny_worlds.words:Unfinished", r"Unfinished cannot be made: it has to define .*grade"),
        ("tiny worlds:Env", r"got 'tiny worlds:Env'; expected package\.module:Class"),
        (":Env", r"got ':Env'; expected package\.module:Class"),
        ("tiny_worlds.words:", r"got 'tiny_worlds\.words:'; expected package\.module:Class"),
        ("broken", r"env broken of tiny-worlds: there is no module 'nowhere'; expected one that"),
        ("twice", r"several packages give an environment 'twice': other-worlds, tiny-worlds; name"),
        ("", r"there is no environment ''; expected calculator"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(
    package: Callable[..., None], name: str, message: str
) -> None:
    own = "tiny_worlds.words:BackwardsEnv"
    package("tiny-worlds", backwards=own, broken="nowhere:Env", twice=own)
    package("other-worlds", twice="tiny_worlds.words:Other")
    with pytest.raises(envs.EnvNameError, match=message):
        envs.make(name)


def test_a_built_in_name_stays_ours(package: Callable[..., None]) -> None:
    package("tiny-worlds", code="tiny_worlds.words:BackwardsEnv")
    assert envs.names() == envs.NAMES
    assert envs.env_class("code").__name__ == "CodeEnv"


def test_options_are_those_of_a_class_and_its_bases(package: Callable[..., None]) -> None:
    kind = envs.env_class("tiny_worlds.words:BackwardsEnv")
    assert options_of(kind)[:3] == ("shout", "split", "level")
    check_options(kind, {"shout": True, "split": "train"})
    with pytest.raises(
        ValueError, match="BackwardsEnv has no option 'shuot'; did you mean 'shout'"
    ):
        check_options(kind, {"shuot": True})


@pytest.mark.parametrize("name", envs.NAMES)
def test_gymnasium_knows_ours(name: str) -> None:
    import gymnasium

    made = gymnasium.make(f"mopd/{name}-v0")
    assert type(made.unwrapped) is envs.env_class(name)
    made.close()
