"""Which rollouts of a group the teacher sees while it judges another one of them."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from agents.types import Trajectory, TrajectoryGroup
from mopd.config import PeersSection


@dataclass(frozen=True, slots=True)
class PeerContext:
    """Evidence for one rollout: never the rollout itself, its textual twin, or an errored one.

    `feedback` is the verifier's text about the rollout itself, empty where it is not shown.
    """

    successes: tuple[Trajectory, ...]
    failures: tuple[Trajectory, ...]
    feedback: str

    @property
    def empty(self) -> bool:
        """Whether there is no evidence at all."""
        return not (self.successes or self.failures or self.feedback)


@dataclass(frozen=True, slots=True)
class _Rollout:
    """A trajectory with what makes another one its twin: the sampled ids, or the text said."""

    trajectory: Trajectory
    said: str
    sampled: tuple[int, ...]

    def twin_of(self, other: "_Rollout") -> bool:
        """Whether the student said the same; every rollout is its own twin."""
        same_ids = self.sampled == other.sampled and bool(self.sampled)
        return same_ids or self.said == other.said


def build_peer_contexts(
    group: TrajectoryGroup, config: PeersSection, rng: random.Random
) -> tuple[PeerContext | None, ...]:
    """The evidence for each rollout of the group, in order; None for an errored rollout.

    The group is shuffled once and each rollout takes the first peers that it may see, so that
    the contexts of one group begin alike and the teacher can share their prefixes.
    """
    rollouts = [_rollout(trajectory) for trajectory in group.trajectories]
    shuffled = rng.sample(rollouts, len(rollouts))
    peers = _distinct(rollout for rollout in shuffled if _showable(rollout, config))
    return tuple(
        None if rollout.trajectory.errored else _context(rollout, peers, config)
        for rollout in rollouts
    )


def _context(rollout: _Rollout, peers: list[_Rollout], config: PeersSection) -> PeerContext:
    others = [peer.trajectory for peer in peers if not peer.twin_of(rollout)]
    successes = _first(config.successes, [t for t in others if _succeeded(t, config)])
    failures = _first(config.failures, [t for t in others if not _succeeded(t, config)])
    if config.failure_shown == ("without_success" if successes else "with_success"):
        failures = ()
    return PeerContext(
        successes, failures, _feedback(rollout.trajectory, config, success_shown=bool(successes))
    )


def _feedback(trajectory: Trajectory, config: PeersSection, *, success_shown: bool) -> str:
    """The verifier's words on the rollout's own failure, where the configuration shows them."""
    shown = config.feedback_shown == "always" or (
        config.feedback_shown == "without_success" and not success_shown
    )
    if trajectory.verdict is None or not shown or _succeeded(trajectory, config):
        return ""
    return trajectory.verdict.feedback.strip()


def _showable(rollout: _Rollout, config: PeersSection) -> bool:
    """Whether the rollout may be anybody's evidence."""
    trajectory = rollout.trajectory
    if trajectory.errored or not rollout.said:
        return False
    fragment = trajectory.stop_reason.cut_off and not _succeeded(trajectory, config)
    return config.cut_off_failures or not fragment


def _succeeded(trajectory: Trajectory, config: PeersSection) -> bool:
    return trajectory.reward >= config.success_threshold


def _first(slots: int | str, trajectories: list[Trajectory]) -> tuple[Trajectory, ...]:
    return tuple(trajectories if isinstance(slots, str) else trajectories[:slots])


def _distinct(rollouts: Iterable[_Rollout]) -> list[_Rollout]:
    """The rollouts in order, without the later ones of twins."""
    kept: list[_Rollout] = []
    for rollout in rollouts:
        if not any(rollout.twin_of(other) for other in kept):
            kept.append(rollout)
    return kept


def _rollout(trajectory: Trajectory) -> _Rollout:
    # Observations are left out of both keys: a tool that reports its running time would
    # otherwise make two rollouts with the very same student text look different.
    pairs = zip(trajectory.token_ids, trajectory.sampled_mask, strict=True)
    said = (
        text
        for message in trajectory.response_messages
        if message.role == "assistant"
        for text in (message.content, *(f"{c.name} {c.arguments}" for c in message.tool_calls))
    )
    return _Rollout(
        trajectory,
        said=" ".join(" ".join(said).split()),
        sampled=tuple(token for token, sampled in pairs if sampled),
    )
