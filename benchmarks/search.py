"""What retrieval finds and costs: `python benchmarks/search.py [quality speed server]`.

`quality` needs a SQuAD-format file (`--squad FILE`) and `pip install rank-bm25`, the other BM25.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from envs.search.bm25 import Bm25, shared_bm25
from envs.search.documents import Document, Hit
from envs.search.formats import flatten, read_question
from envs.search.http import HttpRetriever
from envs.search.server import RetrievalServer
from envs.search.words import words

Record = dict[str, Any]
PASSAGE_WORDS = 60
VOCABULARY = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["speed", "server"])
    parser.add_argument("--squad", type=Path, help="a file in SQuAD's format")
    parser.add_argument("--passages", type=int, nargs="*", default=[1, 10_000, 1_000_000])
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    if "quality" in options.parts:
        if options.squad is None:
            parser.error("quality needs --squad FILE")
        report(quality(options.squad))
    if "speed" in options.parts:
        for count in options.passages:
            report(speed(count))
    if "server" in options.parts:
        report(server(options.clients))


def report(record: Record) -> None:
    print(json.dumps(record), flush=True)


def quality(path: Path, k: int = 5) -> Record:
    """How often the paragraph of a question is among the first k, by ours and by rank_bm25."""
    from rank_bm25 import BM25Okapi

    questions = [read_question(row) for row in flatten(json.loads(path.read_bytes()))]
    documents = tuple({q.gold[0].id: q.gold[0] for q in questions}.values())
    other = BM25Okapi([words(f"{d.title}\n{d.text}") for d in documents], k1=1.5, b=0.75)

    def by_other(query: str) -> list[str]:
        scores = other.get_scores(words(query))
        return [documents[i].id for i in (-scores).argsort(kind="stable")[:k]]

    ours = Bm25.build(documents)
    found = ours.search([q.text for q in questions], k)
    mine = sum(q.gold[0].id in ids(hits) for q, hits in zip(questions, found, strict=True))
    theirs = sum(q.gold[0].id in by_other(q.text) for q in questions)
    return {
        "part": "quality",
        "passages": len(documents),
        "questions": len(questions),
        f"recall@{k}": round(mine / len(questions), 4),
        f"recall@{k}_rank_bm25": round(theirs / len(questions), 4),
    }


def speed(count: int) -> Record:
    """Building, loading and searching an index of generated passages, beside reading them all."""
    documents = generated(count, random.Random(0))
    queries = generated_queries(documents, 300, random.Random(1))
    before_mb = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        cpu_s = time.process_time()
        index, build_s = timed(lambda: shared_bm25(documents, cache))
        cpu_s = time.process_time() - cpu_s
        build_peak_mb = peak_mb()
        size_mb = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 2**20
        again, shared_s = timed(lambda: shared_bm25(documents, cache))
        assert again is index
        del index, again
        index, load_s = timed(lambda: shared_bm25(documents, cache))
        index.search(queries[:5], 5)
        _, search_s = timed(lambda: [index.search((query,), 5) for query in queries])
        with ThreadPoolExecutor(2) as pool:
            _, two_s = timed(lambda: list(pool.map(lambda q: index.search((q,), 5), queries)))
        naive = queries[: max(1, min(len(queries), 20_000 // count))]
        _, scan_s = timed(lambda: [scan(documents, query, 5) for query in naive])
    return {
        "part": "speed",
        "passages": count,
        "build_s": round(build_s, 3),
        "build_cpu_s": round(cpu_s, 3),
        "same_process_again_s": round(shared_s, 3),
        "load_from_cache_s": round(load_s, 3),
        "queries_per_s": round(len(queries) / search_s, 1),
        "queries_per_s_2_threads": round(len(queries) / two_s, 1),
        "naive_scan_queries_per_s": round(len(naive) / scan_s, 3),
        "index_mb": round(size_mb, 1),
        "passages_peak_mb": round(before_mb),
        "build_peak_mb": round(build_peak_mb),
    }


def server(clients: int, requests: int = 50) -> Record:
    """Clients that ask at once: every answer must come, and be that of its own query."""
    documents = generated(10_000, random.Random(0))
    index = Bm25.build(documents)
    serving = RetrievalServer(("127.0.0.1", 0), index, topk=3)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    client = HttpRetriever(f"http://127.0.0.1:{serving.server_address[1]}", attempts=1)
    gate = threading.Barrier(clients)
    queries = generated_queries(documents, clients * requests, random.Random(2))
    expected = [ids(hits) for hits in index.search(queries, 5)]

    def ask(number: int) -> tuple[int, list[float]]:
        gate.wait()
        wrong, times = 0, []
        for place in range(number, len(queries), clients):
            found, spent_s = timed(lambda place=place: client.search((queries[place],), 5))
            wrong += ids(found[0]) != expected[place]
            times.append(spent_s)
        return wrong, times

    try:
        with ThreadPoolExecutor(clients) as pool:
            answers, spent_s = timed(lambda: list(pool.map(ask, range(clients))))
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join()
    times = sorted(time for _, times in answers for time in times)
    return {
        "part": "server",
        "clients": clients,
        "requests": len(times),
        "lost_or_wrong": len(queries) - len(times) + sum(wrong for wrong, _ in answers),
        "requests_per_s": round(len(times) / spent_s, 1),
        "median_ms": round(1e3 * times[len(times) // 2], 1),
        "p99_ms": round(1e3 * times[len(times) * 99 // 100], 1),
    }


def generated(count: int, rng: random.Random) -> tuple[Document, ...]:
    """Passages whose words are as unevenly frequent as those of a language (Zipf)."""
    vocabulary = [f"w{number}" for number in range(VOCABULARY)]
    weights = [1 / (rank + 2) for rank in range(VOCABULARY)]
    total, cumulated = 0.0, []
    for weight in weights:
        total += weight
        cumulated.append(total)
    documents = []
    for number in range(count):
        text = " ".join(rng.choices(vocabulary, cum_weights=cumulated, k=PASSAGE_WORDS))
        documents.append(Document(f"p{number}", "", text))
    return tuple(documents)


def generated_queries(
    documents: Sequence[Document], count: int, rng: random.Random
) -> tuple[str, ...]:
    """Six words of some passage each."""
    return tuple(" ".join(rng.sample(rng.choice(documents).text.split(), 6)) for _ in range(count))


def scan(documents: Sequence[Document], query: str, k: int) -> list[Document]:
    """The naive way: count the query's words in every passage."""
    sought = set(words(query))
    return sorted(documents, key=lambda d: -len(sought & set(words(d.text))))[:k]


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.document.id for hit in hits]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def peak_mb() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


if __name__ == "__main__":
    main()
