"""The playing command: people at a terminal and in a pipe, and a model that is watched."""

import io
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import envs
from agents.human import BadLine, Typist, play, read_call, tools_text
from agents.stage import Scribe, ending, plain, usage
from envs.play import main
from envs.tools import WorldError
from envs.types import Message, StopReason, Task, ToolCall
from mopd.run_folder import trajectory_from_record

ROOT = Path(__file__).parent.parent
TASK = "--env calculator --task 7".split()  # noqa: SIM905 - as it is typed


def schema(name: str, required: tuple[str, ...], **types: str):  # type: ignore[no-untyped-def]
    fields = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"properties": fields, "required": list(required)}
    return {"function": {"name": name, "description": "Does it.", "parameters": parameters}}


SCHEMAS = (
    schema("calculate", ("expression",), expression="string"),
    schema("search", ("query",), query="string", k="integer"),
    schema("move", ("id", "day"), id="string", day="string"),
    schema("stop", ()),
)


def read(*lines: str) -> tuple[list[Message], list[str]]:
    """The messages of the lines, and what the person was told."""
    source, told = iter(lines), list[str]()
    typist = Typist(lambda: next(source, None), told.append)
    return list(iter(lambda: typist.message(SCHEMAS), None)), told


@pytest.mark.parametrize(
    ("line", "name", "arguments"),
    [
        ("/calculate 2 * (3 + 4)", "calculate", {"expression": "2 * (3 + 4)"}),
        ('/calculate expression="2 + 3"', "calculate", {"expression": "2 + 3"}),
        ("/calculate 23", "calculate", {"expression": "23"}),
        ('/calculate {"expression": "1"}', "calculate", {"expression": "1"}),
        ("/search query=gold medal k=3", "search", {"query": "gold medal", "k": 3}),
        ("/search k=3 query='what k=4 is'", "search", {"query": "what k=4 is", "k": 3}),
        ('/search query="a \\"k=1\\" b" k=2', "search", {"query": 'a "k=1" b', "k": 2}),
        ("/search who was first?", "search", {"query": "who was first?"}),
        ("/search query=x k=few", "search", {"query": "x", "k": "few"}),
        ("/move id=007 day=Monday", "move", {"id": "007", "day": "Monday"}),
        ("/stop", "stop", {}),
        ("/call search {}", "search", {}),
        ("/call nothing", "nothing", {}),
        ("/calculate ```\na = 1\n  b\n```", "calculate", {"expression": "a = 1\n  b"}),
    ],
)
def test_a_call_is_typed_in_any_of_these_ways(line, name, arguments):
    called, text = read_call(line, SCHEMAS)
    assert (called, json.loads(text)) == (name, arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/calcluate 1", "there is no tool or command 'calcluate'; did you mean /calculate?"),
        ("/xyz", "there is no tool or command 'xyz'; /tools lists them"),
        ("/move everything", "write /move id=STRING day=STRING"),
        ("/call", "expected /call NAME {json}"),
    ],
)
def test_a_slip_is_told_and_costs_no_turn(line, message):
    with pytest.raises(BadLine, match=re.escape(message)):
        read_call(line, SCHEMAS)
    messages, told = read(line, "42")
    assert [m.content for m in messages] == ["42"]
    assert message in told[0]


def test_a_call_that_the_environment_has_to_refuse_can_be_typed():
    assert read_call("/call calculate {broken", SCHEMAS) == ("calculate", "{broken")


def test_a_turn_goes_on_where_a_line_ends_in_a_backslash():
    (message,), _ = read("Both at once: \\", "/calculate 1 \\", "/tools", "/search x")
    assert message.content == "Both at once:"
    assert [(c.id, c.name) for c in message.tool_calls] == [
        ("call_0", "calculate"),
        ("call_1", "search"),
    ]


def test_a_block_is_one_message_and_slashes_can_begin_one():
    program = ("```python", "def f(xs):", "", "    return xs  # \\", "```")
    messages, _ = read("", *program, "//root", "  ")
    assert [m.content for m in messages] == ["\n".join(program), "/root"]


