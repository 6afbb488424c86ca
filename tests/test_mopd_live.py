"""What a person reads during a run, as lines and on a real terminal."""

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from mopd.live import LiveView, PlainView, duration, open_view

STEP = {
    "step": 3,
    "loss": 0.12345,
    "success_rate": 0.4,
    "reward": 0.45,
    "mixed": 0.625,
    "all_success": 0.125,
    "all_failure": 0.25,
    "teacher_auc": None,
    "evidence": 1.0,
    "errors": 0.0,
    "tokens_per_s": 812.3,
    "sampled_tokens": 4100,
    "seconds": 6.0,
}
EVALUATION = {
    "mean": 0.3125,
    "ci_low": 0.2,
    "ci_high": 0.4,
    "pass_at_k": {"1": 0.3125, "4": 0.5},
    "tasks": 64,
    "samples": 4,
}
SUMMARY = {
    "eval_before": EVALUATION,
    "eval_after": EVALUATION | {"mean": 0.5625},
    "gain": {"mean": 0.25, "ci_low": 0.15, "ci_high": 0.35},
    "rollouts": 1920,
    "wall_s": 240.4,
    "cpu_s": 400.1,
    "peak_rss_mb": 1204.6,
}


def test_plain_view_writes_one_line_an_event(capsys):
    with open_view() as view:  # stdout is no terminal here
        assert isinstance(view, PlainView)
        view.phase("evaluating held-out tasks before training")
        view.evaluated("before", EVALUATION)
        view.step(STEP, 30)
        view.summary(SUMMARY)
        view.note("adapter in runs/[x]")
    assert capsys.readouterr().out.splitlines() == [
        "evaluating held-out tasks before training ...",
        "before: mean@4 0.312 [0.200, 0.400], pass@4 0.500 on 64 tasks",
        "step 3/30  loss 0.1235  success_rate 0.400  reward 0.450  mixed 62%  all_success 12%  "
        "all_failure 25%  teacher_auc -  evidence 100%  errors 0%  sampled_tokens 4100  "
        "tokens_per_s 812  seconds 6.0  left 3 min",
        "held-out success 0.312 -> 0.562, gain +0.250 [+0.150, +0.350]; 1,920 rollouts, "
        "wall 240 s, cpu 400 s, peak memory 1,205 MB",
        "adapter in runs/[x]",
    ]


def test_time_left_follows_the_latest_steps(capsys):
    view = PlainView()
    for step, seconds in ((1, 100.0), *((step, 10.0) for step in range(2, 10))):
        view.step(STEP | {"step": step, "seconds": seconds}, 12)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith("left 18 min")
    assert last.endswith("left 30 s")


def test_missing_and_undefined_numbers_are_dashes(capsys):
    PlainView().step({"step": 1, "loss": float("nan")}, 2)
    out = capsys.readouterr().out
    assert "loss -" in out
    assert "left" not in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3540, "59 min"), (7500, "2 h 05 min")],
)
def test_durations_read_naturally(seconds, text):
    assert duration(seconds) == text


def test_live_view_shows_the_latest_steps_and_fits_80_columns():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=40, color_system=None)
    with LiveView(console) as view:
        view.phase("playing [1/2]")
        for step in range(1, 21):
            view.step(STEP | {"step": step}, 30)
        view.evaluated("after", EVALUATION)
        view.summary(SUMMARY)
    table, _, end = screen.getvalue().rpartition("step   ")[2].partition("held-out")
    assert [int(line.split()[0]) for line in table.splitlines() if "62/12/25" in line] == [
        *range(9, 21)
    ]
    assert "teacher AUC" in table
    assert "0.1235" in table
    assert "0.312 -> 0.562" in end
    assert "after: mean@4" in screen.getvalue()


SCRIPT = """
from mopd.live import open_view
with open_view() as view:
    view.phase("sampling")
    view.step({"step": 1, "loss": 0.5, "success_rate": 0.25, "seconds": 2.0}, 10)
    view.note("a note [with brackets]")
    raise RuntimeError("the sandbox is gone")
"""


def test_an_error_leaves_the_terminal_as_it_was():
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "40"},
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            chunk = os.read(controller, 4096)
        except OSError:  # Linux reports the other end's close so
            break
        if not chunk:
            break
        seen += chunk
    os.close(controller)
    assert process.wait(30) == 1
    text = seen.decode()
    assert "a note [with brackets]" in text
    assert "step 1 of 10" in text
    assert "18 s left" in text
    assert "RuntimeError: the sandbox is gone" in text
    hidden, shown = text.rfind("\x1b[?25l"), text.rfind("\x1b[?25h")
    assert 0 <= hidden < shown, "the cursor stays hidden"
