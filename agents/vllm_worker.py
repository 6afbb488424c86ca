"""The process around a vLLM engine, which it steps as it is told through a pipe.

Beside the process that trains, an engine can be killed, cannot touch its random state or threads,
and still meets the same batches in the same order in every run.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from agents.adapters import Adapter
from agents.vllm_messages import (
    Advance,
    Broken,
    Drop,
    EngineOptions,
    Forget,
    Order,
    Progress,
    Ready,
    Said,
    Say,
)

SILENCE_S = 1.0  # an `Advance` is answered at least so often, so that a hang is told from work


class Engine:
    """vLLM's engine in this process."""

    def __init__(self, options: EngineOptions) -> None:
        # Not installed where the types are checked: its pins exclude a current torch.
        from vllm import EngineArgs, LLMEngine, SamplingParams  # type: ignore[import-not-found]
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
        from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

        self._sampling, self._lora = SamplingParams, LoRARequest
        self._final: Any = RequestOutputKind.FINAL_ONLY
        self._eos_id = options.eos_id
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(options)))

    def say(self, order: Say) -> None:
        """Queue a turn."""
        sampling = self._sampling(
            temperature=order.temperature,
            max_tokens=order.max_new_tokens,
            seed=order.seed,
            logprobs=0,  # the sampled token's
            stop_token_ids=[self._eos_id],
            detokenize=False,
            output_kind=self._final,
        )
        prompt = {"prompt_token_ids": list(order.token_ids)}
        adapter = order.adapter
        lora = self._lora(adapter.name, adapter.number, adapter.folder) if adapter else None
        self._engine.add_request(order.key, prompt, sampling, lora_request=lora)

    def drop(self, keys: Sequence[str]) -> None:
        """Generate these no longer."""
        self._engine.abort_request(list(keys))

    def forget(self, adapter: Adapter) -> None:
        """Free an adapter and the cached prompts, so that what comes depends on nothing before."""
        self._engine.remove_lora(adapter.number)
        self._engine.reset_prefix_cache()

    def advance(self, steps: int | None) -> Progress:
        """Step until a turn ends, `steps` are done, or some time has passed."""
        begun, done = time.monotonic(), 0
        while self._engine.has_unfinished_requests():
            outputs = [output for output in self._engine.step() if output.finished]
            done += 1
            late = time.monotonic() - begun > SILENCE_S
            if outputs or late or (steps is not None and done >= steps):
                return Progress(done, tuple(map(_said, outputs)))
        return Progress(done, ())


def engine_arguments(options: EngineOptions) -> dict[str, Any]:
    """What vLLM is told, whichever of its classes is used."""
    return {
        "model": options.model,
        "skip_tokenizer_init": True,  # token ids go in and come out
        "dtype": options.dtype,
        "max_model_len": options.max_context,
        "max_num_seqs": options.max_episodes,
        # Whole prompts only: a prompt in pieces, with a seed, kills the engine on CPUs.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(options.max_context, 8192),
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "block_size": 32,  # more of a prefix is found again than with the CPU's default, 128
        "enable_prefix_caching": True,
        "enable_lora": options.adapter_rank is not None,
        "max_loras": 2,  # the student's and a teacher's, side by side
        "max_lora_rank": lora_rank(options.adapter_rank or 1),
        # What the trainer computes: of the distribution that was sampled from.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # not the model's own taste in sampling
        "enforce_eager": not torch.cuda.is_available(),
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "seed": 0,
    }


def lora_rank(rank: int) -> int:
    """The smallest of the ranks that vLLM has room for which holds `rank`."""
    return next((r for r in (1, 8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _said(output: Any) -> Said:
    (choice,) = output.outputs
    if choice.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"turn {output.request_id} ended with {choice.finish_reason!r}; expected 'stop' or "
            "'length'"
        )
    ids = tuple(choice.token_ids)
    logprobs = tuple(
        float(entry[token].logprob) for entry, token in zip(choice.logprobs, ids, strict=True)
    )
    return Said(output.request_id, ids, logprobs, choice.finish_reason == "length")


def serve(pipe: Connection) -> None:
    """Answer orders until the other side hangs up."""
    try:
        engine = Engine(pipe.recv())
        pipe.send(Ready())
        while True:
            order: Order = pipe.recv()
            match order:
                case Say():
                    engine.say(order)
                case Drop(keys):
                    engine.drop(keys)
                case Forget(adapter):
                    engine.forget(adapter)
                case Advance(steps):
                    pipe.send(engine.advance(steps))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # whoever started this process is gone
    except Exception as error:  # told to whoever started this process, who goes on without it
        traceback.print_exc()
        pipe.send(Broken(f"{type(error).__name__}: {error}"))


def set_environment() -> None:
    """What vLLM reads from the environment while it is imported."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # steps are taken here, one at a time
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer needs the cores, too
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not torch.cuda.is_available():
        # The engine runs eagerly there, and would compile one counter of ranks for 15 s.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"


def main() -> None:
    """`python -m agents.vllm_worker FD`: talk over an inherited socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    set_environment()
    serve(Connection(int(sys.argv[1])))
    # vLLM's threads may outlive the engine; nothing here is worth waiting for.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
