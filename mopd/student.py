"""The student: a frozen base model with LoRA adapters, one that learns and maybe a teacher's."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, LoraModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from agents import pocket
from mopd.config import LoraSection, ModelSection
from mopd.kernels import attention_of, speed_up
from mopd.scoring import Scored, sampled_hidden

STUDENT, TEACHER = "student", "teacher"


def model_path(name: str) -> str:
    """Where `from_pretrained` finds a model; `pocket` is the embedded one."""
    return str(pocket.PATH) if name == "pocket" else name


def device_of(section: ModelSection) -> torch.device:
    """The device to train on.

    Raises:
        ValueError: `cuda` is asked for and there is none.
    """
    if section.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device=cuda, but torch sees no CUDA device; use auto or cpu")
    if section.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def dtype_of(section: ModelSection, device: torch.device) -> torch.dtype:
    """float32 on a CPU and bfloat16 on a GPU, unless the configuration says otherwise."""
    if section.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[section.dtype]


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the configured chat template where there is one.

    Raises:
        ValueError: no such model, or no such template file.
    """
    folder = Path(model_path(section.name))
    if (folder.is_absolute() or section.name.startswith(".") or folder.is_dir()) and not (
        folder / "config.json"
    ).is_file():
        raise ValueError(
            f"model.name={section.name}: there is no {folder / 'config.json'} (expected 'pocket', "
            "the folder of a model, or a name on the hub)"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_path(section.name))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.name={section.name}: {reason} (expected 'pocket', a folder, or a hub name)"
        ) from error
    if section.chat_template is not None:
        try:
            tokenizer.chat_template = Path(section.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"model.chat_template: {error}") from error
    return tokenizer


def load_student(model: ModelSection, lora: LoraSection, *, seed: int) -> PeftModel:
    """The base model with a fresh adapter `student`; only the adapter is trainable.

    Raises:
        ValueError: the model's logits are not its output layer's, so that they would be misread.
    """
    device = device_of(model)
    path = model_path(model.name)
    # Any: the decorators of transformers hide the signature of `to`.
    base: Any = AutoModelForCausalLM.from_pretrained(
        path,
        config=_without_dropout(path),
        dtype=dtype_of(model, device),
        attn_implementation=attention_of(model),
    )
    base.to(device)
    speed_up(base, model)
    _check_head(base, model.name)
    if model.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    targets = lora.target_modules
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # a noisy student would be compared with a clean teacher
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(base, config, adapter_name=STUDENT)


def _without_dropout(path: str) -> PreTrainedConfig:
    """The model's configuration with every dropout off: a Trainer trains in training mode."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    text = config.get_text_config()
    for name, value in text.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(text, name, 0.0)
    return config


@torch.no_grad()
def _check_head(base: Any, name: str) -> None:
    """Refuse a model that scales or caps the logits behind its output layer."""
    row = Scored((0,), (1, 2, 3), (True, True, True))
    ids = torch.tensor([[*row.context_ids, *row.response_ids]], device=base.device)
    wanted = base(input_ids=ids).logits[0, :-1].float()
    got = base.get_output_embeddings()(sampled_hidden(base, [row])).float()
    error, size = float((got - wanted).abs().max()), float(wanted.abs().max())
    if error > 0.02 * size:
        raise ValueError(
            f"model.name={name}: its logits differ by {error:.2g} (of {size:.2g}) from its output "
            "layer's at the last hidden states, expected the same; models that scale or cap "
            "their logits are not supported, use another one"
        )


def add_teacher_adapter(student: PeftModel) -> None:
    """A second adapter that starts as a copy of the student's.

    (An EMA that starts at zero would lag, and forget a pretrained adapter.)
    """
    student.add_adapter(TEACHER, student.peft_config[STUDENT])
    blend_teacher(student, 1.0)
    student.set_adapter(STUDENT)


@torch.no_grad()
def blend_teacher(student: PeftModel, rate: float) -> None:
    """Move the teacher's adapter a share `rate` towards the student's (EMA of A and of B)."""
    named = dict(student.named_parameters())
    for name, parameter in named.items():
        if f".{TEACHER}." in name:
            parameter.lerp_(named[name.replace(f".{TEACHER}.", f".{STUDENT}.")], rate)


def save_adapter(student: PeftModel, path: Path) -> None:
    """Write the student's adapter where PEFT and vLLM expect one."""
    aside = path.with_name(path.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    student.save_pretrained(str(aside), selected_adapters=[STUDENT])
    shutil.rmtree(path, ignore_errors=True)
    (aside / STUDENT).rename(path)
    shutil.rmtree(aside)


@contextmanager
def acting(student: PeftModel, adapter: str | None) -> Iterator[None]:
    """Run the model with another adapter, or with None as the bare base; nothing is trainable."""
    if adapter == STUDENT:
        yield
    elif adapter is None:
        with student.disable_adapter():
            yield
    else:
        # inference_mode: otherwise PEFT would make this adapter trainable.
        tuner = cast(LoraModel, student.base_model)
        tuner.set_adapter(adapter, inference_mode=True)
        try:
            yield
        finally:
            tuner.set_adapter(STUDENT)


@contextmanager
def merged(student: PeftModel) -> Iterator[None]:
    """Sample from the student with its adapter inside the base weights, at no cost a token.

    The base weights come back bit for bit: they are put aside, not subtracted again. Costs one
    more copy of the adapted matrices, and in bfloat16 a rounding that the importance weight sees.
    """
    # Any: `get_delta_weight` belongs to the subclasses of LoraLayer, which share no protocol.
    layers: list[Any] = [module for module in student.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    originals = [weight.data for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            weight.data = weight.data + layer.get_delta_weight(STUDENT).to(weight.dtype)
        with student.disable_adapter():
            yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data = original
