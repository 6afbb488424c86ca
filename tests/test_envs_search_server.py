"""The retrieval server and its client, in Search-R1's wire format, over real sockets."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.search import SearchEnv
from envs.search.bm25 import Bm25
from envs.search.documents import Document, Hit
from envs.search.http import HttpRetriever
from envs.search.retriever import Retriever
from envs.search.serve import main
from envs.search.server import MAX_BODY_BYTES, RetrievalServer
from envs.search.wire import (
    MAX_QUERIES,
    Request,
    hits_from_wire,
    hits_to_wire,
    request_from_wire,
    request_to_wire,
)
from envs.tools import WorldError
from envs.types import Message, ToolCall

NUMBERS = tuple(
    Document(f"n{i}", f"Number {i}", f"The number {i} follows {i - 1}. Its name is name{i}.")
    for i in range(500)
)


@contextlib.contextmanager
def serving(retriever: Retriever, topk: int = 3) -> Iterator[str]:
    server = RetrievalServer(("127.0.0.1", 0), retriever, topk)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Bm25.build(NUMBERS)) as address:
        yield address


def send(
    url: str, body: bytes, method: str = "POST", path: str = "/retrieve", **headers: str
) -> Any:
    """Status and JSON of one request, by the standard library's own client."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_the_answer_has_search_r1s_form(url: str) -> None:
    asked = {"queries": ["name7", "name8 name9"], "topk": 2, "return_scores": True}
    status, answer = send(url, json.dumps(asked).encode())
    assert status == 200
    assert list(answer) == ["result"]
    assert [len(hits) for hits in answer["result"]] == [1, 2]
    (hit,) = answer["result"][0]
    assert set(hit) == {"document", "score"}
    assert hit["document"]["id"] == "n7"
    assert hit["document"]["contents"] == '"Number 7"\nThe number 7 follows 6. Its name is name7.'
    assert hit["score"] > 0
    # Search-R1's own client reads no more than this.
    title, _, text = hit["document"]["contents"].partition("\n")
    assert (title.strip('"'), text) == (hit["document"]["title"], hit["document"]["text"])


def test_without_scores_documents_stand_alone_and_topk_is_the_servers(url: str) -> None:
    _, answer = send(url, json.dumps({"queries": ["number"]}).encode())
    assert [hit["id"] for hit in answer["result"][0]] == ["n0", "n1", "n2"]
    assert send(url, b'{"queries": []}') == (200, {"result": []})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff", "can't decode byte"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "expected a JSON object with 'queries', got list"),
        (b"{}", "'queries': expected a list of texts, got nothing"),
        (b'{"queries": "x"}', "expected a list of texts, got str"),
        (b'{"queries": [1]}', "expected a list of texts"),
        (b'{"queries": ["x"], "topk": 101}', "'topk': expected a number from 1 to 100, got 101"),
        (b'{"queries": ["x"], "topk": -1}', "got -1"),
        (b'{"queries": ["x"], "topk": true}', "got True"),
        (b'{"queries": ["x"], "topk": 1.5}', "got 1.5"),
        (b'{"queries": ["x"], "return_scores": 1}', "'return_scores': expected true or false"),
        (json.dumps({"queries": ["x"] * (MAX_QUERIES + 1)}).encode(), "at most 4096, got 4097"),
        (json.dumps({"queries": ["x" * 4001]}).encode(), "at most 4000 characters in each"),
    ],
)
def test_a_malformed_request_is_told_what_was_expected(url: str, body: bytes, reason: str) -> None:
    status, answer = send(url, body)
    assert status == 400
    assert reason in answer["detail"]


def test_requests_of_another_kind_are_refused(url: str) -> None:
    assert send(url, b"", "GET", "/health") == (200, {"status": "ok"})
    assert send(url, b"", "GET") == (405, {"detail": "expected POST /retrieve, got GET"})
    assert send(url, b"", "GET", "/")[0] == 404
    assert send(url, b"{}", "POST", "/other")[0] == 404
    status, answer = send(url, b"", Content_Length=str(MAX_BODY_BYTES + 1))
    assert (status, answer["detail"]) == (413, "expected at most 4,194,304 bytes, got 4194305")
    assert send(url, b"", Content_Length="9" * 4000)[0] == 413
    for length in ("-1", "x", ""):
        assert send(url, b"", Content_Length=length)[0] == 411


