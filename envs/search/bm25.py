"""BM25 in this process, by bm25s."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from envs.search.cache import content_hash, keep
from envs.search.documents import Document, Hit
from envs.search.words import words

log = logging.getLogger(__name__)
FORMAT = "bm25 1"  # another number where words or parameters change: old indexes are left alone


class Bm25:
    """Documents and their index: Lucene's variant, k1 = 1.5, b = 0.75."""

    def __init__(self, documents: Sequence[Document], index: Any) -> None:
        self.documents = tuple(documents)
        self._index = index

    @classmethod
    def build(cls, documents: Sequence[Document]) -> "Bm25":
        """Index documents in memory.

        Raises:
            ValueError: there is no word in them.
        """
        return cls(documents, _build(documents))

    def search(self, queries: Sequence[str], k: int) -> tuple[tuple[Hit, ...], ...]:
        """Documents that share a word with the query; of equal ones the earlier is first."""
        return tuple(tuple(self._hits(query, k)) for query in queries)

    def _hits(self, query: str, k: int) -> list[Hit]:
        known = [word for word in words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores_D = self._index.get_scores(known)
        return [Hit(self.documents[i], float(scores_D[i])) for i in best(scores_D, k)]


def best(scores_D: np.ndarray[Any, Any], k: int) -> list[int]:
    """The places of the `k` highest scores above zero, the highest first, ties in order."""
    (places,) = np.nonzero(scores_D > 0)
    scores = scores_D[places]
    if len(places) > k:
        enough = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        places, scores = places[enough], scores[enough]
    order = np.lexsort((places, -scores))[:k]
    return [int(place) for place in places[order]]


_lock = Lock()
_shared: WeakValueDictionary[str, Bm25] = WeakValueDictionary()


def shared_bm25(documents: Sequence[Document], cache: Path | None) -> Bm25:
    """The index of these documents: this process's, that of the cache folder, or a new one."""
    import bm25s  # type: ignore[import-untyped] # ships no types; late: half a second

    key = content_hash(documents, FORMAT, str(bm25s.__version__))
    with _lock:
        found = _shared.get(key)
        if found is None:
            index = _build(documents) if cache is None else _cached(documents, cache / key)
            found = _shared[key] = Bm25(documents, index)
        return found


def _build(documents: Sequence[Document]) -> Any:
    import bm25s

    vocabulary: dict[str, int] = {}
    ids = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words(f"{d.title}\n{d.text}")]
        for d in documents
    ]
    if not vocabulary:
        raise ValueError(f"got {len(documents)} documents without a word; expected some text")
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    return index


def _cached(documents: Sequence[Document], folder: Path) -> Any:
    if folder.exists():
        try:
            return _load(folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            log.warning(f"the index in {folder} is broken and built again: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    index = _build(documents)
    if not keep(folder, lambda aside: index.save(str(aside), show_progress=False)):
        return index
    return _load(folder)  # in the page cache, which processes share, instead of our memory


def _load(folder: Path) -> Any:
    import bm25s

    return bm25s.BM25.load(str(folder), mmap=True, show_progress=False, verbosity=0)
