"""Documents, and the corpus files that hold them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.data import DataError

_IDS = ("id", "_id", "docid")


@dataclass(frozen=True, slots=True)
class Document:
    """One entry of a corpus; the id is what an agent writes to open it."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a retriever found."""

    document: Document
    score: float


def text_key(text: str) -> str:
    """Names a text by its words, whatever corpus, id and spacing it comes with."""
    words = " ".join(text.split())
    return hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=6).hexdigest()


def document_of(fields: Mapping[str, Any]) -> Document:
    """A document from `text` with any `title`, or from `contents`, whose first line is the title.

    Without an id of its own it gets one from its text.

    Raises:
        ValueError: fields are missing or no texts.
    """
    title, text = fields.get("title") or "", fields.get("text")
    if text is None and isinstance(fields.get("contents"), str):
        title, text = split_contents(fields["contents"])
    if not isinstance(text, str) or not isinstance(title, str):
        raise ValueError(
            "expected a text in 'contents', or in 'text' with a 'title'; "
            f"got the fields {', '.join(map(repr, list(fields)[:10])) or 'none'}"
        )
    identity = next((fields[name] for name in _IDS if fields.get(name) is not None), None)
    if identity is not None and not isinstance(identity, str | int):
        raise ValueError(f"expected a text or a number as id, got {type(identity).__name__}")
    return Document(text_key(text) if identity is None else str(identity), title, text)


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of Search-R1's `contents`: a first line (often in quotes), and the rest."""
    first, newline, rest = contents.partition("\n")
    title = first.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return (title, rest) if newline else ("", contents)


def join_contents(document: Document) -> str:
    """The inverse of `split_contents`."""
    return f'"{" ".join(document.title.split())}"\n{document.text}'


def read_corpus(path: Path) -> tuple[Document, ...]:
    """Read a corpus of JSON lines, as `document_of` takes them.

    Raises:
        DataError: the file cannot be read, is empty, or has a line that is no document.
    """
    documents: dict[str, Document] = {}
    for number, line in _lines(path):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
            document = document_of(fields)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if document.id in documents:
            if documents[document.id] == document:
                continue
            raise DataError(f"{path}:{number}: the id {document.id[:80]!r} names two documents")
        documents[document.id] = document
    if not documents:
        raise DataError(f"{path}: no documents; expected one JSON object a line")
    return tuple(documents.values())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
