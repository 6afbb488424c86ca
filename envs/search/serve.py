"""The command that serves a corpus in Search-R1's wire format: `python -m envs.search.serve`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envs.search.wire import MAX_TOPK, PATH

if TYPE_CHECKING:
    from envs.search.retriever import Retriever

# Whatever else is needed is imported after parsing: --help costs no time.


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code is 2 for bad input."""
    options = parse(argv)
    from envs.search.server import RetrievalServer

    try:
        retriever = open_retriever(options)
        server = RetrievalServer((options.host, options.port), retriever, options.topk)
    except (ValueError, OSError, OverflowError) as error:
        print("error:", error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server:
        host, port = server.server_address[:2]
        print(f"serving at http://{host!s}:{port}{PATH}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.search.serve",
        description="Serve a retriever over HTTP in Search-R1's wire format.",
        epilog="example: python -m envs.search.serve --corpus wiki-18.jsonl --port 8000",
    )
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="JSON lines: {id, contents}")
    parser.add_argument("--retriever", default="bm25", metavar="NAME", help="bm25 or dense:MODEL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--topk", type=int, default=3, help="where a request has none")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for indexes")
    options = parser.parse_args(argv)
    if not 1 <= options.topk <= MAX_TOPK:
        parser.error(f"--topk {options.topk}: expected 1 to {MAX_TOPK}")
    return options


def open_retriever(options: argparse.Namespace) -> "Retriever":
    """What is to be served.

    Raises:
        ValueError: an unknown retriever, one that brings its own corpus beside a corpus, or
            a local one without.
    """
    from envs.search.cache import cache_folder
    from envs.search.retriever import is_remote, open_corpus, open_remote

    if is_remote(options.retriever) == (options.corpus is not None):
        need = "its own corpus: leave --corpus out" if options.corpus else "a --corpus FILE"
        raise ValueError(f"--retriever {options.retriever} has to have {need}")
    if options.corpus is None:
        return open_remote(options.retriever)
    return open_corpus(options.retriever, options.corpus, cache_folder(options.cache))


if __name__ == "__main__":
    sys.exit(main())