def test_the_end_of_the_input_ends_the_turn_that_was_begun():
    (message,), _ = read("one \\")
    assert message.content == "one"


def test_quitting_and_help():
    messages, told = read("/help", "/tools", "/quit", "never read")
    assert messages == []
    assert "the turn goes on in the next line" in told[0]
    assert told[1] == tools_text(SCHEMAS)
    assert "  /search query=STRING [k=INTEGER]  Does it." in told[1]


def test_text_cannot_steer_the_terminal():
    scribe = Scribe()
    call = ToolCall("call_0", "f\x1b[2J", "{}")
    shown = scribe.text(Message("assistant", "hi\x1b]0;title\x07\n\tü", (call,)))
    assert shown == "agent: hi\\x1b]0;title\\x07\n\tü\nagent calls f\\x1b[2J {}"
    assert scribe.text(Message("tool", "\r", tool_call_id="call_0")) == "f\\x1b[2J -> \\x0d"
    assert plain("\u202e") == "\\x202e"


def test_every_environment_can_be_listed_and_left():
    for name in envs.NAMES:
        env = envs.make(name)
        trajectory = play(env, env.task(0), lambda: None, lambda _: None, lambda _: None)
        assert (trajectory.stop_reason, trajectory.verdict) == (StopReason.ERROR, None)
        assert "left before" in ending(trajectory)
        assert all(usage(tool).startswith("/") for tool in env.schemas())
        env.close()


def test_a_world_that_fails_gives_no_verdict():
    env = envs.make("calculator")
    env.grade = lambda task, answer: (_ for _ in ()).throw(WorldError("it rained"))
    say = iter([Message("assistant", "4")]).__next__
    trajectory = play(env, Task("sum", "2+2?", "4"), say, lambda _: None, lambda _: None)
    assert (trajectory.verdict, trajectory.error) == (None, "WorldError: it rained")
    assert len(trajectory.messages) == 3


