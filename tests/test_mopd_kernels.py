"""Faster kernels, one switch each: refused where they cannot run, followed where they can."""

import importlib.util

import pytest
import torch

from mopd.config import Config, LoraSection, ModelSection
from mopd.experiment import preflight
from mopd.kernels import refuse_kernels
from mopd.student import load_student

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SWITCHES = {"attention": "flash_attention_2", "compile": True, "liger": True}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_for_gpus_is_refused_on_a_cpu_before_a_run_starts(switch: str) -> None:
    section = ModelSection(device="cpu", **{switch: SWITCHES[switch]})
    with pytest.raises(ValueError, match=rf"model\.{switch}=.* needs a CUDA device, got cpu"):
        preflight(Config(model=section))


@pytest.mark.parametrize(
    ("switch", "module", "package"),
    [("attention", "flash_attn", "flash-attn"), ("liger", "liger_kernel", "liger-kernel")],
)
def test_what_is_not_installed_is_refused_with_the_command_that_installs_it(
    switch: str, module: str, package: str
) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{package} is installed")
    section = ModelSection(**{switch: SWITCHES[switch]})
    with pytest.raises(ValueError, match=f"pip install {package}"):
        refuse_kernels(section, CUDA, torch.bfloat16)


def test_flash_attention_is_refused_in_float32() -> None:
    with pytest.raises(ValueError, match=r"needs model\.dtype=bfloat16"):
        refuse_kernels(ModelSection(attention="flash_attention_2"), CUDA, torch.float32)


def test_without_a_switch_nothing_is_refused() -> None:
    refuse_kernels(ModelSection(), CPU, torch.float32)
    refuse_kernels(ModelSection(attention="eager"), CPU, torch.float32)


@pytest.mark.parametrize(("asked", "used"), [("auto", "sdpa"), ("eager", "eager")])
def test_the_student_attends_as_configured(asked: str, used: str) -> None:
    student = load_student(ModelSection(attention=asked), LoraSection(), seed=0)
    assert student.get_base_model().config._attn_implementation == used
