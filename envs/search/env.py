"""`SearchEnv`: questions whose answers have to be found in documents."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from langchain_core.tools import BaseTool, StructuredTool, ToolException

from envs.base import ToolEnv
from envs.data import Rejected
from envs.grading.text_match import CLOSE, OPEN, comparable, grade_text
from envs.search import formats, questions
from envs.search.bm25 import Bm25
from envs.search.cache import cache_folder
from envs.search.documents import Document, text_key
from envs.search.retriever import (
    BM25,
    Retriever,
    is_remote,
    open_corpus,
    open_local,
    open_remote,
)
from envs.search.words import snippet
from envs.search.world import RELATIONS, build_world
from envs.tasks import stable_seed
from envs.types import Message, Task, ToolCall, Verdict

MAX_K = 10
MAX_QUERY_CHARS = 1000
MAX_TITLE_CHARS = 80


class SearchEnv(ToolEnv):
    """Questions over documents, procedural or from files.

    Task:
        A question of `level` (1 to 4) hops about an invented world of 36 documents, another one
        in each task; or rows of SQuAD, HotpotQA, 2WikiMultihopQA, MuSiQue or Natural Questions.
        These are searched in `corpus` (JSON lines), else in all documents of the rows' file,
        else by a `retriever` that has its own corpus: an address `http://...` in Search-R1's
        wire format, or `langchain:package.module:object`.
    Tools:
        `search(query, k)`: ids, titles and the best sentence of at most `k` documents.
        `open(id)`: the whole of a document that a search has shown.
    Reward:
        1 where what stands in the last `<answer></answer>`, or else the whole message, equals an
        accepted answer after SQuAD's normalisation, else 0. Parts: `f1`, and `recall`, the share
        of the needed documents that searches of this episode have shown.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = (
        "Answer the question. Use search and open. Give the answer in <answer></answer>."
    )
    levels = questions.LEVELS
    default_level = 2
    needs_data = True
    formats = formats.FORMATS

    def __init__(
        self,
        *,
        corpus: str | Path | None = None,
        retriever: str = BM25,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        self._retriever_name = retriever
        self._cache = cache_folder(cache_dir)
        self._documents: dict[str, Document] = {}  # those of rows, by id
        self._indexed = 0  # how many of them the index knows
        self._index: Retriever | None = None
        self._outside = self._open_outside(corpus, options.get("data"))
        self._shown: dict[str, Document] = {}
        super().__init__(**options)
        if self.rows is not None:
            self._retriever()  # what is wrong with it shows here, not in the first search

    def _open_outside(self, corpus: str | Path | None, data: object) -> Retriever | None:
        """The retriever whose documents are not those of the tasks."""
        remote = is_remote(self._retriever_name)
        if data is None and (remote or corpus is not None or self._retriever_name != BM25):
            raise ValueError(
                "env.corpus and env.retriever are for questions of a file: set env.data too "
                "(a generated world is its own corpus, searched by bm25)"
            )
        if remote and corpus is not None:
            raise ValueError(
                f"env.retriever={self._retriever_name!r} has its own corpus: leave out env.corpus"
            )
        if remote:
            return open_remote(self._retriever_name)
        if corpus is not None:
            return open_corpus(self._retriever_name, Path(corpus), self._cache)
        return None

    def _read(self, data: str | Path, strict: bool) -> None:
        """Read a file once for all environments of this process that are given it."""
        place = Path(data)
        changed = place.stat().st_mtime_ns if place.is_file() else 0
        key = (str(data), changed, strict, self._retriever_name, self._outside is None)
        with _reading:
            if key not in _read_files:
                super()._read(data, strict)
                while len(_read_files) >= _FILES_KEPT:
                    del _read_files[next(iter(_read_files))]
                index = self._outside or (self._own_index() if self._documents else None)
                _read_files[key] = _File(
                    self.rows or (), self.rejected, self._documents, index, self._indexed
                )
        self.rows, self.rejected, self._documents, index, self._indexed = _read_files[key]
        self._index = index

    # Tools.

    def make_tools(self) -> Sequence[BaseTool]:
        """Both keep what they have shown in the episode."""
        return (
            StructuredTool.from_function(self.search),
            StructuredTool.from_function(self.open, name="open"),
        )

    def search(self, query: str, k: int = 3) -> str:
        """Search the documents."""
        if not 1 <= k <= MAX_K:
            raise ToolException(f"k is {str(k)[:20]}; expected 1 to {MAX_K}")
        if len(query) > MAX_QUERY_CHARS:
            raise ToolException(
                f"the query has {len(query)} characters; at most {MAX_QUERY_CHARS} are allowed"
            )
        # Half a surrogate pair has no form in which it could travel.
        query = query.encode("utf-8", "replace").decode("utf-8")
        (hits,) = self._retriever().search((query,), k)
        if not hits:
            return f"No document matches {query!r}. Search for other words, such as a name."
        self._shown.update((hit.document.id, hit.document) for hit in hits)
        return "\n".join(_line(hit.document, query) for hit in hits)

    def open(self, id: str) -> str:
        """Read a document that a search has shown."""
        document = self._shown.get(id.strip())
        if document is None:
            known = ", ".join(list(self._shown)[-MAX_K:])
            cure = f"Shown so far: {known}." if known else "Search first."
            raise ToolException(f"no search has shown a document {id[:40]!r}. {cure}")
        return f"{document.title}\n{document.text}" if document.title else document.text

    # Episodes.

    def start_episode(self, task: Task) -> None:
        """Nothing has been shown yet."""
        self._shown = {}
        if task.payload["kind"] != "world" and self._outside is None and not self._documents:
            raise ValueError(f"task {task.id} has no documents here: set env.data or env.corpus")

    def grade(self, task: Task, answer: Message) -> Verdict:
        """Compare with the accepted answers, and count the needed documents that were shown."""
        verdict = grade_text(answer.content, task.payload["answers"])
        gold = set(task.payload.get("gold", ()))
        if not gold:
            return verdict
        found = gold & {text_key(document.text) for document in self._shown.values()}
        told = f"{len(found)} of {len(gold)} needed documents were found."
        parts = {**verdict.parts, "recall": len(found) / len(gold)}
        return Verdict(verdict.reward, verdict.success, f"{verdict.feedback} {told}", parts)

    def _retriever(self) -> Retriever:
        """Where the current task is searched."""
        task = self.current_task
        if task is not None and task.payload.get("kind") == "world":
            return _world_index(task.seed, task.payload["held_out"])
        if self._outside is not None:
            return self._outside
        return self._own_index()

    def _own_index(self) -> Retriever:
        """The rows' own documents; a row that was read since joins them."""
        if self._index is None or self._indexed != len(self._documents):
            documents = tuple(self._documents.values())
            self._index = open_local(self._retriever_name, documents, self._cache)
            self._indexed = len(documents)
        return self._index

    # Tasks.

    def generate_task(self, rng: random.Random) -> Task:
        """A question about a world of its own."""
        return questions.generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """Any of `formats`; the documents of the row join those of the rows before."""
        question = formats.read_question(row)
        if self._outside is None and not question.documents:
            raise ValueError(
                "the row has no documents; set env.corpus to a file of them, or env.retriever to "
                "a search engine"
            )
        if self._outside is None:
            self._documents.update((d.id, d) for d in question.documents)
        payload = {
            "kind": question.format,
            "answers": question.answers,
            "gold": tuple(dict.fromkeys(text_key(d.text) for d in question.gold)),
        }
        identity = question.id or f"{stable_seed(question.text, *question.answers) % 16**12:012x}"
        return Task(identity, question.text.strip(), question.answers[0], payload)

    @classmethod
    def rows_of(cls, document: Any) -> Iterable[Any]:
        """SQuAD's nested documents question by question."""
        if isinstance(document, dict) and "data" in document:
            return formats.flatten(document)
        return super().rows_of(document)

    def solution(self, task: Task) -> tuple[Message, ...]:
        """A search for each hop, or for the question itself, and the answer."""
        return _episode(_queries(task), task.answer)

    def corrupted(self, task: Task, rng: random.Random) -> tuple[Message, ...]:
        """The same searches, and an answer that is easily taken for the right one."""
        accepted = {comparable(answer) for answer in task.payload["answers"]}
        for wrong in self._wrong(task, rng):
            if comparable(wrong) not in accepted:
                return _episode(_queries(task), wrong)
        return _episode(_queries(task), f"{task.answer} {task.answer}?")

    def _wrong(self, task: Task, rng: random.Random) -> Iterable[str]:
        if task.payload["kind"] != "world":
            return (self.task(rng.randrange(2**31)).answer for _ in range(20))
        world = build_world(task.seed, task.payload["held_out"])
        before, answer = task.payload["entities"][-2:]
        last = questions.PHRASES[task.payload["phrases"][-1]].relation
        rival = RELATIONS[last].rival
        if rival is not None:
            return (world.facts[before, rival],)
        alike = [name for name, kind in world.kinds.items() if kind == world.kinds[answer]]
        return rng.sample(alike, len(alike))


class _File(NamedTuple):
    """What a file of questions holds."""

    rows: tuple[Task, ...]
    rejected: tuple[Rejected, ...]
    documents: dict[str, Document]
    retriever: Retriever | None  # kept, because to find it again takes a hash of all documents
    indexed: int  # how many of the documents it knows


_FILES_KEPT = 4  # the training and the held-out tasks of a run, and then some
_read_files: dict[tuple[object, ...], _File] = {}
_reading = Lock()


@lru_cache(maxsize=256)  # the rollouts of a group, and those beside it, search the same world
def _world_index(seed: int, held: bool) -> Bm25:
    return Bm25.build(tuple(build_world(seed, held).documents.values()))


def _line(document: Document, query: str) -> str:
    title = " ".join(document.title.split())[:MAX_TITLE_CHARS]
    shown = snippet(document.text, document.title, query)
    return f"{document.id} {title}: {shown}" if title else f"{document.id}: {shown}"


def _queries(task: Task) -> tuple[str, ...]:
    if task.payload["kind"] != "world":
        return (task.prompt[:MAX_QUERY_CHARS],)
    relations = (questions.PHRASES[text].relation for text in task.payload["phrases"])
    return tuple(map(questions.query, task.payload["entities"], relations))


def _episode(queries: Sequence[str], answer: str) -> tuple[Message, ...]:
    calls = (
        ToolCall(f"call_{i}", "search", json.dumps({"query": query}, ensure_ascii=False))
        for i, query in enumerate(queries)
    )
    turns = (Message("assistant", "", (call,)) for call in calls)
    return (*turns, Message("assistant", f"{OPEN}{answer}{CLOSE}"))
