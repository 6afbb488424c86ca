"""What of a text counts in a search: its words, and the sentence that fits a query best."""

import re

MAX_SNIPPET_CHARS = 160
# Lucene's list for English: words that say nothing and would cost most of the time.
_LISTED = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
STOP_WORDS = frozenset(_LISTED.split())
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def words(text: str) -> list[str]:
    """The words of a text in small letters, without the stop words."""
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def snippet(text: str, title: str, query: str) -> str:
    """The sentence with most words of the query, those of the title aside; else the first."""
    sought = set(words(query)) - set(words(title))
    sentences = _SENTENCE_END.split(text.strip())
    best = max(sentences, key=lambda sentence: len(sought.intersection(words(sentence))))
    return _around(best, sought)


def _around(sentence: str, sought: set[str]) -> str:
    """The sentence on one line, cut to `MAX_SNIPPET_CHARS` around the first word sought."""
    line = " ".join(sentence.split())
    if len(line) <= MAX_SNIPPET_CHARS:
        return line
    places = (m.start() for m in _WORD.finditer(line) if m.group().lower() in sought)
    start = max(next(places, 0) - MAX_SNIPPET_CHARS // 3, 0)
    end = start + MAX_SNIPPET_CHARS
    return f"{'...' if start else ''}{line[start:end]}{'...' if end < len(line) else ''}"
