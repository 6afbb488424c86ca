"""JSON over HTTP with retries: what a server's bad moment must not cost."""

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from agents.base import EngineError

PAUSES_S = (0.5, 2.0)  # between attempts


class ServerError(EngineError):
    """A server that cannot be reached, fails or refuses, after all attempts; the text says how."""


class RefusedError(ServerError):
    """The server understood the request and will not serve it; asking again changes nothing."""


class Server:
    """An OpenAI-compatible server, by the address under which it has `/v1`."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s

    def get(self, path: str) -> Any:
        """The answer to GET.

        Raises:
            ServerError: no answer after three attempts, or a refusal.
        """
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: object) -> Any:
        """The answer to POST, JSON or text.

        Raises:
            ServerError: as `get`.
        """
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + path, data, headers))

    def _ask(self, request: urllib.request.Request) -> Any:
        for pause_s in (*PAUSES_S, None):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                    text = answer.read().decode("utf-8", "replace")
                return json.loads(text) if text.startswith(("{", "[")) else text
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read().decode("utf-8", "replace").strip()[:300]
                what = f"{request.full_url} answered {error.code}: {said}"
                if error.code < 500 and error.code not in (408, 429):
                    raise RefusedError(what) from None
            # URLError and timeouts are OSErrors.
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                what = f"{request.full_url}: {error or type(error).__name__}"
            if pause_s is None:
                raise ServerError(f"{what} (after {len(PAUSES_S) + 1} attempts)")
            time.sleep(pause_s)
        raise AssertionError("unreachable")
