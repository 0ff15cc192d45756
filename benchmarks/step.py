"""A training step of `ours`, 256², batch 12, against a plain re-creation of the released loop; a step of `mini`."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from attenscribble.data.batches import draw_augmentation
from attenscribble.data.phantom import phantom
from attenscribble.method.network import Dropout
from attenscribble.method.pce import partial_cross_entropy
from attenscribble.runs.config import Config
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import Step, make_store, start_training
from benchmarks import attentive_similarity, masked_crf
from benchmarks.measure import Row, Taken, take


def ours(config: Config) -> Callable[[], Tensor]:
    "The step as the training loop takes it."
    dataset = phantom(patients=10)
    state = start_training(resolve(config, dataset))
    store, step = make_store(state.setup, dataset.patients), Step(state)
    draw = torch.Generator().manual_seed(0)

    def once() -> Tensor:
        index = torch.randint(len(store), (config.batch,), generator=draw)
        loss, _ = step(store.batch(index, config.size, draw_augmentation(config.batch, "acdc", draw)), 0)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
        return loss.detach()

    return once


class PlainAttention(nn.Module):
    "Attention with its matrix written out, in place of the fused kernel."

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        return (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(-1) @ value, None


def released(config: Config) -> Callable[[], Tensor]:
    """The released loop, plainly: one slice at a time through NumPy and SciPy, float32, matrices and unfolded tensors.

    Same network, losses and settings as `ours`."""
    dataset = phantom(patients=10)
    state = start_training(resolve(config.model_copy(update={"precision": "float32", "compile": "off"}), dataset))
    for stage in state.model.modules():  # PyTorch's own dropout
        if isinstance(stage, Dropout):
            stage.forward = lambda features, p=stage.p: F.dropout(features, p, True)
    optimiser = torch.optim.SGD(state.model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    slices = [(case.image[z], case.scribble[z]) for case in dataset.cases() for z in range(len(case.image))]
    draw, attention = np.random.default_rng(0), state.model.get_submodule("encoder.2").attention

    def item(image: np.ndarray, scribble: np.ndarray) -> tuple[Tensor, Tensor]:
        if draw.random() > 0.5:
            turns, axis = draw.integers(4), draw.integers(2)
            image, scribble = (np.flip(np.rot90(a, turns), axis) for a in (image, scribble))
        elif draw.random() > 0.5:
            angle = int(draw.integers(-20, 20))
            image, scribble = (ndimage.rotate(a, angle, order=0, reshape=False, cval=fill)
                               for a, fill in ((image, 0), (scribble, dataset.ignore)))
        zoom = config.size / image.shape[0], config.size / image.shape[1]
        image, scribble = (ndimage.zoom(a, zoom, order=0) for a in (image, scribble))
        return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(scribble.astype(np.int64))

    def once() -> Tensor:
        picked = [item(*slices[i]) for i in draw.integers(len(slices), size=config.batch)]
        image, target = (torch.stack(column).to(state.setup.device) for column in zip(*picked, strict=True))
        logits = state.model(image)
        probs, free = logits.softmax(1), (target == dataset.ignore)[:, None]
        loss = (partial_cross_entropy(logits, target, ignore=dataset.ignore)
                + 0.1 * masked_crf.unfolded(probs, image, free)
                + 0.1 * attentive_similarity.dense(
                    F.interpolate(probs, attention.grid, mode="bilinear"), attention.query, attention.key,
                    attention.similarity.weight, attention.similarity.bias))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return once


def per_iteration(config: Config, batches: int, device: str) -> Taken:
    "A step on average, over a few batches."
    once = ours(config)
    for _ in range(3):
        once()
    taken = take(lambda: [once() for _ in range(batches)], device)
    return Taken(taken.seconds / batches, taken.spread, taken.peak_mib)


def rows(device: str) -> Iterator[Row]:
    large = Config(method="ours", profile="paper", dataset="phantom", device=device)
    fast = take(ours(large), device)
    slow = take(released(large), device, least_s=0)
    aim = 5 if device == "cpu" else 10
    row = Row("training step of ours, 256², batch 12", device, slow, fast, f"{aim}× faster", "", None,
              "the released loop, plainly, float32")
    yield Row(**vars(row) | {"met": row.faster >= aim and (device == "cpu" or fast.seconds <= 0.01)})
    small = Config(method="ours", profile="mini", dataset="phantom", device=device)
    taken = per_iteration(small, 20, device)
    yield Row("step of the profile mini, 128², batch 8", device, None, taken,
              "2,000 iterations in 6 min: 180 ms", "", taken.seconds <= 0.18)

