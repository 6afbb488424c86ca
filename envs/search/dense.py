"""Dense retrieval: documents and queries as vectors of a sentence-transformers model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from envs.search.cache import content_hash, keep
from envs.search.documents import Document, Hit, join_contents

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[list[str]], Any]
VECTORS = "vectors.npy"


class Dense:
    """Exact search by cosine: a product with all vectors, enough for some million documents."""

    def __init__(self, documents: Sequence[Document], vectors_DV: Vectors, encode: Encode) -> None:
        self.documents = tuple(documents)
        self._vectors_DV = vectors_DV
        self._encode = encode
        self._lock = Lock()  # a model on a device serves one thread at a time

    def search(self, queries: Sequence[str], k: int) -> tuple[tuple[Hit, ...], ...]:
        """The documents whose vectors are nearest."""
        if not queries:
            return ()
        with self._lock:
            queries_QV = unit_vectors(self._encode(list(queries)))
        return tuple(self._hits(self._vectors_DV @ query_V, k) for query_V in queries_QV)

    def _hits(self, scores_D: Vectors, k: int) -> tuple[Hit, ...]:
        order = np.argsort(-scores_D, kind="stable")[:k]
        return tuple(Hit(self.documents[int(i)], float(scores_D[i])) for i in order)


def unit_vectors(vectors: Any) -> Vectors:
    """Rows of length one, so that a product is a cosine."""
    rows: Vectors = np.asarray(vectors, dtype=np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def dense(
    documents: Sequence[Document],
    encode_documents: Encode,
    encode_queries: Encode,
    folder: Path | None = None,
) -> Dense:
    """Encode documents, or read their vectors where `folder` already has them."""
    if folder is not None and (folder / VECTORS).exists():
        return Dense(documents, np.load(folder / VECTORS, mmap_mode="r"), encode_queries)
    vectors_DV = unit_vectors(encode_documents([join_contents(d) for d in documents]))
    if folder is not None:
        keep(folder, lambda aside: np.save(aside / VECTORS, vectors_DV))
    return Dense(documents, vectors_DV, encode_queries)


_lock = Lock()
_shared: WeakValueDictionary[str, Dense] = WeakValueDictionary()


def shared_dense(documents: Sequence[Document], model_name: str, cache: Path | None) -> Dense:
    """The vectors of these documents by this model, once in a process and in the cache.

    Raises:
        ValueError: sentence-transformers is not installed, or there is no such model.
    """
    key = content_hash(documents, "dense 1", model_name)
    with _lock:
        found = _shared.get(key)
        if found is None:
            model = _model(model_name)
            folder = None if cache is None else cache / key
            found = dense(documents, model.encode_document, model.encode_query, folder)
            _shared[key] = found
        return found


def _model(name: str) -> Any:
    try:
        # Neither a dependency nor typed: the extra `dense`.
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(f"retriever dense:{name} needs pip install 'mopd[dense]'") from error
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"retriever dense:{name}: expected a folder or hub name of a sentence-transformers "
            f"model: {str(error)[:300]}"
        ) from error
