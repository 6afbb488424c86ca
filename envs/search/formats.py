"""Rows of published question-answering data: SQuAD, HotpotQA, 2Wiki, MuSiQue, Natural Questions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.data import text_field
from envs.search.documents import Document, text_key

Row = Mapping[str, Any]
FORMATS = ("squad", "hotpotqa", "2wiki", "musique", "nq")
_IDS = ("id", "_id", "example_id", "question_id")


@dataclass(frozen=True, slots=True)
class Question:
    """What a row holds: the documents that come with it, and which of them the answer needs."""

    format: str
    id: str | None
    text: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...] = ()
    gold: tuple[Document, ...] = ()


def read_question(row: Row) -> Question:
    """Read a row of any of `FORMATS`, told apart by their fields.

    Raises:
        KeyError, ValueError: the row has no such form, no answer, or fields of other types.
    """
    for signature, read in _READERS:
        if signature <= set(row):
            return read(row)
    raise ValueError(
        f"got the fields {', '.join(map(repr, list(row)[:12])) or 'none'}; expected a row of SQuAD "
        "(question, context, answers), HotpotQA or 2Wiki (question, answer, context, "
        "supporting_facts), MuSiQue (question, answer, paragraphs) or Natural Questions "
        "(question with answer, answers or golden_answers; or question_text, document_text, "
        "annotations)"
    )


def flatten(document: Mapping[str, Any]) -> Iterator[Any]:
    """The questions of SQuAD's `data[].paragraphs[].qas[]`, as rows with their paragraph.

    What has another form comes as it is, so that reading it names the reason.
    """
    articles = document["data"]
    for article in articles if isinstance(articles, list) else (articles,):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        for paragraph in paragraphs if isinstance(paragraphs, list) else (article,):
            qas = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(qas, list):
                yield paragraph
                continue
            shared = {"context": paragraph.get("context"), "title": article.get("title", "")}
            for qa in qas:
                yield {**shared, **qa} if isinstance(qa, dict) else qa


def _squad(row: Row) -> Question:
    given = row["answers"]
    texts = given.get("text") if isinstance(given, dict) else given
    if isinstance(given, list):
        texts = [each.get("text") if isinstance(each, dict) else each for each in given]
    if texts == [] or row.get("is_impossible"):
        raise ValueError("the question has no answer; expected one that its context answers")
    document = (_document(row.get("title"), text_field(row, "context")),)
    answers = _answers(texts, "answers")
    return Question("squad", _id(row), text_field(row, "question"), answers, document, document)


def _hotpot(row: Row) -> Question:
    context, facts = row["context"], row.get("supporting_facts") or []
    if isinstance(context, dict):  # the hub's columns instead of the file's pairs
        titled, sentences = _list(context["title"]), _list(context["sentences"])
        if len(titled) != len(sentences):
            raise ValueError(f"expected {len(titled)} lists of sentences, got {len(sentences)}")
        context = list(zip(titled, sentences, strict=True))
    needed = (
        _list(facts["title"]) if isinstance(facts, dict) else [_pair(f)[0] for f in _list(facts)]
    )
    documents = tuple(
        _document(title, "".join(_texts(sentences, "context")))
        for title, sentences in map(_pair, _list(context))
    )
    gold = tuple(document for document in documents if document.title in needed)
    name = "2wiki" if "evidences" in row else "hotpotqa"
    answers = (text_field(row, "answer"),)
    return Question(name, _id(row), text_field(row, "question"), answers, documents, gold)


def _musique(row: Row) -> Question:
    if row.get("answerable") is False:
        raise ValueError("the question is marked as not answerable; expected one with an answer")
    paragraphs = [_dict(paragraph, "paragraphs") for paragraph in _list(row["paragraphs"])]
    documents = [_document(p.get("title"), text_field(p, "paragraph_text")) for p in paragraphs]
    marked = zip(documents, paragraphs, strict=True)
    gold = tuple(document for document, paragraph in marked if paragraph.get("is_supporting"))
    aliases = _texts(row.get("answer_aliases") or (), "answer_aliases")
    answers = (text_field(row, "answer"), *aliases)
    question = text_field(row, "question")
    return Question("musique", _id(row), question, answers, tuple(documents), gold)


def _nq_passages(row: Row) -> Question:
    """Natural Questions as prepared for DPR: passages with and without the answer."""
    positive, negative, hard = (
        tuple(
            _document(passage.get("title"), text_field(passage, "text"))
            for passage in (_dict(each, name) for each in _list(row.get(name) or []))
        )
        for name in ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs")
    )
    answers = _answers(row["answers"], "answers")
    question = text_field(row, "question")
    return Question("nq", _id(row), question, answers, positive + negative + hard, positive)


def _nq_original(row: Row) -> Question:
    """Natural Questions' simplified files: answers are spans of the page's tokens."""
    tokens = text_field(row, "document_text").split(" ")
    answers: list[str] = []
    passages: list[Document] = []
    for annotation in (_dict(each, "annotations") for each in _list(row["annotations"])):
        spans = [_dict(s, "short_answers") for s in _list(annotation.get("short_answers") or [])]
        found = [_span(tokens, span) for span in spans]
        said = str(annotation.get("yes_no_answer", "NONE")).lower()
        found += [said] if said in ("yes", "no") else []
        if found:
            answers += found
            long = _span(tokens, _dict(annotation.get("long_answer"), "long_answer"))
            passages.append(_document(row.get("document_title"), long))
    answers = [answer for answer in dict.fromkeys(answers) if answer]
    if not answers:
        raise ValueError("the question has no short answer; expected one")
    gold = tuple({document.id: document for document in passages if document.text}.values())
    return Question("nq", _id(row), text_field(row, "question_text"), tuple(answers), gold, gold)


def _nq_open(row: Row) -> Question:
    """A question with its answers, the documents elsewhere: NQ-open and Search-R1's own files."""
    field = next(name for name in ("golden_answers", "answers", "answer") if name in row)
    given = row[field]
    answers = _answers([given] if isinstance(given, str) else given, field)
    return Question("nq", _id(row), text_field(row, "question"), answers)


