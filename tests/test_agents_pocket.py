"""The pocket student's recipe: what its demonstrators play is what the environments would see."""

import math
import random
from collections.abc import Iterator

import pytest

import envs
from agents.chat import Chat
from agents.pocket import TAUGHT
from agents.pocket.demonstrators import DEMONSTRATORS, Demonstrator
from agents.pocket.demonstrators.base import Belief
from agents.pocket.demonstrators.search import SearchDemonstrator
from agents.pocket.train import (
    CONTEXTS,
    MAX_TOKENS,
    Example,
    failed,
    make_example,
    read_target_and_failures,
    without_departure,
)
from envs.types import Message, Task
from mopd.config import ModelSection
from mopd.student import load_tokenizer

TASKS = 25


@pytest.fixture(scope="module", params=DEMONSTRATORS, ids=lambda d: d.__name__)
def demonstrator(request: pytest.FixtureRequest) -> Iterator[Demonstrator]:
    demonstrator = request.param()
    yield demonstrator
    for env in demonstrator.envs.values():
        env.close()


def drawn(demonstrator: Demonstrator) -> Iterator[tuple[random.Random, Task]]:
    rng = random.Random(5)
    for _ in range(TASKS):
        yield rng, demonstrator.draw(rng)


def test_every_environment_of_the_suite_is_taught() -> None:
    played = {demonstrator().env_class for demonstrator in DEMONSTRATORS}
    assert played == {envs.env_class(name) for name in TAUGHT}
    assert set(TAUGHT) == set(envs.NAMES)


def test_who_reads_everything_right_succeeds(demonstrator: Demonstrator) -> None:
    for rng, task in drawn(demonstrator):
        right = tuple(next(iter(belief)) for belief in demonstrator.beliefs(task))
        messages = demonstrator.act(rng, task, right)
        demonstrator.env.reset(options={"task": task})
        for message in messages:
            if message.role == "assistant":
                demonstrator.env.step(message)
        assert demonstrator.env.verdict is not None
        assert demonstrator.env.verdict.success, (task.prompt, demonstrator.env.verdict.feedback)


def test_what_they_see_is_what_the_environment_answers(demonstrator: Demonstrator) -> None:
    for rng, task in drawn(demonstrator):
        messages = demonstrator.act(rng, task, demonstrator.read(rng, task))
        demonstrator.env.reset(options={"task": task})
        answered: list[Message] = []
        for message in messages:
            if message.role == "assistant":
                answered += [message, *demonstrator.env.step(message)[0]]
        assert [m.content.strip() for m in answered] == [m.content.strip() for m in messages]


def test_a_belief_is_a_distribution_with_the_right_meaning_first(
    demonstrator: Demonstrator,
) -> None:
    for _, task in drawn(demonstrator):
        for belief in demonstrator.beliefs(task):
            assert sum(belief.values()) == pytest.approx(1)
            assert min(belief.values()) > 0


def test_no_held_out_task_is_drawn(demonstrator: Demonstrator) -> None:
    assert {env.split for env in demonstrator.envs.values()} == {"train"}


def test_only_what_the_agent_says_has_the_full_weight(demonstrator: Demonstrator) -> None:
    chat = Chat(load_tokenizer(ModelSection()), demonstrator.env.schemas())
    rng = random.Random(1)
    for kind in CONTEXTS:
        examples = (make_example(rng, demonstrator, chat, kind) for _ in range(9))
        example = next(example for example in examples if example is not None)
        own = [t for t, w in zip(example.ids, example.weights, strict=True) if w == 1]
        text = chat.tokenizer.decode(own)
        assert own[-1] == chat.eos_id
        assert "<|im_start|>" not in text
        assert "result:" not in text  # a peer's
        assert len(example.ids) <= MAX_TOKENS


@pytest.mark.parametrize("kind", [kind for kind in CONTEXTS if kind and "S" not in kind])
def test_a_failure_that_is_shown_alone_has_really_failed(
    demonstrator: Demonstrator, kind: str
) -> None:
    for rng, task in drawn(demonstrator):
        right = tuple(next(iter(belief)) for belief in demonstrator.beliefs(task))
        target, shown = read_target_and_failures(rng, demonstrator, task, kind)
        only_way = math.prod(map(len, demonstrator.beliefs(task))) == 1
        assert only_way or right not in shown
        assert only_way or len(shown) > 1 or target not in shown


def test_a_task_that_can_be_read_in_one_way_only_is_not_shown_with_a_failure() -> None:
    class OneWay(SearchDemonstrator):
        def beliefs(self, task: Task) -> list[Belief]:
            return [{next(iter(belief)): 1.0} for belief in super().beliefs(task)]

    demonstrator = OneWay()
    chat = Chat(load_tokenizer(ModelSection()), demonstrator.env.schemas())
    rng = random.Random(1)
    assert all(make_example(rng, demonstrator, chat, "F") is None for _ in range(9))
    assert all(make_example(rng, demonstrator, chat, "S") is not None for _ in range(9))


def test_a_failure_beside_a_success_is_wrong_throughout_or_that_success_with_a_call_too_many() -> (
    None
):
    demonstrator = SearchDemonstrator()
    rng = random.Random(1)
    task = demonstrator.draw_at(rng, 2)
    right = tuple(next(iter(belief)) for belief in demonstrator.beliefs(task))
    wrong, _ = read_target_and_failures(rng, demonstrator, task, "S")
    assert wrong != right
    throughout = demonstrator.act(rng, task, wrong)
    begun = demonstrator.act(rng, task, right)[:-1]
    too_many = {(*begun, *throughout[i : i + 2], throughout[-1]) for i in (0, 2)}
    shown = {failed(rng, demonstrator, task, wrong, right) for _ in range(99)}
    assert shown == {throughout, *too_many}
    assert {failed(rng, demonstrator, task, wrong, None) for _ in range(99)} == {throughout}


def test_where_a_slip_departs_from_what_was_meant_nothing_is_learnt_but_from_there_on_again() -> (
    None
):
    meant = Example([5, 6, 7, 8, 9], [1, 1, 1, 0, 1])
    said = Example([5, 6, 3, 8, 4, 9], [1, 1, 1, 0, 1, 1])
    assert without_departure(said, meant) == Example(said.ids, [1, 1, 0, 0, 1, 1])
    assert without_departure(meant, meant) == meant
