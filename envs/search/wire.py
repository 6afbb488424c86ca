"""Search-R1's wire format: `POST /retrieve {queries, topk, return_scores}` and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.search.documents import Hit, document_of, join_contents

PATH = "/retrieve"
MAX_QUERIES = 4096  # Search-R1 sends those of a whole batch of rollouts in one request
MAX_QUERY_CHARS = 4000
MAX_TOPK = 100


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for; without `topk` the server decides."""

    queries: tuple[str, ...]
    topk: int | None = None
    return_scores: bool = False


def request_to_wire(request: Request) -> dict[str, Any]:
    """The request as JSON types."""
    return {
        "queries": list(request.queries),
        "topk": request.topk,
        "return_scores": request.return_scores,
    }


def request_from_wire(body: Any) -> Request:
    """The request of a JSON body; unknown fields are left alone, a `topk` of 0 is none.

    Raises:
        ValueError: it is no such request; the text says what was expected.
    """
    if not isinstance(body, dict):
        raise ValueError(f"expected a JSON object with 'queries', got {_kind(body)}")
    queries, topk, scores = body.get("queries"), body.get("topk"), body.get("return_scores")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise ValueError(f"'queries': expected a list of texts, got {_kind(queries)}")
    if len(queries) > MAX_QUERIES:
        raise ValueError(f"'queries': expected at most {MAX_QUERIES}, got {len(queries)}")
    longest = max(map(len, queries), default=0)
    if longest > MAX_QUERY_CHARS:
        raise ValueError(
            f"'queries': expected at most {MAX_QUERY_CHARS} characters in each, got {longest}"
        )
    if topk is not None and (type(topk) is not int or not 0 <= topk <= MAX_TOPK):
        raise ValueError(f"'topk': expected a number from 1 to {MAX_TOPK}, got {str(topk)[:20]}")
    if scores is not None and not isinstance(scores, bool):
        raise ValueError(f"'return_scores': expected true or false, got {str(scores)[:20]}")
    return Request(tuple(queries), topk or None, bool(scores))


def hits_to_wire(found: Sequence[Sequence[Hit]], return_scores: bool) -> dict[str, Any]:
    """The answer: for each query its documents, each beside its score if that was asked for."""
    return {"result": [[_item(hit, return_scores) for hit in hits] for hits in found]}


def hits_from_wire(body: Any, queries: int) -> tuple[tuple[Hit, ...], ...]:
    """The hits of an answer to so many queries.

    Raises:
        ValueError: it is no such answer; the text says what was expected.
    """
    result = body.get("result") if isinstance(body, dict) else None
    if not isinstance(result, list) or not all(isinstance(hits, list) for hits in result):
        raise ValueError(
            f"expected {{'result': [[...], ...]}}, got {_kind(body)} with 'result' {_kind(result)}"
        )
    if len(result) != queries:
        raise ValueError(f"expected results of {queries} queries, got {len(result)}")
    return tuple(tuple(map(_hit, hits)) for hits in result)


def _item(hit: Hit, return_scores: bool) -> dict[str, Any]:
    document = {
        "id": hit.document.id,
        "title": hit.document.title,
        "text": hit.document.text,
        "contents": join_contents(hit.document),
    }
    return {"document": document, "score": hit.score} if return_scores else document


def _hit(item: Any) -> Hit:
    scored = isinstance(item, dict) and "document" in item
    fields = item["document"] if scored else item
    if isinstance(fields, str):  # rerankers answer with the contents alone
        fields = {"contents": fields}
    if not isinstance(fields, dict):
        raise ValueError(f"expected a document as a JSON object, got {_kind(fields)}")
    score = item.get("score", 0.0) if scored else 0.0
    try:
        return Hit(document_of(fields), float(score))
    except TypeError as error:
        raise ValueError(f"expected a number as score, got {_kind(score)}") from error


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
