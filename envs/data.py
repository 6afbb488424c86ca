"""Tasks from data files and hubs: a row that cannot be used is named, the rest is kept."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from envs.types import Task

MAX_ROW_BYTES = 32 * 2**20  # of a line; the longest line of LiveCodeBench has some 20 MB
LINES, DOCUMENT, TABLE = (".jsonl", ".ndjson"), ".json", ".parquet"
HUB = "hub:"


class DataError(ValueError):
    """Data that cannot be used; the text names file, line and what was expected."""


class RowReader(Protocol):
    """Part of `ToolEnv`: how its rows become tasks."""

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """The task of a row; ValueError, KeyError or TypeError says why there is none."""
        ...

    def rows_of(self, document: Any) -> Iterable[Any]:
        """The rows of a whole JSON document."""
        ...


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is no task, where it stands, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source held."""

    tasks: tuple[Task, ...]
    rejected: tuple[Rejected, ...]


class NoTasks(DataError):  # noqa: N818 - says what it is
    """Data of which every row was rejected."""

    def __init__(self, rejected: tuple[Rejected, ...]) -> None:
        super().__init__(f"no row of {len(rejected)} is a task; the first: {rejected[0]}")
        self.rejected = rejected


# Where a row stands, and what gives its value or raises ValueError.
_Row = tuple[str, Callable[[], Any]]


def read_tasks(source: str | Path, reader: RowReader, *, strict: bool = False) -> Loaded:
    """Read the tasks of a file, or of `hub:owner/name[/config]:split` with `datasets`.

    Files are JSON lines, one JSON document, or Parquet, the first two also with `.gz`. Lines and
    tables are streamed; a line beyond `MAX_ROW_BYTES` is skipped without being held.

    Raises:
        DataError: the source cannot be read or has no rows; or, if `strict`, a row is rejected.
    """
    tasks: list[Task] = []
    rejected: list[Rejected] = []
    places: dict[str, str] = {}
    for place, load in _rows(str(source), reader):
        try:
            task = _task(load(), reader, places)
        except (ValueError, TypeError) as error:
            rejected.append(Rejected(place, str(error)))
            if strict:
                raise DataError(str(rejected[0])) from error
            continue
        places[task.id] = place
        tasks.append(task)
    if not tasks and not rejected:
        raise DataError(f"{source}: no tasks; expected at least one row, such as a JSON object")
    return Loaded(tuple(tasks), tuple(rejected))


def text_field(row: Mapping[str, Any], field: str) -> str:
    """The text of a field that must not be empty.

    Raises:
        KeyError, ValueError: it is missing, or something else.
    """
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        got = "an empty text" if isinstance(value, str) else type(value).__name__
        raise ValueError(f"expected a text in {field!r}, got {got}")
    return value


def _task(row: Any, reader: RowReader, places: Mapping[str, str]) -> Task:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    try:
        task = reader.read_row(row)
    except KeyError as error:
        fields = ", ".join(map(repr, list(row)[:20])) or "none"
        raise ValueError(f"field {error} is missing; there are {fields[:300]}") from error
    if task.id in places:
        raise ValueError(
            f"the id {task.id[:80]!r} is already that of {places[task.id]}; expected one of its own"
        )
    if not task.prompt.strip():
        raise ValueError("the prompt is empty; expected a text")
    for name, text in (("id", task.id), ("prompt", task.prompt), ("answer", task.answer)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the {name} has half a surrogate pair at character {error.start + 1}; "
                "expected text that has a UTF-8 form"
            ) from error
    return task


def _rows(source: str, reader: RowReader) -> Iterator[_Row]:
    if source.startswith(HUB):
        return _hub(source)
    path = Path(source)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if not path.exists():
        raise DataError(f"{path}: cannot be read: no such file; expected a file of tasks")
    if suffix in LINES or (suffix == DOCUMENT and _holds_lines(path)):
        return _lines(path)
    if suffix == DOCUMENT:
        return _document(path, reader)
    if suffix == TABLE and not path.name.endswith(".gz"):
        return _table(path)
    raise DataError(
        f"{path}: got a file of unknown kind; expected {', '.join((*LINES, DOCUMENT, TABLE))} "
        f"or {HUB}owner/name:split"
    )


