"""What peers in a prompt do to a model's success, and to how well a teacher's scores judge."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from agents.base import Agent
from agents.by_message import Speaker, play_episodes
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.types import Trajectory, TrajectoryGroup
from envs.base import ToolEnv, Transcript
from envs.tasks import stable_seed
from mopd.config import Config, PromptSection
from mopd.peers import PeerContext, build_peer_contexts
from mopd.prompts import render_transcript, teacher_messages, teacher_prompts
from mopd.scoring import Scored, sampled_ids
from mopd.statistics import Estimate, clustered_auc, clustered_mean, paired_gain
from mopd.teacher import Teacher

log = logging.getLogger(__name__)

Slots = int | Literal["all"]
Place = tuple[int, int]  # of a rollout: its group, and its index there
Contexts = Mapping[Place, PeerContext]

# What the prompt shows: successes, failures.
CONDITIONS: Mapping[str, tuple[Slots, Slots]] = {
    "1S": (1, 0),
    "2S": (2, 0),
    "1S+1F": (1, 1),
    "2S+1F": (2, 1),
    "1F": (0, 1),
    "all F": (0, "all"),
}


@dataclass(frozen=True, slots=True)
class PeerEffect:
    """Success with evidence in the prompt, and without it on the very same rollouts' tasks.

    Estimates are clustered by task, and None where fewer than two tasks have the evidence.
    """

    rollouts: int
    tasks: int
    alone: Estimate | None
    with_peers: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """AUC of the teacher's scores inside mixed tasks; None below two such tasks."""

    tasks: int
    auc: Estimate | None


def peers_of_new_rollouts(
    groups: Sequence[TrajectoryGroup], condition: tuple[Slots, Slots], config: Config
) -> Contexts:
    """For each rollout the evidence that another one in its place would find, where complete.

    It depends on the *other* rollouts only, twins of this one included: the rollout itself is an
    independent sample without peers, and so the fair one to compare with.
    """
    return {
        (number, index): context
        for number, group in enumerate(groups)
        for index in range(len(group.trajectories))
        for context in [_contexts(_unplayed(group, index), number, condition, config)[index]]
        if context is not None and _complete(context, condition)
    }


def peers_of_judged_rollouts(
    groups: Sequence[TrajectoryGroup], condition: tuple[Slots, Slots], config: Config
) -> Contexts:
    """For each rollout the evidence under which a teacher judges it, complete or not.

    As in training: the only success of a task has no successful peer, nor have its twins.
    """
    return {
        (number, index): context
        for number, group in enumerate(groups)
        for index, context in enumerate(_contexts(group, number, condition, config))
        if context is not None
    }


def peer_effect(
    agent_with_room: Callable[[int], Agent],
    chat: Chat,
    make_env: Callable[[], ToolEnv],
    groups: Sequence[TrajectoryGroup],
    contexts: Contexts,
    config: Config,
) -> PeerEffect:
    """Play each rollout of `contexts` once more, with its evidence in the prompt.

    `agent_with_room` gives an agent that ends transcripts at so many tokens: the evidence must not
    take the room that the agent has for its own turns.
    """
    places = tuple(contexts)
    originals = [groups[number].trajectories[index] for number, index in places]
    prompts = _prompts(groups, contexts, config, chat)
    longer = [len(p) - t.prompt_length for p, t in zip(prompts, originals, strict=True)]
    room = config.rollout.max_context + max(longer, default=0)
    replayed = rollout_groups(
        agent_with_room(room),
        make_env,
        [t.task for t in originals],
        1,
        seed=stable_seed(config.seed, "with peers"),
        max_new_tokens=config.rollout.max_new_tokens,
        max_context=room,
        tool_workers=config.rollout.tool_workers,
        prompts=prompts,
    )
    return _effect(groups, places, [group.trajectories[0] for group in replayed])


def spoken_peer_effect(
    speaker: Speaker,
    make_env: Callable[[], ToolEnv],
    groups: Sequence[TrajectoryGroup],
    contexts: Contexts,
    config: Config,
) -> PeerEffect:
    """`peer_effect` of a speaker, who reads the evidence in its last user message.

    Peers are shown whole: the budgets of [prompt] are in tokens, which nobody counts here. What is
    too long for the model errors, and is left out.
    """
    places = tuple(contexts)
    seed = stable_seed(config.seed, "with peers")
    replayed = play_episodes(
        speaker,
        make_env,
        [
            (groups[number].task, index, stable_seed(seed, place))
            for place, (number, index) in enumerate(places)
        ],
        at_once=config.rollout.max_concurrent,
        prompts=[_messages(groups[p[0]], contexts[p], config.prompt) for p in places],
    )
    return _effect(groups, places, replayed)


def teacher_scores(
    teacher: Teacher,
    groups: Sequence[TrajectoryGroup],
    contexts: Contexts,
    config: Config,
    chat: Chat,
) -> dict[Place, float]:
    """Mean teacher log-probability of a rollout's sampled tokens behind its evidence."""
    places = [p for p in contexts if groups[p[0]].trajectories[p[1]].sampled_tokens]
    prompts = _prompts(groups, {p: contexts[p] for p in places}, config, chat)
    rows = []
    for (number, index), prompt in zip(places, prompts, strict=True):
        trajectory = groups[number].trajectories[index]
        rows.append(Scored(prompt, trajectory.response_ids, trajectory.response_mask))
    scores: list[float] = []
    for start in range(0, len(rows), config.optim.micro_batch):
        batch = rows[start : start + config.optim.micro_batch]
        ids_N1 = sampled_ids(batch, torch.device("cpu"))[:, None]
        logprobs_N = teacher.score(batch, ids_N1)[:, 0]
        scores += [
            float(row.mean()) for row in torch.split(logprobs_N, [sum(r.mask) for r in batch])
        ]
    return dict(zip(places, scores, strict=True))


