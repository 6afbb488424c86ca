"""The one configuration tree: frozen, unknown keys refused, impossible combinations refused."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every section: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EnvSection(Section):
    """Which environment, how hard, from which data."""

    name: str = Field("code", description="environment, or package.module:Class")
    level: int | None = Field(None, ge=1, description="difficulty of procedural tasks")
    data: str | None = Field(None, description="JSONL of training tasks instead of procedural ones")
    eval_data: str | None = Field(None, description="JSONL of held-out tasks; needed with data")
    options: dict[str, bool | int | float | str | tuple[str, ...]] = Field(
        default_factory=dict, description="its own: --set env.options.reveal=nothing for code"
    )
    max_turns: int = Field(8, ge=1)
    max_tool_calls: int = Field(16, ge=1)
    max_observation_chars: int = Field(2000, ge=50)
    max_episode_s: float = Field(120.0, gt=0)

    @model_validator(mode="after")
    def _both_files(self) -> "EnvSection":
        if (self.data is None) != (self.eval_data is None):
            raise ValueError("env.data and env.eval_data go together: set both or neither")
        if self.data is not None and self.level is not None:
            raise ValueError("env.level grades procedural tasks and does nothing with env.data")
        return self


class SandboxSection(Section):
    """Where the code of a model runs."""

    backend: Literal["auto", "jail", "landlock", "docker", "unsafe_local"] = Field(
        "auto", description="auto: the first that works; see python -m sandboxes.check"
    )
    wall_s: float = Field(5.0, gt=0, description="one execution")
    memory_mb: int = Field(512, ge=128, description="of each process")
    max_sessions: int = Field(256, ge=2, description="open at once; a further one waits")
    image: str | None = Field(None, description="docker; else that of python -m sandboxes.image")
    runtime: str | None = Field(None, description="docker, such as runsc")
    allow_unsafe: bool = Field(False, description="unsafe_local runs code with all your rights")

    @model_validator(mode="after")
    def _of_its_backend(self) -> "SandboxSection":
        if (self.image or self.runtime) and self.backend != "docker":
            raise ValueError(
                f"sandbox.image and sandbox.runtime are docker's; got backend={self.backend}"
            )
        if (self.backend == "unsafe_local") != self.allow_unsafe:
            raise ValueError(
                "sandbox.backend=unsafe_local and sandbox.allow_unsafe=true go together: that "
                "backend runs a model's code with all of your rights"
            )
        return self


class ModelSection(Section):
    """The student's base model."""

    name: str = Field("pocket", description="`pocket`, a folder, or a name on the model hub")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    chat_template: str | None = Field(None, description="a jinja file instead of the model's own")
    gradient_checkpointing: bool = False
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="auto: the library's choice; flash_attention_2 on GPUs"
    )
    compile: bool = Field(False, description="torch.compile the layers, on GPUs")
    liger: bool = Field(False, description="Liger kernels, on GPUs")


class LoraSection(Section):
    """The student's adapter."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class RolloutSection(Section):
    """How trajectories are sampled."""

    tasks_per_step: int = Field(8, ge=1)
    group_size: int = Field(8, ge=1)
    engine: Literal["auto", "transformers", "vllm", "server"] = Field(
        "auto", description="what samples; auto: vllm where it and a GPU are present"
    )
    server: str | None = Field(
        None, description="address of an OpenAI-compatible server: http://127.0.0.1:8000"
    )
    server_adapters: str | None = Field(
        None, description="folder that the server sees, too; else the run's own"
    )
    server_timeout_s: float = Field(
        300.0, gt=0, description="a turn that takes longer is asked again"
    )
    kv_cache_gib: float | None = Field(
        None, gt=0, description="vllm's memory; else enough for all episodes at full length"
    )
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(256, ge=1, description="sampled tokens of one episode")
    max_context: int = Field(1024, ge=32, description="tokens of a whole transcript")
    reproducible: bool = Field(
        True, description="equal seeds, equal tokens; false: no episode waits for another's tools"
    )
    max_concurrent: int = Field(128, ge=1, description="episodes in one decoding batch")
    merge_adapter: bool = Field(
        True, description="sample with the adapter inside the weights: faster, one more copy"
    )
    tool_workers: int = Field(4, ge=1, description="threads that run tools and judges")

    @model_validator(mode="after")
    def _of_its_engine(self) -> "RolloutSection":
        if (self.engine == "server") != (self.server is not None):
            raise ValueError(
                f"rollout.engine=server and rollout.server=http://... go together; got engine="
                f"{self.engine} and server={self.server}"
            )
        if self.server_adapters is not None and self.engine != "server":
            raise ValueError("rollout.server_adapters is for rollout.engine=server; leave it out")
        if self.kv_cache_gib is not None and self.engine in ("transformers", "server"):
            raise ValueError("rollout.kv_cache_gib is for rollout.engine=vllm; leave it out")
        return self


class PeersSection(Section):
    """Which peers of a rollout the teacher sees (the published switches)."""

    successes: int | Literal["all"] = Field(2)
    failures: int | Literal["all"] = Field(1)
    failure_shown: Literal["always", "with_success", "without_success"] = Field(
        "with_success",
        description="failures alone mislead a small teacher: it repeats what it is shown",
    )
    feedback_shown: Literal["never", "always", "without_success"] = "without_success"
    without_evidence: Literal["skip", "anchor"] = "skip"
    cut_off_failures: bool = Field(
        False, description="show failed peers that a limit cut off in the middle"
    )
    success_threshold: float = Field(1.0, description="a reward from here on is a success")

    @model_validator(mode="after")
    def _some_slot(self) -> "PeersSection":
        for name in ("successes", "failures"):
            value = getattr(self, name)
            if value != "all" and value < 0:
                raise ValueError(f"peers.{name} is {value}; expected 0, 1, 2, ... or 'all'")
        unseen = self.successes == 0 and self.failure_shown == "with_success"
        if unseen and self.failures != 0:
            raise ValueError(
                "peers.successes is 0 and peers.failure_shown is 'with_success': no failure would "
                "ever be shown; set peers.failure_shown='always', or peers.failures=0"
            )
        return self


class PromptSection(Section):
    """The wording of the teacher's prompt, and its budget."""

    max_tokens: int = Field(1024, ge=64, description="the teacher's prompt, without the response")
    max_peer_tokens: int = Field(1024, ge=16, description="one peer's transcript")
    keep_thinking: bool = False
    first_success: str = "A correct solution:\n{peer}"
    other_success: str = "Another successful solution:\n{peer}"
    failure: str = "A known failed solution, whose mistake must be avoided:\n{peer}"
    feedback: str = "Feedback from your unsuccessful earlier attempt:\n{feedback}"
    closing: str = "Now solve the original question correctly."

    @model_validator(mode="after")
    def _slots(self) -> "PromptSection":
        slots = {"first_success": "{peer}", "other_success": "{peer}", "failure": "{peer}"}
        for name, slot in {**slots, "feedback": "{feedback}"}.items():
            if getattr(self, name).count(slot) != 1:
                raise ValueError(
                    f"prompt.{name} needs {slot} exactly once: {getattr(self, name)!r}"
                )
        return self


