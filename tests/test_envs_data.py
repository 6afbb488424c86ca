"""Reading tasks: whatever is wrong with a row is named with its place, and the rest is kept."""

import base64
import gzip
import json
import logging
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs import data
from envs.data import DataError, NoTasks, read_tasks
from envs.types import Task


class Reader:
    """Reads {"id": text, "q": text, "a": text}, and documents {"rows": [...]}."""

    def read_row(self, row: Mapping[str, Any]) -> Task:
        return Task(str(row.get("id", row["q"])), data.text_field(row, "q"), row["a"])

    def rows_of(self, document: Any) -> Any:
        return document["rows"] if isinstance(document, dict) else document


GOOD = [{"id": str(i), "q": f"question {i}", "a": str(i)} for i in range(4)]


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def read(path: Path, content: str | bytes, strict: bool = False) -> data.Loaded:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return read_tasks(path, Reader(), strict=strict)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            '{"id": "9", "q": "x"',
            r"broken JSON: Expecting ',' delimiter at character 21; expected ",
        ),
        ("not json", r"broken JSON: .* expected one JSON object a line"),
        ("[1, 2]", r"expected a JSON object, got list"),
        ("null", r"expected a JSON object, got NoneType"),
        ('"text"', r"expected a JSON object, got str"),
        ('{"id": "9", "a": "1"}', r"field 'q' is missing; there are 'id', 'a'"),
        ("{}", r"field 'q' is missing; there are none"),
        ('{"q": 7, "a": "1"}', r"expected a text in 'q', got int"),
        ('{"q": "  ", "a": "1"}', r"expected a text in 'q', got an empty text"),
        (
            '{"id": "1", "q": "x", "a": "1"}',
            r"id '1' is already that of .*tasks\.jsonl:2; expected",
        ),
        ('{"q": "\\ud800", "a": "1"}', r"the id has half a surrogate pair at character 1"),
        ("[" * 100_000, r"nested too deeply"),
        ('{"q": ' + "9" * 5000 + "}", r"Exceeds the limit|expected a text"),
        (b'{"q": "\xff\xfe", "a": "1"}', r"byte 8 is 0xff, which is not UTF-8; expected one JSON"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_is_kept(
    tmp_path: Path, bad: str | bytes, reason: str
) -> None:
    before, after = lines(*GOOD[:2]).encode(), b"\n" + lines(*GOOD[2:]).encode()
    content = before + (bad if isinstance(bad, bytes) else bad.encode()) + after
    path = tmp_path / "tasks.jsonl"
    loaded = read(path, content)
    assert [task.id for task in loaded.tasks] == ["0", "1", "2", "3"]
    (rejected,) = loaded.rejected
    assert rejected.place == f"{path}:3"
    with pytest.raises(DataError, match=rf"tasks\.jsonl:3: .*{reason}"):
        read(path, content, strict=True)


def test_a_line_of_50_mb_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    with path.open("w") as file:
        file.write(lines(GOOD[0]) + '{"q": "')
        for _ in range(50):
            file.write("x" * 10**6)
        file.write('", "a": "1"}\n' + lines(*GOOD[1:]))
    tracemalloc.start()
    loaded = read_tasks(path, Reader())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loaded.tasks) == 4
    assert str(loaded.rejected[0]) == (
        f"{path}:2: a line of 50,000,020 bytes; expected at most 33,554,432 "
        "(envs.data.MAX_ROW_BYTES)"
    )
    assert peak_bytes < 2.5 * data.MAX_ROW_BYTES


def test_a_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    with path.open("w") as file:
        for i in range(400):
            file.write(lines({"id": str(i), "q": "x", "a": "1", "long": "y" * 100_000}))
    tracemalloc.start()
    loaded = read_tasks(path, Reader())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loaded.tasks) == 400
    assert peak_bytes < 5 * 10**6 < path.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.jsonl", None, r"none\.jsonl: cannot be read: no such file"),
        ("empty.jsonl", "", r"empty\.jsonl: no tasks; expected at least one row"),
        ("blank.jsonl", "\n \n", r"blank\.jsonl: no tasks"),
        ("empty.json", "", r"empty\.json: no tasks; expected a JSON document, got an empty file"),
        ("list.json", "[]", r"list\.json: no tasks"),
        (
            "broken.json",
            '[{"q": 1},\n',
            r"broken\.json: broken JSON: .* of line 2; expected a JSON",
        ),
        ("bad.parquet", "PAR1", r"bad\.parquet: cannot be read as Parquet"),
        ("tasks.csv", "q,a", r"tasks\.csv: got a file of unknown kind; expected \.jsonl"),
        ("tasks.jsonl.gz", "no gzip", r"tasks\.jsonl\.gz:1: the file cannot be read further"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=reason):
        read_tasks(path, Reader(), strict=True)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        read_tasks(tmp_path / "tasks.jsonl", Reader())