def agreement(groups: Sequence[TrajectoryGroup], scores: Mapping[Place, float]) -> Agreement:
    """How often a success scores above a failure of its own task."""
    values: list[list[float]] = [[] for _ in groups]
    labels: list[list[bool]] = [[] for _ in groups]
    for (number, index), score in scores.items():
        verdict = groups[number].trajectories[index].verdict
        if verdict is not None:
            values[number].append(score)
            labels[number].append(verdict.success)
    estimate, tasks = clustered_auc(values, labels)
    return Agreement(tasks, estimate)


def without_peers(groups: Sequence[TrajectoryGroup]) -> Contexts:
    """The empty context for every rollout that did not error: the student's own prompt."""
    return {
        (number, t.index): PeerContext((), (), "")
        for number, group in enumerate(groups)
        for t in group.trajectories
        if not t.errored
    }


def _effect(
    groups: Sequence[TrajectoryGroup], places: Sequence[Place], replayed: Sequence[Trajectory]
) -> PeerEffect:
    """The rollouts of `places` beside the same ones with evidence."""
    if errors := [t.error for t in replayed if t.errored]:
        log.warning(
            "%d of %d rollouts with peers errored and are left out, such as: %s",
            len(errors),
            len(replayed),
            errors[0],
        )
    pairs: dict[int, list[tuple[float, float]]] = {}
    for (number, index), after in zip(places, replayed, strict=True):
        before = groups[number].trajectories[index]
        if before.verdict is not None and after.verdict is not None:
            success = float(before.verdict.success), float(after.verdict.success)
            pairs.setdefault(number, []).append(success)
    alone = [[before for before, _ in task] for task in pairs.values()]
    with_peers = [[after for _, after in task] for task in pairs.values()]
    count = sum(map(len, alone))
    if len(pairs) < 2:
        return PeerEffect(count, len(pairs), None, None, None)
    return PeerEffect(
        count,
        len(pairs),
        clustered_mean(alone),
        clustered_mean(with_peers),
        paired_gain(alone, with_peers),
    )


def _messages(group: TrajectoryGroup, context: PeerContext, config: PromptSection) -> Transcript:
    """The group's first messages with the evidence, in the words of the teacher's prompt."""

    def texts(peers: Sequence[Trajectory]) -> list[str]:
        shown = (
            render_transcript(peer.response_messages, keep_thinking=config.keep_thinking)
            for peer in peers
        )
        return [text for text in shown if text.strip()]

    return teacher_messages(
        group.prompt_messages, texts(context.successes), texts(context.failures), "", config
    )


def _contexts(
    group: TrajectoryGroup, number: int, condition: tuple[Slots, Slots], config: Config
) -> tuple[PeerContext | None, ...]:
    successes, failures = condition
    peers = config.peers.model_copy(
        update={
            "successes": successes,
            "failures": failures,
            "failure_shown": "always",
            "feedback_shown": "never",
        }
    )
    # One shuffle for all conditions: 1S is the first half of 2S.
    rng = random.Random(stable_seed(config.seed, "peers", number))
    return build_peer_contexts(group, peers, rng)


def _complete(context: PeerContext, condition: tuple[Slots, Slots]) -> bool:
    return all(
        len(shown) == slots or (slots == "all" and len(shown) > 0)
        for slots, shown in zip(condition, (context.successes, context.failures), strict=True)
    )


def _unplayed(group: TrajectoryGroup, index: int) -> TrajectoryGroup:
    """The group with a rollout that has said nothing yet, so that it is nobody's twin or peer."""
    played = group.trajectories[index]
    prompt = played.prompt_length
    silent: Trajectory = replace(
        played,
        token_ids=played.token_ids[:prompt],
        sampled_mask=played.sampled_mask[:prompt],
        logprobs=played.logprobs[:prompt],
        messages=played.messages[: len(played.messages) - len(played.response_messages)],
    )
    others = group.trajectories
    return TrajectoryGroup(group.task, (*others[:index], silent, *others[index + 1 :]))


def _prompts(
    groups: Sequence[TrajectoryGroup], contexts: Contexts, config: Config, chat: Chat
) -> list[tuple[int, ...]]:
    """The teacher's prompt of each context, in order."""
    by_group: dict[int, list[Place]] = {}
    for place in contexts:
        by_group.setdefault(place[0], []).append(place)
    prompts: dict[Place, tuple[int, ...]] = {}
    for number, places in by_group.items():
        first = groups[number].trajectories[places[0][1]]
        messages = first.messages[: len(first.messages) - len(first.response_messages)]
        built = teacher_prompts(messages, [contexts[p] for p in places], config.prompt, chat)
        prompts |= {p: t.token_ids for p, t in zip(places, built, strict=True) if t is not None}
    return [prompts[place] for place in contexts]