class TeacherSection(Section):
    """Who judges the tokens."""

    kind: Literal["ema", "base", "live"] = "ema"
    ema_rate: float = Field(0.05, gt=0, le=1, description="share of the student taken each step")


class LossSection(Section):
    """The divergence between student and teacher."""

    divergence: Literal["jsd", "forward_kl", "reverse_kl"] = "jsd"
    alpha: float = Field(0.5, gt=0, lt=1, description="of the generalised JSD")
    top_k: int | None = Field(100, ge=1, description="student's top k; none: whole vocabulary")
    tail: bool = True
    importance_clip: float | None = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _alpha_is_used(self) -> "LossSection":
        if self.divergence != "jsd" and "alpha" in self.model_fields_set and self.alpha != 0.5:
            raise ValueError(
                f"loss.alpha={self.alpha} has no effect with loss.divergence={self.divergence}; "
                "use divergence=jsd or leave alpha out"
            )
        return self


class GrpoSection(Section):
    """Settings of `--algo grpo` only."""

    clip: float = Field(0.2, gt=0, description="PPO clip range of the ratio")
    scale_by_std: bool = True


class OptimSection(Section):
    """The optimizer step."""

    lr: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch: int = Field(16, ge=1, description="rollouts in one forward and backward")


class EvalSection(Section):
    """The held-out evaluation before and after training."""

    tasks: int = Field(64, ge=2)
    samples: int = Field(4, ge=1)
    every: int | None = Field(None, ge=1, description="also every so many steps")


class CheckpointSection(Section):
    """What `--resume` starts from."""

    every: int = Field(5, ge=1)
    keep: int = Field(2, ge=1)


class Config(Section):
    """Everything that a run is made of; `config.toml` of a run's folder is this tree."""

    algo: Literal["mopd", "grpo"] = "mopd"
    steps: int = Field(30, ge=1)
    seed: int = Field(0, ge=0)
    env: EnvSection = EnvSection()
    sandbox: SandboxSection = SandboxSection()
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    rollout: RolloutSection = RolloutSection()
    peers: PeersSection = PeersSection()
    prompt: PromptSection = PromptSection()
    teacher: TeacherSection = TeacherSection()
    loss: LossSection = LossSection()
    grpo: GrpoSection = GrpoSection()
    optim: OptimSection = OptimSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.rollout.max_new_tokens >= self.rollout.max_context:
            raise ValueError(
                f"rollout.max_new_tokens={self.rollout.max_new_tokens} leaves no room for the "
                f"prompt in rollout.max_context={self.rollout.max_context}"
            )
        if self.algo == "grpo":
            if self.rollout.group_size < 2:
                raise ValueError(
                    "grpo compares rollouts of a task: rollout.group_size must be >= 2"
                )
            for name, default in (("teacher", TeacherSection()), ("loss", LossSection())):
                if getattr(self, name) != default:
                    raise ValueError(f"[{name}] has no effect with algo=grpo; leave it out")
        if self.algo == "mopd":
            if self.grpo != GrpoSection():
                raise ValueError("[grpo] has no effect with algo=mopd; leave it out")
            peers = self.peers
            shown = (peers.successes, peers.failures)
            if self.rollout.group_size < 2 and shown != (0, 0):
                raise ValueError(
                    "mopd needs peers: rollout.group_size must be >= 2 (or, for feedback alone, "
                    "peers.successes=0 and peers.failures=0)"
                )
            if (
                peers.successes == 0
                and peers.failures == 0
                and peers.feedback_shown == "never"
                and peers.without_evidence == "skip"
            ):
                raise ValueError(
                    "no evidence is ever shown (peers.successes=0, peers.failures=0, "
                    "peers.feedback_shown=never), so no rollout would take part in the loss"
                )
        return self

    def as_dict(self) -> dict[str, Any]:
        """The tree as plain JSON types."""
        return self.model_dump(mode="json")
