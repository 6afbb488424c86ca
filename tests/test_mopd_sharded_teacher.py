"""A teacher whose weights lie on several ranks: every rank runs the same number of forwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mopd.config import LoraSection, ModelSection, TeacherSection
from mopd.scoring import Scored
from mopd.student import add_teacher_adapter, load_student
from mopd.teacher import LocalTeacher

CONTEXT = tuple(range(5, 105))
ROWS = [Scored(CONTEXT, (8 + i, 9, 10), (True, False, True)) for i in range(4)]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A real process group of one rank."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_sharded_model_runs_one_padded_forward_and_scores_the_same() -> None:
    student = load_student(ModelSection(), LoraSection(), seed=0)
    add_teacher_adapter(student)
    teacher = LocalTeacher(student, TeacherSection(), temperature=1.0)
    ids_NK = torch.arange(8 * 3).view(8, 3)
    calls: list[torch.Size] = []
    student.get_base_model().model.embed_tokens.register_forward_hook(
        lambda _module, inputs, _output: calls.append(inputs[0].shape)
    )
    wanted = teacher.score(ROWS, ids_NK)
    assert len(calls) > 1  # the shared prefix, then what is behind it
    calls.clear()
    fully_shard(student, mesh=init_device_mesh("cpu", (1,)))
    got = teacher.score(ROWS, ids_NK)
    assert calls == [torch.Size((4, 103))]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
