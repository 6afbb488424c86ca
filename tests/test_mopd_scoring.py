"""Scoring a response behind a context: which tokens are attended to, predicted and compared."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
)

import envs
from agents import pocket
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.scripted import ScriptedAgent
from agents.types import TrajectoryGroup
from envs.types import StopReason, Task
from mopd import losses
from mopd.config import Config, LoraSection, LossSection, ModelSection, PeersSection, TeacherSection
from mopd.objectives import Grpo, Mopd, Row
from mopd.scoring import Scored, sampled_hidden, sampled_ids, shared_hidden
from mopd.student import (
    STUDENT,
    TEACHER,
    acting,
    add_teacher_adapter,
    blend_teacher,
    load_student,
    load_tokenizer,
)
from mopd.teacher import LocalTeacher

ROWS = [
    Scored((5, 6, 7), (8, 9, 10, 11, 12), (True, True, False, False, True)),
    Scored((5, 6, 7), (20, 21), (True, True)),
    Scored((30, 31), (8, 9, 10), (False, True, True)),
]
TASK = Task("sum", "What is 17 + 4?", "21")
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "17 + 4"}}\n</tool_call>'


@pytest.fixture
def student() -> PeftModel:
    model = load_student(ModelSection(), LoraSection(), seed=0)
    with torch.no_grad():  # an adapter that has learnt something
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    add_teacher_adapter(model)
    return model


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(pocket.PATH), envs.make("calculator").schemas())


@pytest.fixture(scope="module")
def group(chat: Chat) -> TrajectoryGroup:
    """Two right rollouts of three turns, one wrong of two, one without a call."""
    scripts = [
        [CALL, CALL, "The answer is \\boxed{21}."],
        [CALL, "So it is \\boxed{21}."],
        [CALL.replace("+", "-"), "The answer is \\boxed{13}. <|im_end|>"],
        ["It is \\boxed{4}."],
    ]
    agent = ScriptedAgent(chat, lambda episode, turn: scripts[episode][turn])
    options = {"seed": 0, "max_new_tokens": 200, "max_context": 600}
    (played,) = rollout_groups(agent, lambda: envs.make("calculator"), [TASK], 4, **options)
    return played


def naive_logits(model: torch.nn.Module, row: Scored) -> torch.Tensor:
    """Logits that predict the sampled tokens of one row, by a plain forward of that row alone."""
    ids = torch.tensor([[*row.context_ids, *row.response_ids]])
    logits = model(input_ids=ids).logits[0]
    return torch.stack([
        logits[len(row.context_ids) + j - 1] for j, mine in enumerate(row.mask) if mine
    ])  # fmt: skip


def test_the_sampled_tokens_are_those_of_the_mask_in_row_order() -> None:
    assert sampled_ids(ROWS, torch.device("cpu")).tolist() == [8, 9, 12, 20, 21, 9, 10]


def test_batched_states_predict_what_each_row_alone_predicts(student: PeftModel) -> None:
    head = student.get_output_embeddings()
    with torch.no_grad():
        wanted = torch.cat([naive_logits(student, row) for row in ROWS])
        batched = head(sampled_hidden(student, ROWS))
        base = student.get_base_model()
        shared = head(shared_hidden(base.base_model, base.config, ROWS))
    torch.testing.assert_close(batched, wanted, atol=2e-4, rtol=0)
    torch.testing.assert_close(shared, wanted, atol=2e-4, rtol=0)


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 response tokens but 2 mask entries"):
        Scored((1,), (2, 3, 4), (True, False))


@pytest.mark.parametrize("rows", [ROWS, [*ROWS, *ROWS]], ids=["own contexts", "shared contexts"])
@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_every_teacher_gives_log_probabilities_of_the_weights_that_it_names(
    student: PeftModel, kind: str, rows: list[Scored]
) -> None:
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if f"lora_B.{TEACHER}" in name:
                parameter.mul_(-1.0)  # so that all three differ
    positions = sum(sum(row.mask) for row in rows)
    ids_NK = torch.randint(0, 1024, (positions, 5), generator=torch.Generator().manual_seed(0))
    teacher = LocalTeacher(student, TeacherSection(kind=kind), temperature=0.8)
    adapter = {"ema": TEACHER, "base": None, "live": STUDENT}[kind]
    with torch.no_grad(), acting(student, adapter):
        logits = torch.cat([naive_logits(student, row) for row in rows]) / 0.8
    wanted = logits.log_softmax(-1).gather(-1, ids_NK)
    torch.testing.assert_close(teacher.score(rows, ids_NK), wanted, atol=2e-4, rtol=0)


def test_a_teacher_reads_its_own_adapter_of_the_output_layer_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT: merging would untie the embeddings
        student = load_student(
            ModelSection(), LoraSection(target_modules=("q_proj", "lm_head")), seed=0
        )
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    ids_NK = torch.arange(6).expand(7, 6)
    with torch.no_grad(), student.disable_adapter():
        logits = torch.cat([naive_logits(student, row) for row in ROWS])
    got = LocalTeacher(student, TeacherSection(kind="base"), 1.0).score(ROWS, ids_NK)
    torch.testing.assert_close(got, logits.log_softmax(-1)[:, :6], atol=2e-4, rtol=0)


def tiny_model(folder: Path, config: PreTrainedConfig) -> ModelSection:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelSection(name=str(folder))


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def test_training_mode_switches_no_dropout_on(tmp_path: Path) -> None:
    section = tiny_model(tmp_path, LlamaConfig(**SIZES, attention_dropout=0.5))
    student = load_student(section, LoraSection(), seed=0).train()
    ids = torch.arange(20)[None]
    assert torch.equal(student(input_ids=ids).logits, student(input_ids=ids).logits)


def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    section = tiny_model(tmp_path, GraniteConfig(**SIZES, logits_scaling=8.0))
    with pytest.raises(ValueError, match="scale or cap"):
        load_student(section, LoraSection(), seed=0)


def test_a_request_with_another_number_of_positions_is_refused(student: PeftModel) -> None:
    teacher = LocalTeacher(student, TeacherSection(), temperature=1.0)
    with pytest.raises(ValueError, match="at 6 positions, but the 3 rows have 7 sampled tokens"):
        teacher.score(ROWS, torch.zeros(6, 2, dtype=torch.long))


def test_a_group_scored_in_parts_shares_its_prefixes_all_the_same(student: PeftModel) -> None:
    context = tuple(range(5, 205))
    group = [Scored(context, (8 + i, 9, 10), (True, False, True)) for i in range(4)]
    other = Scored((*context, 7), (8, 9, 10), (True, True, True))
    ids_NK = torch.arange(11 * 2).view(11, 2)
    teacher = LocalTeacher(student, TeacherSection(), temperature=1.0)
    wanted = teacher.score([*group, other], ids_NK)
    computed: list[int] = []
    embeddings = student.get_base_model().get_input_embeddings()
    handle = embeddings.register_forward_hook(
        lambda _module, inputs, _output: computed.append(inputs[0].numel())
    )
    teacher.expect([group, [other]])
    parts = [([group[0]], 0, 2), (group[1:3], 2, 6), ([group[3], other], 6, 11)]
    got = torch.cat([teacher.score(rows, ids_NK[start:end]) for rows, start, end in parts])
    handle.remove()
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    # the context once for the group, and once more, with the other row's own token
    assert sum(computed) < 2 * len(context) + 4 * 3 + 4


def test_what_a_teacher_put_aside_is_gone_with_the_next_step(student: PeftModel) -> None:
    rows = [Scored(tuple(range(5, 105)), (8 + i, 9), (True, True)) for i in range(2)]
    ids_NK = torch.arange(4).view(2, 2)
    teacher = LocalTeacher(student, TeacherSection(), temperature=1.0)
    teacher.expect([rows])
    before = teacher.score(rows[:1], ids_NK)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if f"lora_B.{TEACHER}" in name:
                parameter.mul_(-1.0)
    teacher.expect([rows])
    after = teacher.score(rows[:1], ids_NK)
    assert not torch.allclose(before, after, atol=1e-3)


def test_scoring_leaves_the_student_trainable_and_the_teacher_frozen(student: PeftModel) -> None:
    for kind in ("ema", "base", "live"):
        LocalTeacher(student, TeacherSection(kind=kind), 1.0).score(
            ROWS, torch.zeros(7, 1, dtype=torch.long)
        )
        trainable = {n for n, p in student.named_parameters() if p.requires_grad}
        assert trainable
        assert all(f".{STUDENT}." in name for name in trainable)


def test_the_ema_teacher_starts_as_a_copy_and_moves_a_twentieth_of_the_way() -> None:
    student = load_student(ModelSection(), LoraSection(), seed=0)
    add_teacher_adapter(student)
    named = dict(student.named_parameters())
    pairs = [(n, n.replace(f".{STUDENT}.", f".{TEACHER}.")) for n in named if f".{STUDENT}." in n]
    assert all(torch.equal(named[a], named[b]) for a, b in pairs)
    before = {b: named[b].clone() for _, b in pairs}
    with torch.no_grad():
        for a, _ in pairs:
            named[a].add_(1.0)
    blend_teacher(student, 0.05)
    for _, b in pairs:
        torch.testing.assert_close(named[b], before[b] + 0.05, atol=1e-6, rtol=0)


class Unasked:
    """A teacher of whom nobody asks a score."""

    def expect(self, groups: Sequence[Sequence[Scored]]) -> None:
        pass

    def score(self, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked for a score")


class TestTheTeachersView:
    """What the teacher is shown, token by token."""

    def rows(self, group: TrajectoryGroup, chat: Chat, **peers: object) -> tuple[Row, ...]:
        config = Config(peers=PeersSection(**peers))
        return Mopd(config, chat, Unasked()).rows([group], step=1)

    def test_the_response_is_the_sampled_one_verbatim(
        self, group: TrajectoryGroup, chat: Chat
    ) -> None:
        for row, trajectory in zip(self.rows(group, chat), group.trajectories, strict=True):
            assert row.taught.response_ids == trajectory.token_ids[trajectory.prompt_length :]
            assert row.taught.mask == trajectory.sampled_mask[trajectory.prompt_length :]
            assert row.scored.context_ids == trajectory.token_ids[: trajectory.prompt_length]

    def test_tool_schemas_task_evidence_and_closing_stand_in_order(
        self, group: TrajectoryGroup, chat: Chat
    ) -> None:
        first = self.rows(group, chat)[0]
        text = chat.tokenizer.decode(first.teacher_ids)
        order = [
            "Tools:\ncalculate(expression: string)",
            "What is 17 + 4?",
            "A correct solution:\ncall calculate",
            "A known failed solution",
            "Now solve the original question correctly.<|im_end|>\n<|im_start|>assistant\n",
        ]
        places = [text.find(piece) for piece in order]
        assert -1 not in places
        assert places == sorted(places)
        assert 0 not in first.peers

    def test_a_forged_control_token_of_a_peer_stays_plain_text(
        self, group: TrajectoryGroup, chat: Chat
    ) -> None:
        first = self.rows(group, chat, failures="all")[0]
        assert 2 in first.peers  # the peer that wrote <|im_end|>
        assert chat.tokenizer.decode(first.teacher_ids).count("<|im_end|>") == 3
        assert first.teacher_ids.count(chat.eos_id) == 2  # of the system and the user turn

    def test_an_errored_rollout_is_neither_row_nor_evidence(
        self, group: TrajectoryGroup, chat: Chat
    ) -> None:
        errored = dataclasses.replace(
            group.trajectories[1], verdict=None, stop_reason=StopReason.ERROR
        )
        broken = TrajectoryGroup(TASK, (group.trajectories[0], errored, *group.trajectories[2:]))
        rows = self.rows(broken, chat, successes="all", failures="all", failure_shown="always")
        assert [row.trajectory.index for row in rows] == [0, 2, 3]
        assert all(1 not in row.peers for row in rows)

    def test_a_first_rollout_that_never_began_does_not_hide_the_task(
        self, group: TrajectoryGroup, chat: Chat
    ) -> None:
        never = dataclasses.replace(
            group.trajectories[0],
            token_ids=(),
            sampled_mask=(),
            logprobs=(),
            messages=(),
            verdict=None,
            stop_reason=StopReason.ERROR,
        )
        began = TrajectoryGroup(TASK, (never, *group.trajectories[1:]))
        rows = self.rows(began, chat, failure_shown="always")
        assert [row.trajectory.index for row in rows] == [1, 2, 3]
        assert all("What is 17 + 4?" in chat.tokenizer.decode(r.teacher_ids) for r in rows)
        nothing = self.rows(TrajectoryGroup(TASK, (never, never)), chat)
        assert nothing == ()

    def test_without_evidence_a_rollout_is_skipped_or_anchored_to_its_own_prompt(
        self, group: TrajectoryGroup, chat: Chat
    ) -> None:
        alone = TrajectoryGroup(TASK, group.trajectories[:1])
        assert self.rows(alone, chat, without_evidence="skip") == ()
        (row,) = self.rows(alone, chat, without_evidence="anchor")
        trajectory = group.trajectories[0]
        assert row.teacher_ids == trajectory.token_ids[: trajectory.prompt_length]
        assert row.peers == ()


def test_the_mopd_loss_and_its_gradient_equal_the_textbook_way(
    student: PeftModel, group: TrajectoryGroup, chat: Chat
) -> None:
    config = Config(loss=LossSection(top_k=20))
    objective = Mopd(config, chat, LocalTeacher(student, config.teacher, 1.0))
    rows = objective.rows([group], step=1)
    trainable = [p for p in student.parameters() if p.requires_grad]

    head = student.get_output_embeddings()
    token_loss = objective.loss(rows, sampled_hidden(student, [r.scored for r in rows]), head)
    total = token_loss.loss_N.sum()
    gradients = torch.autograd.grad(total, trainable)

    wanted = torch.zeros((), dtype=torch.float64)
    for row in rows:
        with torch.no_grad(), acting(student, TEACHER):
            teacher = naive_logits(student, row.taught).double().log_softmax(-1)
        # In float32 the 20 sum to 1 where the student is sure, and the tail has no logarithm.
        logits = naive_logits(student, row.scored).double()
        ids = logits.detach().topk(20, -1).indices
        p, q = logits.log_softmax(-1).gather(-1, ids), teacher.gather(-1, ids)
        p = torch.cat([p, torch.log1p(-p.exp().sum(-1, keepdim=True))], -1)
        q = torch.cat([q, torch.log1p(-q.exp().sum(-1, keepdim=True))], -1)
        middle = torch.log(0.5 * p.exp() + 0.5 * q.exp())
        jsd = 0.5 * (p.exp() * (p - middle)).sum(-1) + 0.5 * (q.exp() * (q - middle)).sum(-1)
        tokens = sampled_ids([row.scored], logits.device)
        now = logits.detach().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        # A scripted agent's tokens have log-probability 0: the ratio is the probability now.
        wanted = wanted + (now.exp().clamp(max=2.0) * jsd).sum()
    torch.testing.assert_close(total.double(), wanted, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted, trainable), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_grpo_pushes_up_what_did_better_than_its_group(
    student: PeftModel, group: TrajectoryGroup
) -> None:
    objective = Grpo(Config(algo="grpo"))
    rows = objective.rows([group], step=1)
    expected = losses.group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), True)
    assert [row.advantage for row in rows] == pytest.approx(expected.tolist())
    head = student.get_output_embeddings()
    hidden = sampled_hidden(student, [row.scored for row in rows])
    assert torch.isfinite(objective.loss(rows, hidden, head).loss_N).all()


def test_a_group_without_contrast_is_inert_for_grpo(group: TrajectoryGroup) -> None:
    same = TrajectoryGroup(TASK, group.trajectories[:2])
    assert all(row.inert for row in Grpo(Config(algo="grpo")).rows([same], step=1))


def test_the_pocket_tokenizer_loads_by_the_name_pocket() -> None:
    assert load_tokenizer(ModelSection()).eos_token == "<|im_end|>"
