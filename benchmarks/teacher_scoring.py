"""Teacher scores with each context run once, against row by row: seconds, ratio, difference.

`python benchmarks/teacher_scoring.py [--model NAME] [--groups N] [--repeats N]`
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from mopd.config import ModelSection
from mopd.scoring import Scored, shared_context_hidden
from mopd.student import device_of, dtype_of, model_path

GROUP = 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/teacher_scoring.py")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--groups", type=int, default=2, help=f"of {GROUP} rollouts in a batch")
    parser.add_argument("--context", type=int, default=600, help="tokens of a teacher's prompt")
    parser.add_argument("--response", type=int, default=150, help="tokens of a rollout, at most")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    disable_progress_bar()
    section = ModelSection(name=args.model)
    device = device_of(section)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        model_path(args.model), dtype=dtype_of(section, device)
    )
    model = model.eval().to(device)

    print(f"{args.model} on {device}: {args.groups} groups of {GROUP}, contexts of {args.context}")
    print(
        f"{'distinct contexts':>18}{'row by row s':>14}{'shared s':>10}{'ratio':>8}{'max diff':>12}"
    )
    # In a group with plenty of peers most rollouts see the same ones: 2 to 4 contexts are usual.
    for distinct in (1, 2, 4, GROUP):
        rows = batch(args.groups, distinct, args.context, args.response, model.config.vocab_size)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "naive": lambda rows=rows: row_by_row(model, rows),
            "shared": lambda rows=rows: shared_context_hidden(model.model, model.config, rows),
        }
        logprobs = {
            name: model.lm_head(way()).float().log_softmax(-1) for name, way in ways.items()
        }
        difference = (logprobs["naive"] - logprobs["shared"]).abs().max()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):  # interleaved, so that a busy moment strikes both alike
            for name, way in ways.items():
                seconds[name].append(timed(way))
        naive, shared = (statistics.median(seconds[name]) for name in ways)
        print(
            f"{distinct:>18}{naive:>14.3f}{shared:>10.3f}{naive / shared:>8.2f}{difference:>12.1e}"
        )


def batch(groups: int, distinct: int, context: int, response: int, vocabulary: int) -> list[Scored]:
    """Rollouts of random tokens and lengths, `distinct` contexts a group."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (length,), generator=generator).tolist())

    rows = []
    for _ in range(groups):
        contexts = [draw(context - 20 * i) for i in range(distinct)]
        for i in range(GROUP):
            length = int(torch.randint(response // 2, response + 1, (1,), generator=generator))
            rows.append(Scored(contexts[i % distinct], draw(length), (True,) * length))
    return rows


@torch.no_grad()
def row_by_row(model: torch.nn.Module, rows: list[Scored]) -> torch.Tensor:
    """The whole sequence of each row by itself, nothing shared and nothing padded."""
    pieces = []
    for row in rows:
        ids = torch.tensor([[*row.context_ids, *row.response_ids]], device=model.device)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        pieces.append(hidden[len(row.context_ids) - 1 : -1])
    return torch.cat(pieces)


def timed(action: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    float(action().sum())  # waits for the device
    return time.perf_counter() - started


if __name__ == "__main__":
    with torch.no_grad():
        main()
