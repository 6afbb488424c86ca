"""The evaluating command: numbers, going on after a kill, and scoring stored rollouts again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.types import Trajectory
from envs.evaluate import main
from envs.types import Message, StopReason, Task, ToolCall, Verdict
from mopd.config import Config
from mopd.evaluation_report import UNKNOWN, UNREADABLE, outcome_of, rows, summarise
from mopd.rejudge import find_rollouts
from mopd.run_folder import RunFolder, trajectory_record

ROOT = Path(__file__).parent.parent
SMALL = [
    "--env",
    "calculator",
    "--tasks",
    "4",
    "--samples",
    "3",
    "--set",
    "rollout.max_concurrent=5",
]


def rollout(
    task: str, index: int, reward: float | None, *messages: Message, reason: str = "answered"
) -> Trajectory:
    verdict = None if reward is None else Verdict(reward, reward == 1)
    stop = StopReason.ERROR if verdict is None else StopReason(reason)
    said = messages or (Message("assistant", "x"),)
    error = "" if verdict else "WorldError: it rained"
    return Trajectory(Task(task, "?", ""), index, (), (), (), said, verdict, stop, "test", error)


def numbers(*trajectories: Trajectory, tasks: str, samples: int):  # type: ignore[no-untyped-def]
    outcomes = {(o.task, o.index): o for o in map(outcome_of, trajectories)}
    return summarise(outcomes, tuple(tasks), samples)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation that nothing stopped."""
    path = tmp_path_factory.mktemp("evaluation") / "whole.json"
    assert main([*SMALL, "--json", str(path)]) == 0
    return path


def lines(report: Path) -> list[str]:
    return report.with_suffix(".rollouts.jsonl").read_text().splitlines(keepends=True)


def test_errored_rollouts_are_no_failures():
    report = numbers(
        rollout("a", 0, 1.0),
        rollout("a", 1, None),
        rollout("b", 0, 0.0),
        rollout("b", 1, 1.0),
        rollout("c", 0, None),
        rollout("c", 1, None),
        tasks="abc",
        samples=2,
    )
    assert report["successes"] == {"a": [1], "b": [0, 1], "c": []}
    assert report["rollouts"] == 3
    assert report["errored"]["rollouts"] == 3
    assert report["errored"]["tasks_without_a_score"] == 1
    assert report["mean_at_k"]["mean"] == pytest.approx((1 + 0.5) / 2)
    assert (report["mean_at_k"]["tasks"], report["pass_at_k"]["2"]["tasks"]) == (2, 1)
    assert report["stop_reasons"] == {"answered": 3}
    assert "3 rollouts, such as: WorldError: it rained" in dict(rows(report)).values()


def test_pass_at_k_is_unbiased_and_best_at_k_is_the_highest_reward():
    graded = [rollout("a", i, r) for i, r in enumerate((0.25, 0.5, 1.0, 1.0))]
    failed = [rollout("b", i, r) for i, r in enumerate((0.0, 0.75, 0.0, 0.0))]
    report = numbers(*graded, *failed, tasks="ab", samples=4)
    means = [report["pass_at_k"][str(k)]["mean"] for k in (1, 2, 3, 4)]
    assert means == pytest.approx([0.5 / 2, (1 - 1 / 6) / 2, 0.5, 0.5])
    assert report["best_at_k"]["mean"] == pytest.approx((1.0 + 0.75) / 2)
    assert "only one who sees the verdicts could pick" in report["best_at_k"]["what"]


def test_one_task_has_a_mean_and_no_interval():
    report = numbers(rollout("a", 0, 1.0), tasks="a", samples=1)
    assert (report["mean_at_k"]["mean"], report["mean_at_k"]["ci_low"]) == (1.0, None)
    assert dict(rows(report))["mean@1"] == "1.000 (one task: no interval)"


def test_nothing_scored_is_shown_and_not_divided_by():
    report = numbers(rollout("a", 0, None), tasks="a", samples=1)
    assert dict(rows(report))["mean@1"] == "none"


