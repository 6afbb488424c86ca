"""The retriever protocol, and which retriever a text such as `bm25` names."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol
from weakref import WeakValueDictionary

from envs.search.documents import Document, Hit, read_corpus

BM25, DENSE, LANGCHAIN, HTTP = "bm25", "dense:", "langchain:", ("http://", "https://")


class Retriever(Protocol):
    """Finds documents; used by several threads at once."""

    def search(self, queries: Sequence[str], k: int) -> tuple[tuple[Hit, ...], ...]:
        """The best hits of each query, best first, at most `k`.

        Raises:
            WorldError: the search engine failed.
        """
        ...


_lock = Lock()
_of_files: WeakValueDictionary[tuple[object, ...], Retriever] = WeakValueDictionary()


def is_remote(name: str) -> bool:
    """Whether the named retriever brings its own corpus.

    Raises:
        ValueError: the name is of no known form.
    """
    if name == BM25 or (name.startswith(DENSE) and name != DENSE):
        return False
    if name.startswith(HTTP) or (name.startswith(LANGCHAIN) and name != LANGCHAIN):
        return True
    raise ValueError(
        f"retriever {name!r}: expected {BM25!r}, 'http://HOST:PORT', 'langchain:package.module:"
        "object' or 'dense:MODEL'"
    )


def open_remote(name: str) -> Retriever:
    """Connect to a search engine that has its own corpus."""
    if name.startswith(HTTP):
        from envs.search.http import HttpRetriever

        return HttpRetriever(name)
    from envs.search.langchain import LangChainRetriever

    return LangChainRetriever.at(name.removeprefix(LANGCHAIN))


def open_local(name: str, documents: Sequence[Document], cache: Path | None) -> Retriever:
    """Index documents, or take the index that this process or the cache folder already has."""
    if name == BM25:
        from envs.search.bm25 import shared_bm25

        return shared_bm25(documents, cache)
    from envs.search.dense import shared_dense

    return shared_dense(documents, name.removeprefix(DENSE), cache)


def open_corpus(name: str, path: Path, cache: Path | None) -> Retriever:
    """Index a corpus file, which all environments of the process then share.

    Raises:
        DataError: the file is no corpus.
    """
    with _lock:
        state = path.stat() if path.exists() else None
        key = (name, path.resolve(), state and (state.st_mtime_ns, state.st_size), cache)
        retriever = _of_files.get(key)
        if retriever is None:
            retriever = _of_files[key] = open_local(name, read_corpus(path), cache)
        return retriever
