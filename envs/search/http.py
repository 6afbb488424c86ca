"""A retriever behind HTTP, in Search-R1's wire format."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

from envs.search.documents import Hit
from envs.search.wire import PATH, Request, hits_from_wire, request_to_wire
from envs.tools import WorldError

MAX_ANSWER_BYTES = 64 * 2**20


class HttpRetriever:
    """A client that tries again, after growing pauses, what a busy server or a network lost."""

    def __init__(
        self, url: str, *, timeout_s: float = 10.0, attempts: int = 4, pause_s: float = 0.25
    ) -> None:
        self.url = url if url.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.pause_s = pause_s

    def search(self, queries: Sequence[str], k: int) -> tuple[tuple[Hit, ...], ...]:
        """Ask the server once for all queries.

        Raises:
            WorldError: it cannot be reached, refuses, or answers in another format.
        """
        # Always with scores: the published server fails on requests without them.
        body = request_to_wire(Request(tuple(queries), k, return_scores=True))
        answer = self._post(json.dumps(body).encode("utf-8"))
        try:
            found = hits_from_wire(json.loads(answer), len(queries))
        except (ValueError, RecursionError) as error:
            raise WorldError(f"{self.url} answers in another format: {error}") from error
        return tuple(hits[:k] for hits in found)

    def _post(self, body: bytes) -> bytes:
        for attempt in range(1, self.attempts + 1):
            try:
                return self._post_once(body)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"status {error.code}: {error.read(500).decode('utf-8', 'replace')}"
                if error.code != 429 and error.code < 500:
                    raise WorldError(f"{self.url} refuses the request: {reason}") from error
                cause: Exception = error
            except (OSError, HTTPException) as error:
                reason, cause = f"{type(error).__name__}: {error}", error
            if attempt < self.attempts:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
        raise WorldError(
            f"{self.url} gave no answer in {self.attempts} attempts of {self.timeout_s:g} s, the "
            f"last: {reason}; is python -m envs.search.serve running there?"
        ) from cause

    def _post_once(self, body: bytes) -> bytes:
        request = urllib.request.Request(
            self.url, body, {"Content-Type": "application/json", "Accept": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            answer: bytes = response.read(MAX_ANSWER_BYTES + 1)
        if len(answer) > MAX_ANSWER_BYTES:
            raise WorldError(f"{self.url} answers with more than {MAX_ANSWER_BYTES:,} bytes")
        return answer
