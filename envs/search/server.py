"""The HTTP server of a retriever, in Search-R1's wire format."""

import json
import logging
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from envs.search.retriever import Retriever
from envs.search.wire import PATH, hits_to_wire, request_from_wire
from envs.tools import WORLD_ERRORS

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 4 * 2**20
HEALTH = "/health"


class RetrievalServer(ThreadingHTTPServer):
    """One thread for each connection, all on one retriever."""

    daemon_threads = True
    request_queue_size = 1024  # connections that wait for their thread; the default of 5 drops some

    def __init__(self, address: tuple[str, int], retriever: Retriever, topk: int) -> None:
        self.retriever = retriever
        self.topk = topk
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away costs a line, our own bug its trace."""
        error = sys.exception()
        lost = isinstance(error, ConnectionError | TimeoutError)
        log.log(
            logging.INFO if lost else logging.ERROR,
            "connection of %s: %s",
            client_address,
            error,
            exc_info=not lost,
        )


class Refusal(Exception):  # noqa: N818 - an answer, not an error here
    """The request is answered with this status and the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """Answers requests of one connection."""

    server: RetrievalServer
    protocol_version = "HTTP/1.1"  # a client may keep its connection
    timeout = 60.0  # seconds without a byte
    wbufsize = -1  # head and body in one packet: in two, the second waits for the first's receipt
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Search."""
        try:
            answer = self._retrieve()
        except Refusal as refusal:
            # Its body may be unread, so nothing more can be read from this connection.
            self.close_connection = True
            self._reply(refusal.status, {"detail": str(refusal)})
        else:
            self._reply(HTTPStatus.OK, answer)

    def do_GET(self) -> None:
        """Tell whether the server is there."""
        if self.path == HEALTH:
            self._reply(HTTPStatus.OK, {"status": "ok"})
        elif self.path == PATH:
            reason = f"expected POST {PATH}, got GET"
            self._reply(HTTPStatus.METHOD_NOT_ALLOWED, {"detail": reason})
        else:
            self._reply(HTTPStatus.NOT_FOUND, {"detail": f"there is POST {PATH} and GET {HEALTH}"})

    def log_message(self, format: str, *args: Any) -> None:
        """To the log, not to the terminal."""
        log.info("%s " + format, self.address_string(), *args)

    def _retrieve(self) -> dict[str, Any]:
        if self.path != PATH:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is POST {PATH} and GET {HEALTH}")
        try:
            request = request_from_wire(json.loads(self._body()))
        except (ValueError, RecursionError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        try:
            found = self.server.retriever.search(request.queries, request.topk or self.server.topk)
        except WORLD_ERRORS as error:
            raise Refusal(HTTPStatus.BAD_GATEWAY, str(error)) from error
        return hits_to_wire(found, request.return_scores)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"expected at most {MAX_BODY_BYTES:,} bytes, got {length[:20]}",
            )
        return self.rfile.read(int(length))

    def _reply(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