def test_a_connection_is_kept_for_several_requests(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    times = []
    for number in range(20):
        started = time.perf_counter()
        connection.request("POST", "/retrieve", json.dumps({"queries": [f"name{number}"]}))
        assert json.loads(connection.getresponse().read())["result"][0][0]["id"] == f"n{number}"
        times.append(time.perf_counter() - started)
    connection.close()
    # Head and body in two packets would wait 40 ms for each other.
    assert sorted(times)[len(times) // 2] < 0.035


def test_the_client_finds_what_the_index_finds(url: str) -> None:
    queries = ("name7", "number 8", "nothing")
    for address in (url, f"{url}/", f"{url}/retrieve"):
        found = HttpRetriever(address).search(queries, 4)
        expected = Bm25.build(NUMBERS).search(queries, 4)
        assert [[h.document for h in hits] for hits in found] == [
            [h.document for h in hits] for hits in expected
        ]
        assert [[h.score for h in hits] for hits in found] == [
            [pytest.approx(h.score) for h in hits] for hits in expected
        ]


def test_64_clients_at_once_lose_nothing(url: str) -> None:
    gate = threading.Barrier(64)
    client = HttpRetriever(url, attempts=1, timeout_s=30)

    def ask(number: int) -> list[bool]:
        gate.wait()
        places = range(number, 1280, 64)
        return [
            client.search((f"name{place % 500}",), 2)[0][0].document.id == f"n{place % 500}"
            for place in places
        ]

    with ThreadPoolExecutor(64) as pool:
        answers = [right for rights in pool.map(ask, range(64)) for right in rights]
    assert len(answers) == 1280
    assert all(answers)


def test_clients_that_go_away_or_stay_silent_harm_nobody(url: str) -> None:
    address = url.removeprefix("http://").split(":")
    lost = [socket.create_connection((address[0], int(address[1]))) for _ in range(20)]
    for number, connection in enumerate(lost):
        head = b"POST /retrieve HTTP/1.1\r\nContent-Length: 500\r\n\r\n{"
        connection.sendall(head[: number * 3])
        if number % 2:
            connection.close()
    assert HttpRetriever(url, attempts=1).search(("name3",), 1)[0][0].document.id == "n3"
    for connection in lost:
        connection.close()


class Broken:
    """A retriever whose engine is down."""

    def search(self, queries: Sequence[str], k: int) -> tuple[tuple[Hit, ...], ...]:
        raise WorldError("the engine is down")


def test_a_failing_engine_is_a_bad_gateway_and_a_world_error() -> None:
    with serving(Broken()) as url:
        assert send(url, b'{"queries": ["x"]}') == (502, {"detail": "the engine is down"})
        with pytest.raises(WorldError, match=r"2 attempts .* status 502: .*the engine is down"):
            HttpRetriever(url, attempts=2, pause_s=0.01).search(("x",), 1)


@contextlib.contextmanager
def answering(
    *answers: Callable[[BaseHTTPRequestHandler], None],
) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives these answers, one after the other, and notes the requests."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answers[min(len(requests), len(answers)) - 1](self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(status: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def wait(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.5)


GOOD = json.dumps({"result": [[{"document": {"contents": '"T"\ntext'}, "score": 1.5}]]}).encode()


def test_the_client_tries_again_what_may_pass() -> None:
    with answering(hang_up, say(503, b"busy"), say(429, b""), say(200, GOOD)) as (url, requests):
        ((hit,),) = HttpRetriever(url, pause_s=0.01).search(("x",), 5)
        assert (hit.document.title, hit.document.text, hit.score) == ("T", "text", 1.5)
        # The published server fails on requests without scores.
        assert requests == [{"queries": ["x"], "topk": 5, "return_scores": True}] * 4


@pytest.mark.parametrize(
    ("answer", "reason", "attempts"),
    [
        (say(400, b"no such field"), "refuses the request: status 400: no such field", 1),
        (say(422, b"{}"), "status 422", 1),
        (say(500, b"bug"), "gave no answer in 3 attempts of 0.2 s, the last: status 500: bug", 3),
        (hang_up, "the last: RemoteDisconnected", 3),
        (wait, r"the last: TimeoutError: .*is python -m envs\.search\.serve running there", 3),
        (say(200, b"<html>"), "answers in another format: Expecting value", 1),
        (say(200, b"[" * 100_000), "answers in another format: .*recursion", 1),
        (say(200, b"[]"), r"expected \{'result': .*\}, got list with 'result' nothing", 1),
        (say(200, b'{"result": [[], []]}'), "expected results of 1 queries, got 2", 1),
        (say(200, b'{"result": [[3]]}'), "expected a document as a JSON object, got int", 1),
        (say(200, b'{"result": [[{"document": {}}]]}'), "expected a text in 'contents'", 1),
    ],
)
def test_what_the_server_does_wrong_is_the_worlds_failure(
    answer: Callable[[BaseHTTPRequestHandler], None], reason: str, attempts: int
) -> None:
    with answering(answer) as (url, requests):
        client = HttpRetriever(url, attempts=3, timeout_s=0.2, pause_s=0.01)
        with pytest.raises(WorldError, match=reason):
            client.search(("x",), 3)
        assert len(requests) == attempts


def test_nobody_there_is_the_worlds_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = HttpRetriever(f"http://127.0.0.1:{unused.getsockname()[1]}", pause_s=0.01)
        with pytest.raises(WorldError, match="gave no answer in 4 attempts"):
            client.search(("x",), 3)


@pytest.mark.parametrize(
    "item",
    [
        {"document": {"id": "d", "contents": '"T"\ntext'}, "score": 1.0},
        {"document": {"id": "d", "title": "T", "text": "text"}, "score": "1.0"},
        {"document": {"id": "d", "title": "T", "text": "text", "contents": '"T"\ntext'}},
        {"id": "d", "title": "T", "text": "text"},
        {"docid": "d", "contents": "T\ntext"},
        {"document": '"T"\ntext', "score": 1},
        '"T"\ntext',
    ],
)
def test_the_forms_in_which_servers_write_a_document_are_read(item: Any) -> None:
    ((hit,),) = hits_from_wire({"result": [[item]]}, 1)
    assert (hit.document.title, hit.document.text) == ("T", "text")
    assert len(hit.document.id) in (1, 12)


@given(st.lists(st.text(max_size=9), max_size=4), st.none() | st.integers(1, 100), st.booleans())
def test_requests_and_answers_survive_the_wire(
    queries: list[str], topk: int | None, scores: bool
) -> None:
    request = Request(tuple(queries), topk, scores)
    assert request_from_wire(json.loads(json.dumps(request_to_wire(request)))) == request
    documents = (Document("1", "", "x"), Document("2", 'a "b"', "c\nd"))
    found = tuple(tuple(Hit(d, float(scores)) for d in documents) for _ in queries)
    answer = json.loads(json.dumps(hits_to_wire(found, scores)))
    assert hits_from_wire(answer, len(queries)) == found


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_no_answer_raises_anything_but_a_value_error(value: Any) -> None:
    shapes = (value, {"result": value}, {"result": [[value]]}, {"result": [[{"document": value}]]})
    scored = {"document": {"contents": "x"}, "score": value}
    for body in (*shapes, {"result": [[scored]]}, {"result": [[{"id": value, "text": "x"}]]}):
        with contextlib.suppress(ValueError):
            hits_from_wire(body, 1)


def test_the_environment_searches_a_server_and_its_failure_ends_the_rollout(
    url: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What follows 6?", "golden_answers": ["7"]}')
    env = SearchEnv(data=rows, retriever=url)
    env.reset(seed=0)
    search = Message("assistant", "", (ToolCall("1", "search", '{"query": "name7"}'),))
    (found,), *_ = env.step(search)
    assert found.content == "n7 Number 7: Its name is name7."
    with serving(Broken()) as broken:
        env = SearchEnv(data=rows, retriever=broken)
        env._outside = HttpRetriever(broken, attempts=1)
        env.reset(seed=0)
        with pytest.raises(WorldError, match="the engine is down"):
            env.step(search)


def test_the_command_serves_a_corpus_until_it_is_told_to_end(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "\\"Oslo\\"\\nOslo is in Norway."}\n')
    command = [sys.executable, "-W", "error", "-m", "envs.search.serve", "--corpus", str(corpus)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.fullmatch(r"serving at (http://127\.0\.0\.1:\d+)/retrieve\n", line)
        assert address, line
        ((hit,),) = HttpRetriever(address[1]).search(("norway",), 3)
        assert hit.document == Document("1", "Oslo", "Oslo is in Norway.")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--corpus", "missing.jsonl"], "missing.jsonl: cannot be read: No such file"),
        ([], "has to have a --corpus FILE"),
        (["--retriever", "lucene", "--corpus", "x"], "expected 'bm25'"),
        (["--retriever", "http://h", "--corpus", "x"], "leave --corpus out"),
        (["--retriever", "http://h", "--port", "99999999"], "port"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert reason in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_topk_out_of_bounds_is_refused_at_the_start() -> None:
    with pytest.raises(SystemExit):
        main(["--topk", "0"])