def _open(path: Path) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            # It has the methods of a binary file that are used here.
            return gzip.open(path)  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[_Row]:
    with _open(path) as stream:
        number = 0
        while True:
            number += 1
            place = f"{path}:{number}"
            try:
                # Not text lines: those would end at other separators too, such as U+2028.
                line, length = _next_line(stream)
            except (OSError, EOFError, zlib.error) as error:
                yield place, partial(_refuse, f"the file cannot be read further: {error}")
                return
            if not length:
                return
            if length > MAX_ROW_BYTES:
                yield (
                    place,
                    partial(
                        _refuse,
                        f"a line of {length:,} bytes; expected at most {MAX_ROW_BYTES:,} "
                        "(envs.data.MAX_ROW_BYTES)",
                    ),
                )
            elif line := line.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n"):
                yield place, partial(_parse, line, "one JSON object a line")


def _next_line(stream: IO[bytes]) -> tuple[bytes, int]:
    """The next line and its length; of one that is too long, the length only."""
    line = stream.readline(MAX_ROW_BYTES + 1)
    length = len(line)
    if length <= MAX_ROW_BYTES or line.endswith(b"\n"):
        return line, length
    while not line.endswith(b"\n") and (line := stream.readline(2**20)):
        length += len(line)
    return b"", length


def _holds_lines(path: Path) -> bool:
    """Whether a `.json` file has an object in each line, as many published ones have."""
    with _open(path) as stream:
        try:
            line, length = _next_line(stream)
            return length <= MAX_ROW_BYTES and (
                isinstance(_parse(line, "JSON"), dict) and bool(stream.read(2**10).strip())
            )
        except (OSError, EOFError, zlib.error, ValueError):
            return False


def _document(path: Path, reader: RowReader) -> Iterator[_Row]:
    with _open(path) as stream:
        try:
            text = stream.read()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
    if not text.strip():
        raise DataError(f"{path}: no tasks; expected a JSON document, got an empty file")
    try:
        document = _parse(text, "a JSON document; a file of one object a line is named .jsonl")
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    del text
    number = 0
    try:
        for row in reader.rows_of(document):
            number += 1
            yield f"{path}: row {number}", partial(_given, row)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"no rows from here on: {type(error).__name__}: {error}"
        yield f"{path}: row {number + 1}", partial(_refuse, reason)


def _table(path: Path) -> Iterator[_Row]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped] # ships no types
    except ImportError as error:
        raise DataError(f"{path}: a Parquet file needs pip install 'mopd[data]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=64):
                for offset in range(batch.num_rows):
                    number += 1
                    yield f"{path}: row {number}", partial(_only, batch.slice(offset, 1))
    except (OSError, ValueError) as error:  # pyarrow's own errors are either
        if number == 0:
            raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
        reason = f"the file cannot be read further: {error}"
        yield f"{path}: row {number + 1}", partial(_refuse, reason)


def _hub(source: str) -> Iterator[_Row]:
    name, _, split = source.removeprefix(HUB).rpartition(":")
    owner, _, rest = name.partition("/")
    repository, _, config = rest.partition("/")
    if not (owner and repository and split) or "/" in config:
        raise DataError(f"got {source!r}; expected {HUB}owner/name:split or .../config:split")
    try:
        import datasets  # type: ignore[import-untyped] # ships no types
    except ImportError as error:
        raise DataError(f"{source}: a data set of a hub needs pip install 'mopd[data]'") from error
    number = 0
    try:
        rows = datasets.load_dataset(
            f"{owner}/{repository}", config or None, split=split, streaming=True
        )
        for row in rows:
            number += 1
            yield f"{source}: row {number}", partial(_given, row)
    except (OSError, ValueError) as error:  # not found, no network, no such split
        raise DataError(f"{source}: row {number + 1}: cannot be read: {error}") from error


def _parse(text: bytes, expected: str) -> Any:
    try:
        return json.loads(text.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} is {error.object[error.start]:#04x}, which is not UTF-8; "
            f"expected {expected}"
        ) from error
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(
            f"broken JSON: {error.msg} at character {error.colno}{line}; expected {expected}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"JSON that is nested too deeply; expected {expected}") from error


def _only(batch: Any) -> Any:
    (row,) = batch.to_pylist()
    return row


def _given(value: Any) -> Any:
    return value


def _refuse(reason: str) -> Any:
    raise ValueError(reason)
