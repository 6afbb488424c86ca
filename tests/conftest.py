"""Fixtures that several test files share."""

import importlib.util
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Let what tests start hear Ctrl-C: whoever is a shell's background job is born deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs vLLM's engine where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: make test-vllm"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark files; a test that needs it is skipped where it is missing."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MOPD_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no benchmark files at {folder}: set MOPD_SHARED_DATA to their folder")
    return folder


Main = Callable[[Sequence[str]], int]


@pytest.fixture
def refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Main, str, str], None]:
    """Asserts that a command tells bad input in one line, which begins so, and writes nothing."""
    monkeypatch.chdir(tmp_path)

    def check(main: Main, arguments: str, message: str) -> None:
        code: object
        try:
            code = main(arguments.split())
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    return check