def test_calls_are_counted_by_tool_and_by_what_came_of_them():
    calls = tuple(ToolCall(f"call_{i}", name, "{}") for i, name in enumerate(("f", "g", "", "f")))
    told = ("4", "Error: there is no tool 'g'. Tools: f.", "Error: this call", "Error: no")
    answers = [Message("tool", text, tool_call_id=f"call_{i}") for i, text in enumerate(told)]
    cut = Message("assistant", "", (ToolCall("call_0", "f", "{}"),))
    first = rollout("a", 0, 1.0, Message("assistant", "", calls), *answers, cut)
    tools = numbers(first, rollout("a", 1, 0.0), tasks="a", samples=2)["tools"]
    assert tools["by_tool"]["f"] == {
        "calls": 3,
        "errors": 1,
        "unanswered": 1,
        "rollouts": 1,
        "success_of_these": 1.0,
    }
    assert (tools["by_tool"][UNKNOWN]["errors"], tools["by_tool"][UNREADABLE]["errors"]) == (1, 1)
    assert (tools["mean_calls"], tools["rollouts_without_a_call"]) == (2.5, 1)


def test_the_report_holds_numbers_settings_versions_and_successes(whole):
    report = json.loads(whole.read_text())
    assert (report["env"], report["model"], report["level"]) == ("calculator", "pocket", 2)
    assert report["config"]["eval"] == {"tasks": 4, "samples": 3, "every": None}
    assert {"python", "torch", "transformers"} <= report["versions"].keys()
    assert set(report["successes"]) == set(report["task_ids"])
    assert all(len(successes) == 3 for successes in report["successes"].values())
    assert list(report["pass_at_k"]) == ["1", "2", "3"]
    assert report["pass_at_k"]["1"]["mean"] == pytest.approx(report["mean_at_k"]["mean"])
    assert len(lines(whole)) == 1 + 12


def test_a_killed_evaluation_goes_on_as_if_it_had_not_been_stopped(whole, tmp_path):
    path = tmp_path / "again.json"
    begun = "".join(lines(whole)[:6]) + lines(whole)[6][:100]  # a batch of 5, and half a line
    path.with_suffix(".rollouts.jsonl").write_text(begun)
    assert main([*SMALL, "--json", str(path), "--resume"]) == 0
    assert lines(path) == lines(whole)
    report = json.loads(path.read_text())
    assert report["rollouts_of_earlier_calls"] == 5
    assert report["successes"] == json.loads(whole.read_text())["successes"]