_READERS: tuple[tuple[set[str], Callable[[Row], Question]], ...] = (
    ({"context", "answers"}, _squad),
    ({"context", "answer"}, _hotpot),
    ({"question", "paragraphs"}, _musique),
    ({"positive_ctxs"}, _nq_passages),
    ({"document_text", "annotations"}, _nq_original),
    ({"question", "golden_answers"}, _nq_open),
    ({"question", "answers"}, _nq_open),
    ({"question", "answer"}, _nq_open),
    ({"context"}, _squad),  # says what is missing
)


def _id(row: Row) -> str | None:
    found = next((row[name] for name in _IDS if row.get(name) is not None), None)
    if found is not None and not isinstance(found, str | int):
        raise ValueError(f"expected a text or a number as id, got {type(found).__name__}")
    return None if found is None else str(found)


def _document(title: Any, text: str) -> Document:
    title = "" if title is None else title
    if not isinstance(title, str):
        raise ValueError(f"expected a text as title, got {type(title).__name__}")
    return Document(text_key(text), title, text)


def _span(tokens: Sequence[str], span: Row) -> str:
    start, end = span["start_token"], span["end_token"]
    if type(start) is not int or type(end) is not int:
        raise ValueError("expected numbers in 'start_token' and 'end_token'")
    words = tokens[max(start, 0) : max(end, 0)]
    return " ".join(word for word in words if not (word.startswith("<") and word.endswith(">")))


def _answers(values: Any, field: str) -> tuple[str, ...]:
    texts = tuple(text for text in _texts(values, field) if text.strip())
    if not texts:
        raise ValueError(f"expected an answer in {field!r}, got none")
    return texts


def _texts(values: Any, field: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"expected a list of texts in {field!r}, got {str(values)[:60]}")
    return tuple(values)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {type(value).__name__}")
    return value


def _dict(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected JSON objects in {field!r}, got {type(value).__name__}")
    return value


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"expected a pair, such as [title, sentences], got {str(value)[:60]}")
    return value[0], value[1]
