"""How the student's weights reach the engine that samples, and the proof that they have."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from agents.adapters import Adapter, AdapterAgent
from agents.base import Agent, EngineError, TurnRequest
from agents.types import Turn, TurnEnd
from mopd.head import scaled_logits
from mopd.scoring import Scored, sampled_hidden, sampled_ids
from mopd.student import STUDENT, acting, merged, save_adapter

TEXT = "Paris is a city. 17 + 4 = 21. def f(x): return 2 * x. The answer is"
PROBES, PROMPT_TOKENS, SAID_TOKENS = 4, 8, 16
# What the engine may differ by on average: as much as without an adapter, with some room, and
# what adding the adapter rounds. Measured on the pocket student: 2e-6 in float32, where the
# adapter of the step before is off by 1e-3 and more; up to 0.05 in bfloat16, merged.
ROOM, ROUNDING, HALF_ROUNDING = 4.0, 2e-5, 0.1


class WrongWeightsError(RuntimeError):
    """The engine samples from other weights than the trainer's; the text says from which."""


class Weights(Protocol):
    """The way of the student's weights into the engine of `agent`."""

    @property
    def agent(self) -> Agent:
        """Who samples."""
        ...

    def push(self, version: str) -> None:
        """Give the engine the student as it is now, under a name.

        Raises:
            EngineError: the engine failed.
        """
        ...

    def student(self) -> AbstractContextManager[None]:
        """Inside, the engine samples from the student that was pushed last."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Inside, the engine samples from the bare base model."""
        ...


class SharedWeights:
    """For an engine that runs the trainer's own model: nothing travels."""

    def __init__(self, agent: Agent, student: PeftModel, *, merge: bool) -> None:
        self.agent = agent
        self._student, self._merge = student, merge

    def push(self, version: str) -> None:
        """See `Weights`."""
        self.agent.version = version

    def student(self) -> AbstractContextManager[None]:
        """See `Weights`."""
        return merged(self._student) if self._merge else nullcontext()

    def base(self) -> AbstractContextManager[None]:
        """See `Weights`."""
        return acting(self._student, None)