def test_every_kind_of_file_gives_the_same_tasks(tmp_path: Path) -> None:
    contents: dict[str, bytes] = {
        "a.jsonl": lines(*GOOD).encode(),
        "b.ndjson": lines(*GOOD).replace("\n", "\r\n\r\n").encode("utf-8-sig"),
        "c.json": json.dumps(GOOD, indent=1).encode(),
        "d.json": json.dumps({"rows": GOOD}).encode("utf-8-sig"),
        "e.json": lines(*GOOD).encode(),  # lines under the name of a document
        "f.jsonl.gz": gzip.compress(lines(*GOOD).encode()),
        "g.json.gz": gzip.compress(json.dumps(GOOD).encode()),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "h.parquet")
    expected = read_tasks(tmp_path / "a.jsonl", Reader())
    for path in sorted(tmp_path.iterdir()):
        assert read_tasks(path, Reader(), strict=True) == expected, path.name


def test_other_separators_do_not_end_a_line(tmp_path: Path) -> None:
    row = {"q": "a\u2028b\x85c\x0bd", "a": "1"}
    content = json.dumps(row, ensure_ascii=False) + "\n"
    assert read(tmp_path / "a.jsonl", content).tasks[0].prompt == "a\u2028b\x85c\x0bd"


def test_rows_of_a_table_and_of_a_document_are_counted(tmp_path: Path) -> None:
    rows = [GOOD[0], {"id": "9", "q": None, "a": "1"}, GOOD[1], GOOD[0]]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    loaded = read_tasks(path, Reader())
    assert [str(rejected) for rejected in loaded.rejected] == [
        f"{path}: row 2: expected a text in 'q', got NoneType",
        f"{path}: row 4: the id '0' is already that of {path}: row 1; expected one of its own",
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps([GOOD[0], 7]))
    assert str(read_tasks(path, Reader()).rejected[0]).endswith(
        "row 2: expected a JSON object, got int"
    )
    path.write_text(json.dumps({"paragraphs": GOOD}))
    with pytest.raises(DataError, match="row 1: no rows from here on: KeyError: 'rows'"):
        read_tasks(path, Reader(), strict=True)


def test_a_cut_off_archive_gives_what_it_holds(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "q": base64.b85encode(bytes([i] * 99)).decode(), "a": ""} for i in range(200)
    ]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*rows).encode())[:-200])
    loaded = read_tasks(path, Reader())
    assert loaded.tasks
    assert "cannot be read further" in loaded.rejected[-1].reason


@given(st.lists(st.binary(max_size=40) | st.sampled_from([lines(row).encode() for row in GOOD])))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_tasks_rejections_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    content = b"\n".join(chunks)
    path.write_bytes(content)
    try:
        loaded = read_tasks(path, Reader())
    except DataError:
        assert not content.strip(b" \t\r\n")
        return
    written = [line for line in content.split(b"\n") if line.strip(b" \t\r")]
    assert len(loaded.tasks) + len(loaded.rejected) == len(written)
    assert len(loaded.tasks) == len({task.id for task in loaded.tasks})


# The environment's part.


def test_an_environment_warns_once_and_keeps_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines({"question": "6 * 7?", "answer": "#### 42"}, "{", {"question": "1?"}))
    with caplog.at_level(logging.WARNING):
        env = envs.make("calculator", data=path)
    assert env.rows is not None
    assert [task.answer for task in env.rows] == ["42"]
    assert len(env.rejected) == 2
    assert caplog.messages == [f"2 of 3 rows left out, the first: {env.rejected[0]}"]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: broken JSON"):
        envs.make("calculator", data=path, strict=True)


def test_an_environment_without_a_single_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n[]\n")
    with pytest.raises(NoTasks, match=r"no row of 2 is a task; the first: .*rows\.jsonl:1: broken"):
        envs.make("calculator", data=path)


# The hub. `datasets` takes a local folder of the same name, so this is its real road.


def test_a_hub_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(3)]
    (folder / "train.jsonl").write_text(lines(*rows, {"question": "3?", "answer": "none"}))
    monkeypatch.chdir(tmp_path)
    env = envs.make("calculator", data="hub:owner/name:train")
    assert env.rows is not None
    assert [task.answer for task in env.rows] == ["0", "1", "2"]
    assert env.rejected[0].place == "hub:owner/name:train: row 4"
    with pytest.raises(DataError, match=r"hub:owner/name:dev: row 1: cannot be read: .*dev"):
        envs.make("calculator", data="hub:owner/name:dev")


@pytest.mark.parametrize(
    "source", ["hub:", "hub:name:train", "hub:o/n", "hub:o/n/c/d:train", "hub:o/n:"]
)
def test_an_address_on_a_hub_has_owner_name_and_split(source: str) -> None:
    with pytest.raises(DataError, match=rf"got '{source}'; expected hub:owner/name:split"):
        read_tasks(source, Reader())
