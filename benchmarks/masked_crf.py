"""Masked CRF of 12 images of 256² pixels, four classes, radius 5: the walk against unfolded tensors (GatedCRF)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attenscribble.method.mcrf import masked_crf_loss
from benchmarks.measure import Row, difference, take


def unfolded(probs: Tensor, image: Tensor, unlabelled: Tensor, radius: int = 5, sigma_xy: float = 6.0,
             sigma_i: float = 0.1) -> Tensor:
    "Eqs. 4 and 5 as published codes compute them: every neighbour of every pixel is laid out in memory."
    count, _, height, width = probs.shape
    y, x = torch.meshgrid(*(torch.arange(n, device=probs.device, dtype=probs.dtype) for n in (height, width)),
                          indexing="ij")
    place = torch.stack((x, y)).expand(count, -1, -1, -1) / sigma_xy
    features = torch.cat((place, image / sigma_i), 1)

    def neighbours(a: Tensor) -> Tensor:
        return F.unfold(a, 2 * radius + 1, padding=radius).view(count, a.shape[1], -1, height, width)

    affinity = torch.exp(-0.5 * (neighbours(features) - features[:, :, None]).square().sum(1))
    inside = neighbours(unlabelled.to(probs.dtype))[:, 0]
    affinity = affinity * inside * unlabelled
    affinity[:, 2 * radius * (radius + 1)] = 0
    disagree = 1 - (neighbours(probs) * probs[:, :, None]).sum(1)
    return ((affinity * disagree).sum((1, 2, 3)) / unlabelled.sum((1, 2, 3)).clamp(min=1)).mean()


def scene(device: str, count: int = 12, side: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    "Random probabilities with a gradient, images, and Ω_U."
    draw = torch.Generator().manual_seed(0)
    probs = torch.randn(count, 4, side, side, generator=draw).softmax(1)
    image, chance = torch.rand(2, count, 1, side, side, generator=draw)
    return probs.to(device).requires_grad_(), image.to(device), (chance < 0.99).to(device)


def rows(device: str) -> Iterator[Row]:
    probs, image, unlabelled = scene(device)
    loss = lambda: masked_crf_loss(probs, image, unlabelled=unlabelled)
    slow = lambda: unfolded(probs, image, unlabelled)
    found = [[value.detach(), *torch.autograd.grad(value, probs)] for value in (loss(), slow())]
    ours = take(lambda: torch.autograd.grad(loss(), probs), device)
    reference = take(lambda: torch.autograd.grad(slow(), probs), device)
    row = Row("masked CRF 12×4×256², r = 5", device, reference, ours, "40× faster, 20× leaner; stretch 100×",
              floor(device), None, "unfolded tensors, float32", difference(*found))
    yield Row(**vars(row) | {"met": row.faster >= 40 and row.leaner >= 20})


def floor(device: str) -> str:
    "94 million pairs: an exponential of about 14 vector instructions and 5 products of 16 numbers each."
    if device == "cuda":
        return "0.1 ms: 94 million pairs × 50 operations at 50 TFLOP/s"
    cores = torch.get_num_threads()
    least = 12 * 256**2 * 120 / 16 * 25 / 2 / 2.5e9 / cores
    return f"{1e3 * least:.0f} ms: 25 vector instructions for 16 pairs, 2 a cycle at 2.5 GHz"
