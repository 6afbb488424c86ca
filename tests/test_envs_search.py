"""The search environment: its worlds and questions, data formats, tools, retrievers."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from rank_bm25 import BM25Okapi
from sklearn.feature_extraction.text import HashingVectorizer

from envs.data import DataError
from envs.search import SearchEnv, bm25, questions
from envs.search.bm25 import Bm25, best, shared_bm25
from envs.search.cache import cache_folder, content_hash
from envs.search.dense import dense
from envs.search.documents import Document, document_of, read_corpus, text_key
from envs.search.formats import flatten, read_question
from envs.search.langchain import LangChainRetriever
from envs.search.retriever import open_corpus
from envs.search.words import MAX_SNIPPET_CHARS, snippet, words
from envs.search.world import RELATIONS, SIZES, build_world
from envs.tools import WorldError
from envs.types import Message, Task, ToolCall

Row = dict[str, Any]
TOWNS = (
    Document("oslo", "Oslo", "Oslo is the capital of Norway. It lies on a fjord."),
    Document("bergen", "Bergen", "Bergen is a rainy town in Norway. It has a famous market."),
    Document("lima", "Lima", "Lima is the capital of Peru."),
)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def call(name: str, **arguments: Any) -> Message:
    return Message("assistant", "", (ToolCall("c", name, json.dumps(arguments)),))


def act(env: SearchEnv, name: str, **arguments: Any) -> str:
    return env.step(call(name, **arguments))[0][0].content


def play(env: SearchEnv, task: Task, messages: Sequence[Message]) -> list[str]:
    env.reset(options={"task": task})
    seen = [env.step(message)[0] for message in messages]
    return [m.content for observation in seen for m in observation]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Worlds and questions.


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_one_search_a_hop_shows_the_way_to_the_answer(level: int, split: Any) -> None:
    env = SearchEnv(level=level, split=split)
    for seed in range(60):
        task = env.task(seed)
        assert len(task.payload["phrases"]) == level
        solution = env.solution(task)
        assert len(solution) == level + 1
        shown = play(env, task, solution)
        for name, nearer in zip(
            task.payload["entities"], task.payload["entities"][1:], strict=False
        ):
            (line,) = [
                x for x in "\n".join(shown).split("\n") if f" {name}: " in x and nearer in x
            ][:1]
            assert len(line) < 100
        assert env.verdict is not None
        assert env.verdict.success
        assert env.verdict.parts == {"f1": 1.0, "recall": 1.0}
        play(env, task, env.corrupted(task, random.Random(seed)))
        assert env.verdict.reward == 0.0


def test_the_splits_share_no_name_and_no_longer_sequence_of_phrases() -> None:
    for level in (1, 2, 3, 4):
        train, held = (
            list(map(SearchEnv(level=level, split=split).task, range(200)))
            for split in ("train", "held_out")
        )

        def names(tasks: Sequence[Task]) -> set[str]:
            return {
                name
                for task in tasks
                for name in build_world(task.seed, task.payload["held_out"]).kinds
            }

        assert not names(train) & names(held)
        if level > 1:
            families = [{t.payload["phrases"] for t in tasks} for tasks in (train, held)]
            assert not families[0] & families[1]


def test_a_world_follows_from_its_seed_and_states_each_fact_once() -> None:
    build_world.cache_clear()
    once = build_world(7, False)
    build_world.cache_clear()
    assert build_world(7, False) == once
    assert build_world(8, False) != once
    assert Counter(once.kinds.values()) == SIZES
    assert len({d.id for d in once.documents.values()}) == len(once.documents)
    for (name, relation), value in once.facts.items():
        fact = RELATIONS[relation].fact.format(value)
        assert once.documents[name].text.count(fact) == 1
        assert once.kinds[value] == RELATIONS[relation].object
        rival = RELATIONS[relation].rival
        assert rival is None or once.facts[name, rival] != value


def test_each_phrase_has_one_meaning_and_a_tricky_one_names_its_rival() -> None:
    assert len(questions.PHRASES) == len(questions.PLAIN) + len(questions.TRICKY)
    plain = {name: [p for p in questions.PLAIN if p.relation == name] for name in RELATIONS}
    assert all(len(phrases) == 2 for phrases in plain.values())
    for phrase in questions.TRICKY:
        rival = RELATIONS[phrase.relation].rival
        assert rival is not None
        assert set(words(phrase.text)) & {w for p in plain[rival] for w in words(p.text)}, phrase


def test_tricky_phrases_come_with_the_level() -> None:
    tricky = {phrase.text for phrase in questions.TRICKY}
    for level, (fewest, most) in questions.TRICKY_BY_LEVEL.items():
        env = SearchEnv(level=level)
        counts = {len(tricky & set(env.task(seed).payload["phrases"])) for seed in range(100)}
        assert counts == set(range(fewest, most + 1))


def test_a_generated_question_says_nothing_of_its_answer() -> None:
    env = SearchEnv(level=3)
    for seed in range(50):
        task = env.task(seed)
        assert all(name not in task.prompt for name in task.payload["entities"][1:])
        assert task.payload["entities"][0] in task.prompt


# Tools.


@pytest.fixture
def env() -> Iterator[SearchEnv]:
    env = SearchEnv(level=1)
    env.reset(seed=0)
    yield env
    env.close()


def test_search_shows_a_line_for_each_document_and_open_all_of_it(env: SearchEnv) -> None:
    assert env.current_task is not None
    name = env.current_task.payload["entities"][0]
    lines = act(env, "search", query=name, k=2).split("\n")
    assert len(lines) == 2
    identity = lines[0].split()[0]
    assert lines[0].startswith(f"{identity} {name}: ")
    document = build_world(env.current_task.seed, False).documents[name]
    assert act(env, "open", id=f" {identity} ") == f"{name}\n{document.text}"


def test_open_knows_only_what_a_search_of_the_episode_has_shown(env: SearchEnv) -> None:
    assert act(env, "open", id="d1") == "Error: no search has shown a document 'd1'. Search first."
    assert env.current_task is not None
    found = act(env, "search", query=env.current_task.payload["entities"][0], k=1).split()[0]
    assert act(env, "open", id="nothing" * 99).endswith(f"Shown so far: {found}.")
    assert not act(env, "open", id=found).startswith("Error")
    env.reset(seed=0)
    assert "Search first" in act(env, "open", id=found)


@pytest.mark.parametrize(
    ("arguments", "observation"),
    [
        ({"query": "x", "k": 0}, "Error: k is 0; expected 1 to 10"),
        ({"query": "x", "k": -(10**40)}, "expected 1 to 10"),
        ({"query": "x", "k": 11}, "Error: k is 11; expected 1 to 10"),
        ({"query": "x" * 1001}, "Error: the query has 1001 characters; at most 1000 are allowed"),
        ({"query": ""}, "No document matches ''. Search for other words, such as a name."),
        ({"query": "the of and"}, "No document matches"),
        ({"query": "\ud800"}, "No document matches '?'"),
        ({"query": "x", "k": "many"}, "Expected search(query: string, k: integer)"),
    ],
)
def test_a_search_that_finds_nothing_or_cannot_be_says_the_cure(
    env: SearchEnv, arguments: Row, observation: str
) -> None:
    assert observation in act(env, "search", **arguments)


def test_recall_counts_the_needed_documents_that_were_shown() -> None:
    env = SearchEnv(level=4)
    task = env.task(0)
    solution = env.solution(task)
    play(env, task, (solution[0], solution[-1]))
    assert env.verdict is not None
    assert env.verdict.success
    assert 0 < env.verdict.parts["recall"] < 1
    assert "of 4 needed documents" in env.verdict.feedback
    play(env, task, solution[-1:])
    assert env.verdict.parts["recall"] == 0.0


# Data formats.

SENTENCES = {"A": ["Ann is a cook. ", "Ann lives in Bern."], "B": ["Bern is in Switzerland."]}
HOTPOT: Row = {
    "_id": "h1",
    "question": "In which country does Ann live?",
    "answer": "Switzerland",
    "supporting_facts": [["A", 1], ["B", 0]],
    "context": [*map(list, SENTENCES.items()), ["C", ["Cats sleep."]]],
}
HOTPOT_HUB = HOTPOT | {
    "id": "h2",
    "supporting_facts": {"title": ["A", "B"], "sent_id": [1, 0]},
    "context": {
        "title": [*SENTENCES, "C"],
        "sentences": [*SENTENCES.values(), ["Cats sleep."]],
    },
}
MUSIQUE: Row = {
    "id": "2hop__1",
    "question": "In which country does Ann live?",
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "Ann lives in Bern.", "is_supporting": True},
        {"idx": 1, "title": "C", "paragraph_text": "Cats sleep.", "is_supporting": False},
        {"idx": 2, "title": "B", "paragraph_text": "Bern is Swiss.", "is_supporting": True},
    ],
    "answer": "Switzerland",
    "answer_aliases": ["CH"],
    "answerable": True,
}
SQUAD: Row = {
    "id": "s1",
    "title": "Bern",
    "context": "Ann lives in Bern.",
    "question": "Where does Ann live?",
    "answers": [{"text": "Bern", "answer_start": 13}, {"text": "in Bern", "answer_start": 10}],
}
NQ_DPR: Row = {
    "question": "where does ann live",
    "answers": ["Bern"],
    "positive_ctxs": [{"title": "Ann", "text": "Ann lives in Bern.", "passage_id": "1"}],
    "negative_ctxs": [],
    "hard_negative_ctxs": [{"title": "Bob", "text": "Bob lives in Basel."}],
}
NQ_ORIGINAL: Row = {
    "example_id": 17,
    "question_text": "where does ann live",
    "document_text": "<H1> Ann </H1> <P> Ann lives in Bern . </P>",
    "annotations": [
        {
            "yes_no_answer": "NONE",
            "long_answer": {"start_token": 3, "end_token": 10},
            "short_answers": [{"start_token": 7, "end_token": 8}],
        }
    ],
}
FORMATS = {
    "squad": (SQUAD, ("Bern", "in Bern"), 1, 1),
    "squad_hub": (SQUAD | {"answers": {"text": ["Bern"], "answer_start": [13]}}, ("Bern",), 1, 1),
    "hotpotqa": (HOTPOT, ("Switzerland",), 3, 2),
    "hotpotqa_hub": (HOTPOT_HUB, ("Switzerland",), 3, 2),
    "2wiki": (HOTPOT | {"evidences": []}, ("Switzerland",), 3, 2),
    "musique": (MUSIQUE, ("Switzerland", "CH"), 3, 2),
    "nq_dpr": (NQ_DPR, ("Bern",), 2, 1),
    "nq_original": (NQ_ORIGINAL, ("Bern",), 1, 1),
    "nq_open": ({"question": "q", "answer": ["Bern", "B."]}, ("Bern", "B."), 0, 0),
    "nq_search_r1": ({"id": "t_0", "question": "q", "golden_answers": ["B"]}, ("B",), 0, 0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_published_format_is_read(name: str) -> None:
    row, answers, documents, gold = FORMATS[name]
    question = read_question(row)
    assert question.format == name.partition("_")[0]
    assert question.answers == answers
    assert (len(question.documents), len(question.gold)) == (documents, gold)
    assert question.text
    if name == "nq_original":
        assert question.gold[0].text == "Ann lives in Bern ."
        assert question.id == "17"


@pytest.mark.parametrize("name", [name for name, case in FORMATS.items() if case[2]])
def test_a_file_of_each_format_is_played(name: str, tmp_path: Path) -> None:
    row = FORMATS[name][0]
    other = {"question": "q2", "answers": [{"text": "Rome"}], "context": "All roads.", "id": "o"}
    env = SearchEnv(data=write(tmp_path / "rows.jsonl", row, other))
    assert env.rows is not None
    assert [t.payload["kind"] for t in env.rows] == [name.partition("_")[0], "squad"]
    for task in env.rows:
        play(env, task, env.solution(task))
        assert env.verdict is not None
        assert env.verdict.success
        play(env, task, env.corrupted(task, random.Random(0)))
        assert not env.verdict.success


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "got the fields none; expected a row of SQuAD"),
        ({"question": "q"}, "expected a row of SQuAD"),
        (SQUAD | {"answers": []}, "has no answer"),
        (SQUAD | {"is_impossible": True}, "has no answer"),
        (SQUAD | {"answers": [{"text": " "}]}, "expected an answer in 'answers'"),
        (SQUAD | {"answers": [3]}, "list of texts in 'answers'"),
        (SQUAD | {"answers": None}, "list of texts in 'answers'"),
        ({"context": "x"}, "'answers' is missing"),
        (SQUAD | {"context": ["x"]}, "expected a text in 'context'"),
        (SQUAD | {"title": 3}, "expected a text as title"),
        (SQUAD | {"id": [3]}, "a text or a number as id"),
        (HOTPOT | {"context": "x"}, "expected a list"),
        (HOTPOT | {"context": [["A"]]}, "expected a pair"),
        (HOTPOT | {"context": [["A", "text"]]}, "list of texts in 'context'"),
        (
            HOTPOT | {"context": {"title": ["A"], "sentences": []}},
            "expected 1 lists of sentences, got 0",
        ),
        (HOTPOT | {"context": {"title": None, "sentences": []}}, "expected a list, got NoneType"),
        (HOTPOT | {"supporting_facts": [1]}, "expected a pair"),
        (HOTPOT | {"answer": 3}, "expected a text in 'answer'"),
        (MUSIQUE | {"answerable": False}, "not answerable"),
        (MUSIQUE | {"paragraphs": [3]}, "JSON objects in 'paragraphs'"),
        (NQ_DPR | {"positive_ctxs": {"a": 1}}, "expected a list"),
        (NQ_DPR | {"answers": "Bern"}, "list of texts in 'answers'"),
        (NQ_ORIGINAL | {"annotations": []}, "no short answer"),
        (NQ_ORIGINAL | {"annotations": [{"short_answers": [{}]}]}, "start_token"),
        ({"question": "q", "answer": []}, "expected an answer in 'answer'"),
        ({"question": "q", "answers": ["a"]}, "set env.corpus"),
    ],
)
def test_a_row_that_is_no_question_says_why(row: Row, reason: str, tmp_path: Path) -> None:
    env = SearchEnv(data=write(tmp_path / "rows.jsonl", row, SQUAD | {"id": "good"}))
    assert env.rows is not None
    assert [task.id for task in env.rows] == ["good"]
    (rejected,) = env.rejected
    assert reason in rejected.reason


def test_squads_nested_documents_lose_only_what_is_broken(tmp_path: Path) -> None:
    qa = {key: SQUAD[key] for key in ("id", "question", "answers")}
    document = {
        "version": 1,
        "data": [
            {"title": "T", "paragraphs": [{"context": "c", "qas": [qa, 3, {"id": "x"}]}]},
            {"title": "T", "paragraphs": [{"context": "c"}, "text"]},
            {"title": "T"},
            17,
        ],
    }
    assert len(list(flatten(document))) == 7
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(document))
    env = SearchEnv(data=path)
    assert env.rows is not None
    assert [task.id for task in env.rows] == ["s1"]
    assert len(env.rejected) == 6
    assert "'answers' is missing" in env.rejected[1].reason


def test_every_question_of_xquad_is_solved_by_its_gold_answer(shared_data: Path) -> None:
    env = SearchEnv(data=shared_data / "xquad/en_dev.json")
    assert env.rows is not None
    assert not env.rejected
    assert len(env.rows) > 600
    for task in env.rows[::20]:
        shown = play(env, task, env.solution(task))
        assert all(len(line) < 2 * MAX_SNIPPET_CHARS for line in shown[0].split("\n"))
        assert env.verdict is not None
        assert env.verdict.success
        play(env, task, env.corrupted(task, random.Random(0)))
        assert not env.verdict.success


# Corpora.


def test_a_corpus_file_is_searched_for_questions_without_documents(tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "corpus.jsonl",
        {"id": "1", "contents": '"Oslo"\nOslo is the capital of Norway.'},
        {"_id": 2, "title": "Lima", "text": "Lima is the capital of Peru."},
        {"text": "A text without a name."},
    )
    rows = write(tmp_path / "rows.jsonl", {"question": "The capital of Peru?", "answer": ["Lima"]})
    env = SearchEnv(data=rows, corpus=corpus)
    task = env.task(0)
    env.reset(options={"task": task})
    assert act(env, "search", query="Norway", k=1) == "1 Oslo: Oslo is the capital of Norway."
    assert act(env, "open", id="1") == "Oslo\nOslo is the capital of Norway."
    unnamed = act(env, "search", query="name")
    assert unnamed == f"{text_key('A text without a name.')}: A text without a name."
    env.step(Message("assistant", "Lima"))
    assert env.verdict is not None
    assert env.verdict.success
    assert set(env.verdict.parts) == {"f1"}


def test_environments_of_a_process_share_one_index(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", *({"id": d.id, "text": d.text} for d in TOWNS))
    assert open_corpus("bm25", corpus, None) is open_corpus("bm25", corpus, None)
    with ThreadPoolExecutor(8) as pool:
        indexes = list(pool.map(lambda _: shared_bm25(TOWNS, tmp_path / "cache"), range(32)))
    assert len(set(map(id, indexes))) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no documents"),
        (["{"], ":1: "),
        (["3"], "expected a JSON object, got int"),
        (['{"title": "x"}'], "expected a text in 'contents'"),
        (['{"id": [], "text": "x"}'], "as id, got list"),
        (['{"id": 1, "text": "x"}', "", '{"id": "1", "text": "y"}'], ":3: the id '1' names two"),
        (["[" * 100_000], ":1: "),
    ],
)
def test_a_broken_corpus_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], reason: str
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_corpus(path)
    assert reason in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_corpus(tmp_path / "missing.jsonl")


def test_what_cannot_work_together_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", SQUAD)
    for options, reason in (
        ({"retriever": "lucene", "data": rows}, "expected 'bm25', 'http://HOST:PORT'"),
        ({"retriever": "http://127.0.0.1:1"}, "set env.data too"),
        ({"corpus": rows}, "set env.data too"),
        ({"retriever": "http://h", "corpus": rows, "data": rows}, "leave out env.corpus"),
        ({"retriever": "langchain:no.such:thing", "data": rows}, "No module named 'no'"),
        ({"retriever": "langchain:json", "data": rows}, "expected package.module:object"),
        ({"retriever": "langchain:json:loads.x", "data": rows}, "expected package.module:object"),
        ({"retriever": "langchain:json:tool", "data": rows}, "expected package.module:object"),
        ({"corpus": tmp_path / "none", "data": rows}, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=reason):
            SearchEnv(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no documents here"):
        SearchEnv().reset(options={"task": SearchEnv(data=rows).task(0)})


# BM25.


def textbook_bm25(documents: Sequence[Document], query: str) -> list[float]:
    """Robertson's formula with Lucene's idf, written down once more."""
    texts = [words(f"{d.title}\n{d.text}") for d in documents]
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in words(query):
            n, f = sum(word in t for t in texts), text.count(word)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            score += idf * f / (f + 1.5 * (0.25 + 0.75 * len(text) / average))
        scores.append(score)
    return scores


@given(
    st.lists(
        st.lists(st.sampled_from(["red", "cat", "sat", "on", "mats"]), min_size=1), min_size=1
    ),
    st.lists(st.sampled_from(["red", "cat", "sat", "dog"]), max_size=4),
)
def test_scores_are_those_of_the_textbook(texts: list[list[str]], query: list[str]) -> None:
    documents = [Document(str(i), "", "x " + " ".join(text)) for i, text in enumerate(texts)]
    (hits,) = Bm25.build(documents).search((" ".join(query),), len(documents))
    expected = textbook_bm25(documents, " ".join(query))
    found = {int(hit.document.id): hit.score for hit in hits}
    assert set(found) == {i for i, score in enumerate(expected) if score > 0}
    for place, score in found.items():
        assert score == pytest.approx(expected[place], rel=1e-5)
    assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.integers(1, 9))
def test_the_best_are_the_highest_and_of_equal_ones_the_first(scores: list[float], k: int) -> None:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert best(np.array(scores), k) == [i for i in order if scores[i] > 0][:k]


def test_recall_on_xquad_is_that_of_another_bm25(shared_data: Path) -> None:
    rows = list(flatten(json.loads((shared_data / "xquad/en_dev.json").read_bytes())))
    asked = [read_question(row) for row in rows]
    documents = tuple({q.gold[0].id: q.gold[0] for q in asked}.values())
    other = BM25Okapi([words(f"{d.title}\n{d.text}") for d in documents])
    found = Bm25.build(documents).search([q.text for q in asked], 5)
    ours = theirs = 0
    for question, hits in zip(asked, found, strict=True):
        gold = question.gold[0].id
        ours += gold in {hit.document.id for hit in hits}
        places = np.argsort(-other.get_scores(words(question.text)), kind="stable")[:5]
        theirs += gold in {documents[place].id for place in places}
    assert abs(ours - theirs) / len(asked) <= 0.01
    assert ours / len(asked) > 0.9


def test_an_index_is_built_once_and_then_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared_bm25(TOWNS, tmp_path)
    expected = first.search(("capital of Norway", "market"), 3)
    assert [hit.document.id for hit in expected[0]] == ["oslo", "lima", "bergen"]
    del first
    monkeypatch.setattr(bm25, "_build", None)  # would be an error to call
    assert shared_bm25(TOWNS, tmp_path).search(("capital of Norway", "market"), 3) == expected


def searched(cache: Path) -> Any:
    # The index is gone on return: one that is still mapped would be shared, not read again.
    return shared_bm25(TOWNS, cache).search(("Peru",), 1)


def test_a_broken_or_impossible_cache_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = searched(tmp_path / "c")
    (folder,) = (tmp_path / "c").iterdir()
    for victim in sorted(folder.iterdir()):
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
        assert searched(tmp_path / "c") == expected
        assert "broken and built again" in caplog.text
        caplog.clear()
    (tmp_path / "file").write_text("")
    assert searched(tmp_path / "file") == expected
    assert "no cache for search indexes" in caplog.text
    assert not list((tmp_path / "c").glob(".writing-*"))


def test_the_name_of_an_index_follows_from_its_content() -> None:
    swapped = (TOWNS[1], TOWNS[0], TOWNS[2])
    moved = (Document("os", "loOslo", TOWNS[0].text), *TOWNS[1:])
    keys = {content_hash(d, f) for d in (TOWNS, swapped, moved, TOWNS[:2]) for f in ("a", "b")}
    assert len(keys) == 8
    assert content_hash(list(TOWNS), "a") == content_hash(TOWNS, "a")


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/mopd/search")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/mopd/search"
    assert cache_folder("/y") == Path("/y")


def test_an_index_serves_threads_at_once() -> None:
    index = Bm25.build(TOWNS)
    queries = [d.title for d in TOWNS] * 40
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda q: index.search((q,), 1)[0][0].document.title, queries))
    assert found == queries


def test_documents_without_a_word_cannot_be_indexed() -> None:
    for documents in ((), (Document("1", "", "the ..."),)):
        with pytest.raises(ValueError, match="documents without a word"):
            Bm25.build(documents)


# Words and snippets.


def test_the_snippet_is_the_sentence_that_fits_the_query() -> None:
    text = "Oslo is old. It lies on a fjord! Did the market close?\nYes, the old\tmarket did."
    assert snippet(text, "Oslo", "Oslo") == "Oslo is old."
    assert snippet(text, "Oslo", "Oslo fjord") == "It lies on a fjord!"
    assert snippet(text, "Oslo", "old market") == "Yes, the old market did."
    assert snippet("", "Oslo", "x") == ""
    long = "much " * 100 + "gold here " + "more " * 100
    cut = snippet(long, "", "gold")
    assert "gold here" in cut
    assert cut.startswith("...")
    assert cut.endswith("...")
    assert len(cut) <= MAX_SNIPPET_CHARS + 6


@given(st.text(max_size=300), st.text(max_size=20), st.text(max_size=30))
def test_any_text_has_a_snippet_of_one_short_line(text: str, title: str, query: str) -> None:
    found = snippet(text, title, query)
    assert len(found) <= MAX_SNIPPET_CHARS + 6
    assert len(found.splitlines()) <= 1


# Other retrievers.


class Shelf(BaseRetriever):
    """Finds the documents whose text holds the query; fails at `fire`."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        if query == "fire":
            raise KeyError("ashes")
        return [
            LangChainDocument(d.text, id=d.id, metadata={"title": d.title, "score": 2})
            for d in TOWNS
            if query in d.text
        ]