def test_resuming_plays_what_errored_and_nothing_else(whole, tmp_path, capsys):
    path = tmp_path / "again.json"
    header, *stored = lines(whole)
    record = json.loads(stored[4]) | {"verdict": None, "stop_reason": "error", "error": "rain"}
    text = "".join([header, *stored[:4], json.dumps(record) + "\n", *stored[5:]])
    path.with_suffix(".rollouts.jsonl").write_text(text)
    assert main([*SMALL, "--json", str(path), "--resume"]) == 0
    *before, last = lines(path)
    assert "".join(before) == text
    played = json.loads(last)
    assert (played["task"]["id"], played["index"]) == (record["task"]["id"], record["index"])
    assert json.loads(path.read_text())["errored"]["rollouts"] == 0
    assert "playing 1 of 12 rollouts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set rollout.temperature=0.5", "was made with rollout.temperature=1.0, not 0.5; give"),
        ("--samples 5", "was made with eval.samples=3, not 5; give"),
    ],
)
def test_other_settings_are_not_resumed(whole, arguments, message, capsys):
    before = whole.read_bytes(), lines(whole)
    assert main([*SMALL, *arguments.split(), "--json", str(whole), "--resume"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert (whole.read_bytes(), lines(whole)) == before


def test_a_rejudged_evaluation_agrees_with_itself(whole, tmp_path, capsys):
    report = tmp_path / "rejudged.json"
    assert main(["--rejudge", str(whole), "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert (found["rollouts"], found["agreeing"], found["agreement"]) == (12, 12, 1.0)
    assert (found["other_observations"], found["other_feedback_or_parts"]) == (0, 0)
    assert "same verdict: 12 of 12 rollouts (100.0%)" in capsys.readouterr().out


def test_rejudging_names_other_verdicts_and_other_observations(tmp_path, capsys):
    task = Task("sum", "What is 1 + 2?", "3")
    call = ToolCall("call_0", "calculate", '{"expression": "1 + 2"}')
    start = (
        Message("system", "Solve the problem. Use calculate. Give the final answer in \\boxed{}."),
        Message("user", task.prompt),
    )
    calling = Message("assistant", "", (call,))
    answer = Message("assistant", "\\boxed{3}")
    right, wrong = Verdict(1.0, True, "The answer 3 is correct."), Verdict(0.0, False, "")

    def stored(index, verdict, observation, reason=StopReason.ANSWERED, last=answer, error=""):
        messages = (*start, calling, Message("tool", observation, tool_call_id="call_0"), last)
        return Trajectory(task, index, (), (), (), messages, verdict, reason, "test", error)

    cut = Verdict(0.0, False, "The episode was stopped: max_tokens.")
    trajectories = (
        stored(0, right, "3"),
        stored(1, wrong, "3"),
        stored(2, right, "4"),
        stored(3, cut, "3", StopReason.MAX_TOKENS),
        stored(4, None, "3", StopReason.ERROR, error="rain"),
    )
    folder = RunFolder.create(tmp_path / "run", Config.model_validate({"env": {"name": "search"}}))
    folder.write_rollouts(1, map(trajectory_record, trajectories))
    folder.config_path.write_text(folder.config_path.read_text().replace("search", "calculator"))
    out = tmp_path / "report.json"
    for source in (folder.path, folder.path / "rollouts", folder.rollouts_path(1)):
        assert main(["--rejudge", str(source), "--json", str(out)]) == 0
        found = json.loads(out.read_text())
        assert (found["rollouts"], found["agreeing"], found["errored_before"]) == (4, 3, 1)
        assert [(d["index"], d["stored"], d["now"]) for d in found["disagreements"]] == [
            (1, [0.0, False], [1.0, True])
        ]
        assert [(o["index"], o["now"]) for o in found["observations"]] == [(2, "'3', stored '4'")]
        assert "1 stored, 0 now" in capsys.readouterr().out
        out.unlink()


def test_rollouts_of_training_are_judged_in_their_own_split(tmp_path):
    folder = RunFolder.create(tmp_path / "run", Config())
    folder.write_rollouts(1, [trajectory_record(rollout("a", 0, 1.0))])
    folder.write_eval("before", {"rollouts": [trajectory_record(rollout("b", 0, 1.0))]})
    config, found = find_rollouts(folder.path)
    assert config == Config()
    assert [(file.path.name, file.split) for file in found] == [
        ("before.json", "held_out"),
        ("step-000001.jsonl", "train"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--env is needed (or --rejudge); see --help"),
        ("--env coed", "there is no environment 'coed'; expected "),
        ("--env code --smaples 3", "unknown argument '--smaples'; did you mean --samples?"),
        ("--env code --samples few", "argument --samples: got 'few'; expected a whole number"),
        ("--env code --samples 0", "eval.samples is 0; expected greater than or equal to 1"),
        ("--env code --resume", "--resume goes on with the file of --json; give that too"),
        ("--env calculator --json no.json --resume", "--resume: there is no no.rollouts.jsonl; "),
        ("--env calculator --adapter .", "--adapter got ., which holds no adapter_config.json; "),
        ("--env calculator --data no.jsonl", "no.jsonl: "),
        ("--rejudge no", "--rejudge no: FileNotFoundError: "),
        ("--rejudge .", "--rejudge got ., which holds no rollouts; expected the folder of a run"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, refuses):
    refuses(main, arguments, message)


def test_what_an_earlier_evaluation_wrote_is_left_alone(whole, capsys):
    before = whole.read_bytes()
    assert main([*SMALL, "--json", str(whole)]) == 2
    assert "exists; --resume goes on with it, or choose another --json" in capsys.readouterr().err
    assert whole.read_bytes() == before


def test_stored_settings_are_not_mixed_with_others(whole, capsys):
    assert main(["--rejudge", str(whole), "--level", "3"]) == 2
    assert (
        "has its own settings, which are used again; leave out --level" in capsys.readouterr().err
    )


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['evaluate', '--help']\n"
        "try: runpy.run_module('envs.evaluate', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('torch', 'pydantic', 'rich', 'langchain_core') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "--rejudge RUN" in done.stdout
    assert done.stdout.endswith("[]\n")
