"""Which peers the teacher sees: hand-written groups, one rule a test."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from agents.types import Trajectory, TrajectoryGroup
from envs.types import Message, StopReason, Task, ToolCall, Verdict
from mopd.config import PeersSection
from mopd.peers import PeerContext, build_peer_contexts

TASK = Task("sum/1", "What is 1 + 1?", "2")
PROMPT = (Message("system", "Solve it."), Message("user", TASK.prompt))
ALL = PeersSection(successes="all", failures="all", failure_shown="always", feedback_shown="never")


def rollout(
    said: str,
    reward: float = 0.0,
    *,
    stop: StopReason = StopReason.ANSWERED,
    feedback: str = "",
    observation: str = "2",
    token_ids: tuple[int, ...] | None = None,
) -> Trajectory:
    """Two prompt tokens, a call, its result, and what the student said; one token a character."""
    sampled = tuple(map(ord, said)) if token_ids is None else token_ids
    observed = tuple(map(ord, observation))
    call = ToolCall("c0", "calculate", '{"expression": "1 + 1"}')
    return Trajectory(
        task=TASK,
        index=0,
        token_ids=(1, 2, *sampled, *observed),
        sampled_mask=(False, False, *[True] * len(sampled), *[False] * len(observed)),
        logprobs=(0.0,) * (2 + len(sampled) + len(observed)),
        messages=(
            *PROMPT,
            Message("assistant", said, (call,)),
            Message("tool", observation, tool_call_id="c0"),
        ),
        verdict=None if stop is StopReason.ERROR else Verdict(reward, reward >= 1, feedback),
        stop_reason=stop,
        adapter_version="0",
    )


def contexts_of(
    *trajectories: Trajectory, config: PeersSection = ALL, seed: int = 0
) -> tuple[PeerContext | None, ...]:
    group = TrajectoryGroup(TASK, trajectories)
    return build_peer_contexts(group, config, random.Random(seed))


def said(trajectories: tuple[Trajectory, ...]) -> list[str]:
    return sorted(trajectory.response_messages[0].content for trajectory in trajectories)


def test_a_rollout_sees_the_other_successes_and_failures_and_never_itself():
    right, other, wrong = contexts_of(rollout("2", 1.0), rollout("two", 1.0), rollout("3"))
    assert (said(right.successes), said(right.failures)) == (["two"], ["3"])
    assert (said(other.successes), said(other.failures)) == (["2"], ["3"])
    assert (said(wrong.successes), said(wrong.failures)) == (["2", "two"], [])


@pytest.mark.parametrize(
    "twin",
    [
        rollout("it is 2", 1.0),
        rollout("  it\n is  2 ", 1.0),
        rollout("It is 2.", 1.0, token_ids=tuple(map(ord, "it is 2"))),
        rollout("it is 2", 1.0, token_ids=(7, 8, 9)),
        rollout("it is 2", 1.0, observation="2 (took 0.3 s)"),
    ],
    ids=["same", "other whitespace", "same ids", "same text, other ids", "other observation"],
)
def test_a_textual_twin_is_excluded_as_if_it_were_the_rollout_itself(twin):
    alone, its_twin, wrong = contexts_of(rollout("it is 2", 1.0), twin, rollout("3"))
    assert alone.successes == its_twin.successes == ()
    assert len(wrong.successes) == 1, "twins of each other are shown once"


def test_rollouts_without_tokens_are_no_twins_of_each_other():
    first, second = contexts_of(rollout("2", 1.0, token_ids=()), rollout("3", token_ids=()))
    assert (len(first.failures), len(second.successes)) == (1, 1)


def test_an_errored_rollout_takes_no_part_and_is_nobodys_evidence():
    broken = rollout("3", stop=StopReason.ERROR)
    contexts = contexts_of(rollout("2", 1.0), broken)
    assert contexts == (PeerContext((), (), ""), None)
    assert contexts[0].empty


def test_a_rollout_that_said_nothing_shows_nothing():
    silent = replace(rollout("3"), messages=(*PROMPT, Message("assistant", " \n")))
    right, nothing = contexts_of(rollout("2", 1.0), silent)
    assert right.failures == ()
    assert said(nothing.successes) == ["2"]


@pytest.mark.parametrize("stop", [stop for stop in StopReason if stop.cut_off])
def test_a_failure_cut_off_by_a_limit_is_shown_only_where_asked_for(stop):
    group = rollout("2", 1.0), rollout("I would", stop=stop)
    assert contexts_of(*group)[0].failures == ()
    shown = ALL.model_copy(update={"cut_off_failures": True})
    assert said(contexts_of(*group, config=shown)[0].failures) == ["I would"]


def test_a_success_that_reached_a_limit_is_still_a_success():
    context = contexts_of(rollout("3"), rollout("2", 1.0, stop=StopReason.MAX_TURNS))[0]
    assert said(context.successes) == ["2"]


def test_the_reward_decides_what_a_success_is():
    half = PeersSection(success_threshold=0.5, failure_shown="always", feedback_shown="always")
    context = contexts_of(rollout("a", 0.5, feedback="close"), rollout("b", 0.4), config=half)
    assert (said(context[0].failures), said(context[1].successes)) == (["b"], ["a"])
    assert context[0].feedback == "", "feedback is about an unsuccessful attempt"


@pytest.mark.parametrize(("slots", "expected"), [(0, 0), (1, 1), (2, 2), ("all", 4)])
def test_the_number_of_peers_is_configured(slots, expected):
    config = PeersSection(successes=slots, failures=slots, failure_shown="always")
    rights = [rollout(f"right {i}", 1.0) for i in range(4)]
    wrongs = [rollout(f"wrong {i}") for i in range(5)]
    context = contexts_of(*rights, *wrongs, config=config)[-1]
    assert (len(context.successes), len(context.failures)) == (expected, expected)


def test_failures_may_be_shown_only_where_no_success_is():
    config = PeersSection(failure_shown="without_success")
    right, wrong, _ = contexts_of(rollout("2", 1.0), rollout("3"), rollout("4"), config=config)
    assert said(right.failures) in (["3"], ["4"])
    assert (said(wrong.successes), wrong.failures) == (["2"], ())


def test_failures_may_be_shown_only_beside_a_success():
    config = PeersSection()  # the default
    right, twin, wrong, _ = contexts_of(
        rollout("2", 1.0), rollout("2", 1.0), rollout("3"), rollout("4"), config=config
    )
    assert right == twin == PeerContext((), (), ""), "the only other success is a twin"
    assert (said(wrong.successes), said(wrong.failures)) == (["2"], ["4"])


@pytest.mark.parametrize(
    ("shown", "lonely", "helped"),
    [("never", "", ""), ("always", "off by 1", "off by 1"), ("without_success", "off by 1", "")],
)
def test_a_failed_rollout_may_see_its_own_feedback(shown, lonely, helped):
    config = PeersSection(feedback_shown=shown)
    wrong = rollout("3", feedback=" off by 1\n")
    assert contexts_of(wrong, config=config)[0].feedback == lonely
    assert contexts_of(wrong, rollout("2", 1.0), config=config)[0].feedback == helped


def test_the_same_seed_draws_the_same_peers_and_another_seed_others():
    group = [rollout(f"right {i}", 1.0) for i in range(6)] + [rollout("3")]
    config = PeersSection()
    assert contexts_of(*group, config=config) == contexts_of(*group, config=config)
    drawn = {
        tuple(said(contexts_of(*group, config=config, seed=s)[-1].successes)) for s in range(9)
    }
    assert len(drawn) > 1


def test_the_contexts_of_a_group_begin_alike():
    group = [rollout(f"right {i}", 1.0) for i in range(2)] + [rollout(f"3{i}") for i in range(6)]
    wrongs = contexts_of(*group, config=PeersSection())[2:]
    assert all(a.successes == b.successes for a, b in pairwise(wrongs))
    assert len({said(context.failures)[0] for context in wrongs}) == 2  # one sees the next failure