def piped(text: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "envs.play", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_a_pipe_can_play(tmp_path):
    lines = "/calculate 48 / 2 \\\n/calculate 48 / 2 / 8\nThe answer is \\boxed{3}.\n"
    done = piped(lines, *TASK, "--human", "--out", "played.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert shown[1].startswith("task: Bob has 48 cards.")
    assert "  /calculate expression=STRING  Evaluate an arithmetic expression." in shown
    assert (
        shown[-8:]
        == [
            'agent calls calculate {"expression": "48 / 2"}',
            'agent calls calculate {"expression": "48 / 2 / 8"}',
            "calculate -> 24",
            "calculate -> 3",
            "agent: The answer is \\boxed{3}.",
            "success, reward 1 (answered)",
            "feedback: The answer 3 is correct.",
            "reference: 3",
        ][-8:]
        or shown[-1] == "saved in played.jsonl"
    )
    record = json.loads((tmp_path / "played.jsonl").read_text())
    assert (record["env"], record["player"], record["token_ids"]) == ("calculator", "human", [])
    trajectory = trajectory_from_record(record)
    assert (trajectory.adapter_version, trajectory.reward) == ("human", 1.0)
    assert [m.role for m in trajectory.messages][2:] == ["assistant", "tool", "tool", "assistant"]


@pytest.mark.parametrize("lines", ["", "/calculate 1\n", "/quit\n"])
def test_leaving_a_pipe_shows_no_answer_and_is_saved_as_what_it_is(
    lines, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    out = tmp_path / "played.jsonl"
    assert main([*TASK, "--human", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "no verdict: the player left before the final answer" in shown
    assert "reference" not in shown
    record = json.loads(out.read_text())
    assert (record["verdict"], record["stop_reason"]) == (None, "error")


def test_the_answer_is_shown_after_the_end_only(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\\boxed{0}\n"))
    assert main([*TASK, "--human"]) == 0
    before, _, after = capsys.readouterr().out.partition("failure, reward 0 (answered)")
    assert "reference" not in before
    assert after.endswith("reference: 3\n")


def test_a_person_waits_for_no_torch():
    code = (
        "import sys, io; sys.stdin = io.StringIO('4\\n'); from envs.play import main\n"
        "main(['--env', 'calculator', '--human'])\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.endswith("[]\n")
    # Processor time, since other tests may hold the machine's cores; it takes 1 s of theirs.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def _hear_ctrl_c() -> None:
    """As at a terminal, also where these tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "envs.play", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str, times: int = 1, end: str | None = None) -> None:
        while self.shown.count(text) < times and (end is None or end not in self.shown):
            assert select.select([self._ours], [], [], 60)[0], f"only {self.shown!r} after 60 s"
            self.shown += os.read(self._ours, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, but not at once: readline misses a signal between its prompt and its wait."""
        time.sleep(0.5)  # nobody is as fast as a program
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        code = self.process.wait(timeout=60)
        try:
            while more := os.read(self._ours, 4096).decode():
                self.shown += more
        except OSError:  # nobody holds the other side any more
            pass
        os.close(self._ours)
        return code


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[object]:
    opened = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*TASK, *arguments, cwd=tmp_path))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("leave", ["\x04", "/quit\n", "Ctrl-C"])
def test_a_person_at_a_terminal_can_leave_at_any_time(terminal, leave):
    session = terminal("--human")
    session.wait_for("/quit")
    session.wait_for("> ")
    session.type("/calculate 6 * 7\n")
    session.wait_for("calculate -> 42\r\n> ")
    if leave == "Ctrl-C":
        session.interrupt()
    else:
        session.type(leave)
    assert session.end() == 0
    assert "left before the final answer" in session.shown
    assert "Traceback" not in session.shown
    assert "agent calls" not in session.shown  # it stands there as it was typed


def test_a_model_at_a_terminal_waits_for_enter(terminal):
    session = terminal()
    pause, end = "[Enter: next turn, Ctrl-C: stop] ", "reference: 3"
    turns = 1
    session.wait_for(pause)
    assert "agent calls calculate" in session.shown
    while end not in session.shown:
        assert session.shown.endswith(pause)
        assert session.shown.count("\nagent") == turns
        session.type("\n")
        turns += 1
        session.wait_for(pause, turns, end)
    assert session.end() == 0


def test_stopping_a_watched_model_is_clean(terminal):
    session = terminal()
    session.wait_for("[Enter: next turn, Ctrl-C: stop] ")
    session.interrupt()
    assert session.end() == 130
    assert "stopped; nothing is saved" in session.shown
    assert "Traceback" not in session.shown


def test_a_watched_rollout_is_shown_whole_and_saved_with_its_tokens(tmp_path, capsys):
    out = tmp_path / "played.jsonl"
    for _ in range(2):
        assert main([*TASK, "--model", "pocket", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == second
    trajectory = trajectory_from_record(first)
    assert trajectory.sampled_tokens > 0
    assert (first["player"], trajectory.adapter_version) == ("model", "pocket")
    scribe, place = Scribe(), 0
    for message in trajectory.messages:
        text = scribe.text(message)
        place = shown.index(text, place) + len(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--human", "the following arguments are required: --env"),
        ("--env coed --human", "there is no environment 'coed'; expected "),
        ("--env code --humna", "unknown argument '--humna'; did you mean --human?"),
        ("--env code --human --model pocket", "--human plays without a model; leave out --model"),
        ("--env code --task few", "argument --task: got 'few'; expected a whole number from 0"),
        ("--env code --human --level 9", "env.level=9: "),
        ("--env code --out no/such.jsonl", "--out got no/such.jsonl; expected a file in a folder"),
        ("--env code --adapter .", "--adapter got ., which holds no adapter_config.json; "),
        ("--env code --model ./none", "model.name=./none: there is no none/config.json"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, refuses):
    refuses(main, arguments, message)


def test_a_row_of_a_file_is_played(tmp_path, monkeypatch, capsys):
    data = tmp_path / "tasks.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in (1, 2)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--env", "calculator", "--human", "--data", str(data), "--task"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\\boxed{3}\n"))
    assert main([*given, "1"]) == 0
    assert "success, reward 1 (answered)" in capsys.readouterr().out
    assert main([*given, "2"]) == 2
    assert "--task 2: the data has 2 tasks, counted from 0" in capsys.readouterr().err
