"""Log-probabilities of chosen tokens: as the textbook says, from few logits at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mopd import head
from mopd.head import logprobs_at, student_support, token_logprobs

TOKENS, HIDDEN, VOCABULARY, TOP_K = 37, 16, 500, 8
TEMPERATURE = 0.7


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["frozen", "trainable"])
def layer(request: pytest.FixtureRequest) -> torch.nn.Linear:
    """Trainable: the general way, which an output layer with an adapter takes, too."""
    linear = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    linear.weight = torch.nn.Parameter(drawn(VOCABULARY, HIDDEN, seed=1))
    return linear.requires_grad_(request.param == "trainable")


@pytest.fixture(params=[2**26, 5 * VOCABULARY], ids=["at once", "in chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MAX_LOGITS", request.param)


def textbook(layer: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    return (hidden.double() @ layer.weight.double().T / TEMPERATURE).log_softmax(-1)


TOKEN_IDS = torch.arange(TOKENS) * 7


@pytest.mark.usefixtures("chunks")
def test_given_tokens_get_their_log_probabilities(layer: torch.nn.Linear) -> None:
    hidden, ids = drawn(TOKENS, HIDDEN), torch.randint(VOCABULARY, (TOKENS, 3))
    got = logprobs_at(layer, hidden, ids, TEMPERATURE)
    wanted = textbook(layer, hidden).gather(-1, ids)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=0)
    assert not got.requires_grad


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("top_k", [TOP_K, None])
def test_the_students_support_and_its_gradient_equal_the_textbooks(
    layer: torch.nn.Linear, top_k: int | None
) -> None:
    hidden = drawn(TOKENS, HIDDEN).requires_grad_()
    got = student_support(layer, hidden, TOKEN_IDS, top_k, TEMPERATURE)
    every = textbook(layer, hidden)
    wanted = every if top_k is None else every.gather(-1, every.topk(top_k, -1).indices)
    torch.testing.assert_close(got.logprobs_NK.double(), wanted, atol=1e-5, rtol=0)
    sampled = every.gather(-1, TOKEN_IDS[:, None])[:, 0]
    torch.testing.assert_close(got.sampled_N.double(), sampled, atol=1e-5, rtol=0)
    assert not got.sampled_N.requires_grad
    weights = drawn(*wanted.shape, seed=2)
    (ours,) = torch.autograd.grad((got.logprobs_NK * weights).sum(), hidden, retain_graph=True)
    (theirs,) = torch.autograd.grad((wanted * weights).sum(), hidden)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("chunks")
def test_a_tokens_log_probability_and_its_gradient_equal_the_textbooks(
    layer: torch.nn.Linear,
) -> None:
    hidden = drawn(TOKENS, HIDDEN).requires_grad_()
    got = token_logprobs(layer, hidden, TOKEN_IDS, TEMPERATURE)
    wanted = textbook(layer, hidden).gather(-1, TOKEN_IDS[:, None])[:, 0]
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=0)
    (ours,) = torch.autograd.grad(got.sum(), hidden)
    (theirs,) = torch.autograd.grad(wanted.sum(), hidden)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_the_gradient_is_as_good_as_autograds() -> None:
    """A student that is sure of its token: the difference of two large sums would be noise."""
    layer = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(drawn(VOCABULARY, HIDDEN, seed=1).bfloat16())
    layer.requires_grad_(False)
    hidden = (3 * drawn(TOKENS, HIDDEN)).bfloat16().requires_grad_()
    ids = textbook(layer, hidden).topk(1, -1).indices[:, 0]
    weights = drawn(TOKENS, seed=2)
    (exact,) = torch.autograd.grad(
        (textbook(layer, hidden).gather(-1, ids[:, None])[:, 0] * weights).sum(), hidden
    )
    ours = token_logprobs(layer, hidden, ids, TEMPERATURE)
    logits = layer(hidden).float() / TEMPERATURE
    theirs = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    errors = []
    for logprobs in (ours, theirs):
        (gradient,) = torch.autograd.grad((logprobs * weights).sum(), hidden)
        errors.append(float((gradient.double() - exact).abs().mean()))
    assert errors[0] < 1.5 * errors[1]


def test_no_tensor_is_ever_as_large_as_the_logits_of_all_tokens(
    layer: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "MAX_LOGITS", 5 * VOCABULARY)
    hidden = drawn(TOKENS, HIDDEN).requires_grad_()
    ids = torch.randint(VOCABULARY, (TOKENS, 3))
    with Largest() as largest:
        logprobs_at(layer, hidden, ids, TEMPERATURE)
        token_logprobs(layer, hidden, TOKEN_IDS, TEMPERATURE).sum().backward()
        student_support(layer, hidden, TOKEN_IDS, TOP_K, TEMPERATURE).logprobs_NK.sum().backward()
    assert largest.elements <= max(5 * VOCABULARY, layer.weight.numel())
    assert largest.elements < TOKENS * VOCABULARY
