"""Which engine a run has, and what it is told where it cannot have it."""

import json
from pathlib import Path

import pytest
import torch

from envs.run import main as run
from mopd.config import Config
from mopd.engines import engine_line, engine_of, kv_cache_bytes


def config(**rollout: object) -> Config:
    return Config.model_validate({"rollout": rollout})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_transformers_is_the_default() -> None:
    assert engine_of(config()) == "transformers"
    assert engine_of(config(engine="vllm")) == "vllm"
    assert engine_line(config()).startswith("transformers ")


def test_the_cache_holds_every_episode_at_full_length_unless_it_is_set() -> None:
    # 4 layers x keys and values x 2 heads x 32 x 4 bytes = 2 KiB a token.
    big = config(max_context=1000, max_new_tokens=100, max_concurrent=1000, tasks_per_step=125)
    assert kv_cache_bytes(big) == 2048 * (1000 * 1024 + 32)
    assert kv_cache_bytes(config(max_concurrent=4)) == 2**28
    assert kv_cache_bytes(config(engine="vllm", kv_cache_gib=3.0)) == 3 * 2**30


def test_a_model_whose_shape_is_unknown_needs_the_caches_size(tmp_path: Path) -> None:
    settings = {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    strange = Config.model_validate({"model": {"name": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"rollout\.kv_cache_gib is needed: "):
        kv_cache_bytes(strange)


def test_a_temperature_that_vllm_would_raise_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mopd.engines.vllm_package", lambda: "vllm 0.0")
    settings = ["rollout.engine=vllm", "rollout.temperature=0.005"]
    flags = [word for setting in settings for word in ("--set", setting)]
    assert run(["--env", "calculator", "--dry-run", *flags]) == 2
    assert "vLLM would sample at 0.01" in capsys.readouterr().err
