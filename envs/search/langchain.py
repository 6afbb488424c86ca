"""Any LangChain retriever as ours, and so any search engine that LangChain knows."""

import importlib
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever

from envs.search.documents import Document, Hit, text_key
from envs.tools import WorldError


class LangChainRetriever:
    """Asks a LangChain retriever; how many documents it finds is its own setting."""

    def __init__(self, retriever: BaseRetriever) -> None:
        self._retriever = retriever

    @classmethod
    def at(cls, address: str) -> "LangChainRetriever":
        """The retriever, or the function that makes it, at `package.module:object`.

        Raises:
            ValueError: there is no such thing.
        """
        module_name, _, name = address.partition(":")
        expected = "expected package.module:object, a LangChain retriever or what makes one"
        if not (module_name and name):
            raise ValueError(f"retriever langchain:{address}: {expected}")
        try:
            found = importlib.import_module(module_name)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"retriever langchain:{address}: {error}; {expected}") from error
        made: Any = found if isinstance(found, BaseRetriever) or not callable(found) else found()
        if not isinstance(made, BaseRetriever):
            raise ValueError(f"retriever langchain:{address} is {type(made).__name__}; {expected}")
        return cls(made)

    def search(self, queries: Sequence[str], k: int) -> tuple[tuple[Hit, ...], ...]:
        """Let the retriever search for each query.

        Raises:
            WorldError: it failed.
        """
        try:
            found = self._retriever.batch(list(queries))
        except Exception as error:  # a search engine's client may raise anything
            raise WorldError(
                f"the retriever {type(self._retriever).__name__} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        return tuple(tuple(map(_hit, documents[:k])) for documents in found)


def _hit(found: LangChainDocument) -> Hit:
    text, data = found.page_content, found.metadata
    identity = found.id or data.get("id") or text_key(text)
    title = data.get("title") or data.get("source") or ""
    score = data.get("score", data.get("relevance_score"))
    score = float(score) if isinstance(score, int | float) else 0.0
    return Hit(Document(str(identity), str(title), text), score)
