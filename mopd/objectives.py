"""One small object for each `--algo`: which rollouts take part, and what their tokens cost."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from agents.types import Trajectory, TrajectoryGroup
from envs.tasks import stable_seed
from mopd import losses
from mopd.config import Config
from mopd.head import student_support, token_logprobs
from mopd.peers import PeerContext, build_peer_contexts
from mopd.prompts import Chat, teacher_prompts
from mopd.scoring import Scored, sampled_ids
from mopd.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout of a step as the loss sees it."""

    trajectory: Trajectory
    group: int
    teacher_ids: tuple[int, ...] = ()  # the teacher's prompt
    advantage: float = 0.0
    peers: tuple[int, ...] = ()  # indices in the group, for the record
    evidence: int = 0  # pieces of evidence in the teacher's prompt; 0: an anchor
    truncated: bool = False  # the evidence did not fit whole

    @property
    def inert(self) -> bool:
        """Whether its gradient is zero whatever the student says."""
        return not self.teacher_ids and self.advantage == 0.0

    @property
    def scored(self) -> Scored:
        """The rollout behind the student's own prompt."""
        t = self.trajectory
        return Scored(t.token_ids[: t.prompt_length], t.response_ids, t.response_mask)

    @property
    def taught(self) -> Scored:
        """The same tokens, verbatim, behind the teacher's prompt."""
        t = self.trajectory
        return Scored(self.teacher_ids, t.response_ids, t.response_mask)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """loss_N of the sampled tokens, and where there is a teacher its teacher_logprobs_N."""

    loss_N: torch.Tensor
    teacher_logprobs_N: torch.Tensor | None = None


class Objective(Protocol):
    """An algorithm between rollouts and the optimizer."""

    def rows(self, groups: Sequence[TrajectoryGroup], step: int) -> tuple[Row, ...]:
        """The rollouts that take part in the loss of a step, groups together."""
        ...

    def loss(
        self, rows: Sequence[Row], hidden_NH: torch.Tensor, head: torch.nn.Linear
    ) -> TokenLoss:
        """Loss of each sampled token, from the student's hidden states that predict them."""
        ...


class Mopd:
    """Divergence to a teacher that has seen the peers' transcripts."""

    def __init__(self, config: Config, chat: Chat, teacher: Teacher) -> None:
        self._config, self._chat, self._teacher = config, chat, teacher

    def rows(self, groups: Sequence[TrajectoryGroup], step: int) -> tuple[Row, ...]:
        """Every rollout with evidence; those without are skipped, or anchored."""
        rows: list[Row] = []
        for number, group in enumerate(groups):
            rng = random.Random(stable_seed(self._config.seed, "peers", step, number))
            contexts = build_peer_contexts(group, self._config.peers, rng)
            prompts = teacher_prompts(
                group.prompt_messages, contexts, self._config.prompt, self._chat
            )
            for trajectory, context, prompt in zip(
                group.trajectories, contexts, prompts, strict=True
            ):
                if context is None or prompt is None or not trajectory.sampled_tokens:
                    continue
                if prompt.evidence_spans or self._config.peers.without_evidence == "anchor":
                    rows.append(
                        Row(
                            trajectory,
                            number,
                            teacher_ids=prompt.token_ids,
                            peers=_indices(context),
                            evidence=len(prompt.evidence_spans),
                            truncated=prompt.truncated,
                        )
                    )
        numbers = range(len(groups))
        self._teacher.expect([[row.taught for row in rows if row.group == n] for n in numbers])
        return tuple(rows)

    def loss(
        self, rows: Sequence[Row], hidden_NH: torch.Tensor, head: torch.nn.Linear
    ) -> TokenLoss:
        """Equation of mopd.md: w * D_alpha(p_S || p_T) on the student's top-k and a tail."""
        config, temperature = self._config.loss, self._config.rollout.temperature
        tokens_N = sampled_ids([row.scored for row in rows], hidden_NH.device)
        student = student_support(head, hidden_NH, tokens_N, config.top_k, temperature)
        teacher_NK1 = self._teacher.score(
            [row.taught for row in rows], torch.cat([student.ids_NK, tokens_N[:, None]], 1)
        )
        loss_N = losses.divergence(
            losses.on_support(student.logprobs_NK, head.out_features, config.tail),
            losses.on_support(teacher_NK1[:, :-1], head.out_features, config.tail),
            config.divergence,
            config.alpha,
        )
        if config.importance_clip is not None:
            sampled_N = sampling_logprobs(rows, hidden_NH.device)
            loss_N = loss_N * losses.importance_weight(
                student.sampled_N, sampled_N, config.importance_clip
            )
        return TokenLoss(loss_N, teacher_NK1[:, -1])


class Grpo:
    """Group-relative policy gradient: the verifier's reward alone, no teacher."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def rows(self, groups: Sequence[TrajectoryGroup], step: int) -> tuple[Row, ...]:
        """Every rollout that did not error; its advantage is relative to its group."""
        rows: list[Row] = []
        for number, group in enumerate(groups):
            valid = [t for t in group.trajectories if not t.errored and t.sampled_tokens]
            if not valid:
                continue
            advantages = losses.group_advantages(
                torch.tensor([t.reward for t in valid]), self._config.grpo.scale_by_std
            )
            rows += [
                Row(trajectory, number, advantage=advantage)
                for trajectory, advantage in zip(valid, advantages.tolist(), strict=True)
            ]
        return tuple(rows)

    def loss(
        self, rows: Sequence[Row], hidden_NH: torch.Tensor, head: torch.nn.Linear
    ) -> TokenLoss:
        """The clipped surrogate of PPO with the group's advantage at every token."""
        temperature = self._config.rollout.temperature
        tokens_N = sampled_ids([row.scored for row in rows], hidden_NH.device)
        now_N = token_logprobs(head, hidden_NH, tokens_N, temperature)
        advantage_N = torch.tensor(
            [row.advantage for row in rows for _ in range(row.trajectory.sampled_tokens)],
            device=hidden_NH.device,
        )
        sampled_N = sampling_logprobs(rows, hidden_NH.device)
        return TokenLoss(
            losses.policy_gradient(now_N, sampled_N, advantage_N, self._config.grpo.clip)
        )


def sampling_logprobs(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Log-probabilities under which the tokens were drawn: sampled_N."""
    values = [
        logprob
        for row in rows
        for logprob, mask in zip(row.trajectory.logprobs, row.trajectory.sampled_mask, strict=True)
        if mask
    ]
    return torch.tensor(values, device=device)


def _indices(context: PeerContext) -> tuple[int, ...]:
    return tuple(t.index for t in (*context.successes, *context.failures))
