"""What a person sees of a run while it runs."""

import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

Number = float | None
_ROWS = 12


class View(Protocol):
    """Where a run reports to."""

    def phase(self, text: str) -> None:
        """Something that takes a while begins."""

    def step(self, metrics: Mapping[str, Number], steps: int) -> None:
        """Step `metrics["step"]` of `steps` (counted from 1) is done."""

    def evaluated(self, label: str, result: Mapping[str, Any]) -> None:
        """A held-out evaluation, as `Evaluation.as_dict` gives it."""

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The run is over; the mapping is `summary.json`."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""


@contextmanager
def open_view() -> Iterator[View]:
    """A live display on a terminal, plain lines elsewhere; leaves the terminal as it was."""
    if not sys.stdout.isatty():
        yield PlainView()
        return
    from rich.console import Console

    with LiveView(Console()) as view:
        yield view


class PlainView:
    """One line an event."""

    def __init__(self) -> None:
        self._clock = _Clock()

    def phase(self, text: str) -> None:
        """Print the phase."""
        self.note(f"{text} ...")

    def step(self, metrics: Mapping[str, Number], steps: int) -> None:
        """Print the step's numbers as `name value` pairs."""
        self.note(step_line(metrics, steps, self._clock.left(metrics, steps)))

    def evaluated(self, label: str, result: Mapping[str, Any]) -> None:
        """Print the estimate with its interval."""
        self.note(evaluation_line(label, result))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Print what the run gained and what it cost."""
        self.note(summary_line(summary))

    def note(self, text: str) -> None:
        """Print the text."""
        print(text, flush=True)


class LiveView:
    """A progress bar with the time left, and a table of the latest steps."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._rows: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._clock = _Clock()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # may hold brackets
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=None, left="")
        # Two frames a second: drawing must not cost a machine of two cores its time.
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        """Show the phase beside the bar."""
        self._progress.update(self._task, description=text)

    def step(self, metrics: Mapping[str, Number], steps: int) -> None:
        """Add a row and move the bar."""
        left = self._clock.left(metrics, steps)
        self._rows.append(_row(metrics))
        self._progress.update(
            self._task,
            description=f"step {_text(metrics.get('step'), '.0f')} of {steps}",
            completed=metrics.get("step") or 0,
            total=steps,
            left=f"{duration(left)} left" if left else "",
        )

    def evaluated(self, label: str, result: Mapping[str, Any]) -> None:
        """Print the estimate above the display."""
        self.note(evaluation_line(label, result))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """End the display and print below it what the run gained and what it cost."""
        self._progress.update(self._task, description="done", left="")
        self._live.stop()
        self.note(summary_line(summary))

    def note(self, text: str) -> None:
        """Print above the display."""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> "Group":
        from rich.console import Group

        return Group(self._table(), self._progress) if self._rows else Group(self._progress)

    def _table(self) -> "Table":
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(box=SIMPLE)
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        return table


_COLUMNS = ("step", "loss", "success", "mixed/all+/all-", "teacher AUC", "tokens/s", "seconds")


def _row(metrics: Mapping[str, Number]) -> tuple[str, ...]:
    groups = ("mixed", "all_success", "all_failure")
    return (
        _text(metrics.get("step"), ".0f"),
        _text(metrics.get("loss"), ".4f"),
        _text(metrics.get("success_rate"), ".0%"),
        "/".join(_text(metrics.get(name), ".0%").rstrip("%") for name in groups),
        _text(metrics.get("teacher_auc"), ".2f"),
        _text(metrics.get("tokens_per_s"), ",.0f"),
        _text(metrics.get("seconds"), ".1f"),
    )


def step_line(metrics: Mapping[str, Number], steps: int, left_s: float | None) -> str:
    """A step as one line; `left_s` is the time that the other steps are expected to take."""
    shown = {
        "loss": ".4f",
        "success_rate": ".3f",
        "reward": ".3f",
        "mixed": ".0%",
        "all_success": ".0%",
        "all_failure": ".0%",
        "teacher_auc": ".2f",
        "evidence": ".0%",
        "errors": ".0%",
        "sampled_tokens": ".0f",
        "tokens_per_s": ".0f",
        "seconds": ".1f",
    }
    numbers = [f"{name} {_text(metrics.get(name), style)}" for name, style in shown.items()]
    left = [f"left {duration(left_s)}"] if left_s else []
    return "  ".join([f"step {_text(metrics.get('step'), '.0f')}/{steps}", *numbers, *left])


def evaluation_line(label: str, result: Mapping[str, Any]) -> str:
    """A held-out evaluation as one line."""
    samples = result.get("samples")
    passed = (result.get("pass_at_k") or {}).get(str(samples))
    return (
        f"{label}: mean@{samples} {_interval(result)}, "
        f"pass@{samples} {_text(passed, '.3f')} on {result.get('tasks')} tasks"
    )


def summary_line(summary: Mapping[str, Any]) -> str:
    """What a run gained and what it cost, as one line."""
    before, after = summary.get("eval_before") or {}, summary.get("eval_after") or {}
    return (
        f"held-out success {_text(before.get('mean'), '.3f')} -> {_text(after.get('mean'), '.3f')}"
        f", gain {_interval(summary.get('gain') or {}, '+.3f')}"
        f"; {_text(summary.get('rollouts'), ',.0f')} rollouts"
        f", wall {_text(summary.get('wall_s'), '.0f')} s"
        f", cpu {_text(summary.get('cpu_s'), '.0f')} s"
        f", peak memory {_text(summary.get('peak_rss_mb'), ',.0f')} MB"
    )


def duration(seconds: float) -> str:
    """A time span as people write it: 45 s, 3 min, 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Clock:
    """Expects the next steps to take what the latest ones took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=8)

    def left(self, metrics: Mapping[str, Number], steps: int) -> float | None:
        """Seconds until the last step, None where nothing is known."""
        step, seconds = metrics.get("step"), metrics.get("seconds")
        if seconds is not None:
            self._seconds.append(seconds)
        if step is None or not self._seconds:
            return None
        return (steps - step) * sum(self._seconds) / len(self._seconds)


def _interval(estimate: Mapping[str, Any], style: str = ".3f") -> str:
    mean, low, high = (_text(estimate.get(key), style) for key in ("mean", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]"


def _text(value: Number, style: str) -> str:
    return format(value, style) if value is not None and math.isfinite(value) else "-"