class FolderWeights:
    """For an engine that reads adapters from a folder, where each gets a place of its own."""

    def __init__(self, agent: AdapterAgent, student: PeftModel, folder: Path) -> None:
        self.agent: AdapterAgent = agent
        self._student, self._folder = student, folder
        self._adapter: Adapter | None = None
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed

    def push(self, version: str) -> None:
        """See `Weights`; what was pushed before is freed and deleted."""
        self.close()
        self.agent.version = version
        path = self._folder / version
        save_adapter(self._student, path)
        self._adapter = self.agent.add_adapter(path)

    def student(self) -> AbstractContextManager[None]:
        """See `Weights`."""
        self.agent.use_adapter(self._adapter)
        return nullcontext()

    def base(self) -> AbstractContextManager[None]:
        """See `Weights`."""
        self.agent.use_adapter(None)
        return nullcontext()

    def close(self) -> None:
        """Free and delete what was pushed last."""
        if self._adapter is not None:
            self.agent.remove_adapter(self._adapter)
        self._adapter = None
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def synced(
    weights: Weights,
    student: PeftModel,
    version: str,
    temperature: float,
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Inside, the engine samples from the student as it is now, which is proven first.

    An engine that fails at this gets a second chance, in which it starts anew.

    Raises:
        WrongWeightsError: it samples from something else.
        EngineError: it failed again.
    """
    try:
        weights.push(version)
        check_engine(weights, student, temperature)
    except EngineError as error:
        tell(f"{error}; starting it again")
        weights.push(version)
        check_engine(weights, student, temperature)
    with weights.student():
        yield


def check_engine(weights: Weights, student: PeftModel, temperature: float) -> float:
    """Compare what the engine and the trainer make of a fixed text; returns their distance.

    The engine continues the text from the bare base model, then from the student that was pushed
    last, and the trainer says how likely it finds each token. The distance is the mean difference
    of the log-probabilities.

    Raises:
        WrongWeightsError: the engine's base model or its adapter is not the trainer's.
        EngineError: the engine failed.
    """
    with weights.base():
        of_base = _say(weights.agent)
    with weights.student():
        of_student = _say(weights.agent)
    version = weights.agent.version
    noise = _distance(of_base, student, None, temperature)
    # Two builds of one model in half precision stay within this; another model does not.
    if noise > 0.1:
        raise WrongWeightsError(
            f"the engine's base model is not the trainer's: log-probabilities of a probe differ by "
            f"{noise:.2g} on average, expected less than 0.1; let both load the same model, and "
            "the engine give log-probabilities at the temperature of sampling (vLLM's server: "
            "--logprobs-mode processed_logprobs)"
        )
    distance = _distance(of_student, student, STUDENT, temperature)
    from_base = _distance(of_student, student, None, temperature)
    precise = cast(PreTrainedModel, student.get_base_model()).dtype == torch.float32
    limit = ROOM * noise + (ROUNDING if precise else HALF_ROUNDING)
    # An adapter that has hardly moved is nearer to the base than the limit is.
    missing = trained(student) and from_base < distance / 2
    if distance > limit or missing:
        reason = (
            "they are the base model's: the adapter is missing in the engine"
            if from_base <= max(limit, distance / 2)
            else "nor are they the base model's: the engine has a stale adapter, or another's"
        )
        raise WrongWeightsError(
            f"the engine does not sample from the weights of {version}: log-probabilities of a "
            f"probe differ by {distance:.2g} on average from the trainer's, expected less than "
            f"{limit:.2g}; {reason}. Nothing of this step was used; --resume goes on"
        )
    return distance


@torch.no_grad()
def trained(student: PeftModel) -> bool:
    """Whether the student's adapter says anything: a fresh one is zero."""
    return any(
        bool(cast(torch.nn.Linear, layer.lora_B[STUDENT]).weight.any())
        for layer in student.modules()
        if isinstance(layer, LoraLayer) and STUDENT in layer.lora_B
    )


def _say(agent: Agent) -> list[tuple[list[int], Turn]]:
    """Prompts, and the turns that the engine sampled behind them."""
    ids = agent.chat.encode_plain(TEXT)
    prompts = {
        i: [ids[(i * PROMPT_TOKENS + j) % len(ids)] for j in range(PROMPT_TOKENS)]
        for i in range(PROBES)
    }
    turns: dict[int, Turn] = {}
    try:
        agent.submit([TurnRequest(i, prompt, SAID_TOKENS, i) for i, prompt in prompts.items()])
        while len(turns) < len(prompts):
            for turn in agent.advance():
                if turn.end is TurnEnd.LOST:
                    raise EngineError(turn.error)
                turns[turn.episode] = turn
    finally:
        for i in prompts:
            agent.release(i)
    return [(prompt, turns[i]) for i, prompt in prompts.items()]


@torch.no_grad()
def _distance(
    said: list[tuple[list[int], Turn]],
    student: PeftModel,
    adapter: str | None,
    temperature: float,
) -> float:
    """Mean difference between the engine's log-probabilities and those of the trainer's model."""
    rows = [Scored(prompt, t.token_ids, [True] * len(t.token_ids)) for prompt, t in said]
    base = cast(PreTrainedModel, student.get_base_model())
    # The library's getter has no annotations.
    head: torch.nn.Linear = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    student.eval()  # as the engine samples
    with acting(student, adapter):
        hidden_NH = sampled_hidden(student, rows)
        logprobs_NV = scaled_logits(head, hidden_NH, temperature).log_softmax(-1)
    ids_N = sampled_ids(rows, logprobs_NV.device)
    ours_N = logprobs_NV.gather(-1, ids_N[:, None])[:, 0]
    theirs_N = torch.tensor([p for _, turn in said for p in turn.logprobs], device=ours_N.device)
    return float((ours_N - theirs_N).abs().mean())
