"""Attentive similarity of 12 images on a grid of 64², d = 64: in linear memory against dense matrices."""

from collections.abc import Iterator

import torch
from torch import Tensor

from attenscribble.method.asl import attentive_similarity_loss
from attenscribble.method.ssa import attend, attention_maps
from benchmarks.measure import Row, difference, take


def dense(probs: Tensor, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, radius: int = 5,
          sigma_xy: float = 6.0) -> Tensor:
    "Eq. 6 with all cells unlabelled, as matrices over all pairs of cells; P [N,C,h,w]."
    height, width = probs.shape[2:]
    A = attention_maps(query, key, query.shape[-1] ** -0.5)
    S = torch.sigmoid(((A + A.transpose(2, 3)) * weight.view(-1, 1, 1)).sum(1) + bias)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(probs.device)
    step = place[:, None] - place
    near = (step.abs().amax(-1) <= radius) & (step != 0).any(-1)
    decay = torch.exp(-step.square().sum(-1).to(probs) / (2 * sigma_xy**2)) * near
    rows = probs.flatten(2)
    return (decay * S * (1 - rows.transpose(1, 2) @ rows)).sum() / rows[:, 0].numel()


def scene(device: str, side: int = 64, count: int = 12) -> list[Tensor]:
    "Random inputs with gradients."
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(count, 4, side, side, generator=draw).softmax(1),
              *torch.randn(2, count, 1, side**2, 64, generator=draw), torch.ones(1), torch.zeros(1)]
    return [x.to(device).requires_grad_() for x in inputs]


def rows(device: str) -> Iterator[Row]:
    inputs = scene(device)
    fast, slow = lambda: attentive_similarity_loss(*inputs), lambda: dense(*inputs)
    ours = take(lambda: torch.autograd.grad(fast(), inputs), device)
    exact = everything(fast(), inputs)
    reference = take(lambda: torch.autograd.grad(slow(), inputs), device)
    matrices = everything(slow(), inputs)
    row = Row("attentive similarity 12×64², d = 64", device, reference, ours, "3× faster, 10× leaner", floor(device),
              None, "dense matrices, float32", difference(exact, matrices))
    yield Row(**vars(row) | {"met": row.faster >= 3 and row.leaner >= 10})
    _, query, key, *_ = inputs
    attention = take(lambda: torch.autograd.grad(attend(query, key, key)[0].sum(), (query, key)), device)
    with_loss = take(lambda: torch.autograd.grad(shared(inputs), inputs), device)
    yield Row("… on top of the attention it shares", device, None,
              type(ours)(with_loss.seconds - attention.seconds, 1.0, with_loss.peak_mib - attention.peak_mib),
              "", "the difference of a pass with and without the loss", None)
    large = scene(device, 128 if device == "cpu" else 256, 2)
    taken = take(lambda: torch.autograd.grad(attentive_similarity_loss(*large), large), device, 0)
    yield Row(f"attentive similarity 2×{128 if device == 'cpu' else 256}²", device, None, taken, "it fits", "", True)


def everything(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    "A loss and its gradients."
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def shared(inputs: list[Tensor]) -> Tensor:
    "The loss with the log-sum-exp that the attention leaves behind."
    probs, query, key, weight, bias = inputs
    attended, log_sum = attend(query, key, key)
    return attended.sum() + attentive_similarity_loss(probs, query, key, weight, bias, log_sum=log_sum)


def floor(device: str) -> str:
    "Two products of 12×4096²×64 forward and five backward, in a fused kernel that makes rows again."
    operations = 7 * 2 * 12 * 4096**2 * 64
    rate = 5e13 if device == "cuda" else 2 * 16 * 2 * 2.5e9 * torch.get_num_threads()
    return f"{1e3 * operations / rate:.0f} ms: 180 GFLOP at {rate / 1e9:.0f} GFLOP/s"