SHELF = Shelf()


def test_any_langchain_retriever_searches_by_configuration(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", SQUAD)
    for name in ("SHELF", "Shelf"):
        env = SearchEnv(data=rows, retriever=f"langchain:{__name__}:{name}")
        env.reset(seed=0)
        lines = act(env, "search", query="Norway").split("\n")
        assert lines[0] == "oslo Oslo: Oslo is the capital of Norway."
        assert len(lines) == 2
        assert len(act(env, "search", query="Norway", k=1).split("\n")) == 1
        assert act(env, "open", id="bergen").startswith("Bergen\n")
        assert "No document matches" in act(env, "search", query="Mars")


def test_a_langchain_retriever_that_fails_is_the_worlds_failure() -> None:
    retriever = LangChainRetriever(SHELF)
    with pytest.raises(WorldError, match="the retriever Shelf failed: KeyError: 'ashes'"):
        retriever.search(("Norway", "fire"), 3)
    (hits,) = retriever.search(("Peru",), 3)
    assert [(hit.document, hit.score) for hit in hits] == [(TOWNS[2], 2.0)]
    assert retriever.search((), 3) == ()


def test_dense_retrieval_finds_the_nearest_and_keeps_its_vectors(tmp_path: Path) -> None:
    # A real encoder, though not a neural one: vectors of letter triples.
    encoder = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=4096)

    def encode(texts: list[str]) -> Any:
        return encoder.transform(texts).toarray()

    folder = tmp_path / "vectors"
    fresh = dense(TOWNS, encode, encode, folder)
    found = fresh.search(("capitals in Norwegian", "marketing"), 2)
    assert [hits[0].document.id for hits in found] == ["oslo", "bergen"]
    assert all(len(hits) == 2 for hits in found)
    assert found[0][0].score <= 1.0
    assert fresh.search((), 2) == ()

    def fail(texts: list[str]) -> Any:
        raise AssertionError("documents are encoded again")

    assert dense(TOWNS, fail, encode, folder).search(("marketing",), 1)[0][0] == found[1][0]


def test_dense_retrieval_says_what_it_needs(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", SQUAD)
    try:
        import sentence_transformers  # noqa: F401 - only whether it is there
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install 'mopd\[dense\]'"):
            SearchEnv(data=rows, retriever="dense:some/model")


def test_document_fields_of_either_form_are_read() -> None:
    quoted = document_of({"id": 3, "contents": '"Super "Bowl" 50"\nline 1\nline 2'})
    assert quoted == Document("3", 'Super "Bowl" 50', "line 1\nline 2")
    assert document_of({"contents": "only text"}) == Document(
        text_key("only text"), "", "only text"
    )
    assert document_of({"docid": "x", "title": None, "text": "t"}) == Document("x", "", "t")
    assert text_key("a  b\n") == text_key("a b")
