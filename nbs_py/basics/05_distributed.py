# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Several processes, one batch
#
# > Sums that know of the other processes: one loss, however many devices compute it.
#
# A batch can be divided among processes, each with a device of its own. Their losses must then be put together so that the result is that of one
# process with the whole batch. This chapter shows where the simple way goes wrong, and holds the few functions that do it right.

# %%
#| default_exp basics.distributed

# %%
#| export
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

_P = ParamSpec("_P")

# %%
from attenscribble.basics.checking import exercise


# %% [markdown]
# ## How many, and which one
#
# PyTorch's name for the number of processes is the *world size*; each process has a *rank*, counted from 0.

# %%
#| export
def world_size() -> int:
    "How many processes train together; 1 if nobody said otherwise."
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# %%
#| export
def rank() -> int:
    "The number of this process among them, from 0. Number 0 writes."
    return dist.get_rank() if world_size() > 1 else 0


# %% [markdown]
# An *all-reduce* adds a tensor up over all processes and gives each of them the sum. The gradient goes back the same way: what the
# sum does to the loss of any process matters to every process.

# %%
#| export
def all_reduce(
    part: Tensor,  # any shape, the same in all processes: a count or a sum over this process's part of the batch
) -> Tensor:  # the same shape: over the whole batch
    "Sum over all processes, and in the gradient too; with one process the argument itself."
    return part if world_size() == 1 else _AllReduce.apply(part)


# %%
#| export
class _AllReduce(torch.autograd.Function):
    "A sum over all processes, forward and backward."

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _reduced(part)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _reduced(slope)


# %%
#| export
def _reduced(part: Tensor) -> Tensor:
    "The sum over all processes, without a graph."
    total = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


# %% [markdown]
# ## The mean of a batch that nobody holds as a whole
#
# A loss is a fraction, such as the surprise of all annotated pixels over their number. Take two processes and one batch of four images with
# 90, 0, 5 and 5 annotated pixels, and surprise 1 on all but the last five, where it is 3. The loss is $\frac{90 + 5 + 15}{100} = 1.1$.
# If each process divides by its own count, the first reports $\frac{90}{90} = 1$ and the second $\frac{5 + 15}{10} = 2$; their mean
# is 1.5, because the ten pixels of the second count as much as the ninety of the first.

# %%
pixels, surprise = torch.tensor([90.0, 0, 5, 5]), torch.tensor([90.0, 0, 5, 15])
halves = [slice(0, 2), slice(2, 4)]
local_means = [surprise[half].sum() / pixels[half].sum() for half in halves]
shares = [surprise[half].sum() / pixels.sum() for half in halves]
torch.testing.assert_close(torch.stack([sum(local_means) / 2, sum(shares)]), torch.tensor([1.5, 1.1]))


# %% [markdown]
# The right way: counts are summed over all processes first, and each process contributes its *share*, $\frac{90}{100}$ and
# $\frac{20}{100}$. The shares add up to the loss that a single process computes. A number alone does not say whether it is a mean or a share,
# and taking one for the other changes the loss without an error. So a loss term returns neither: it returns a `BatchMean`, which keeps sum and
# count apart until somebody asks for the mean over this process's images or for the share of the whole batch.

# %%
#| export
@dataclass(frozen=True)
class Group:
    "Who computes a batch together."

    sum: Callable[[Tensor], Tensor]  # adds up over all of them
    size: int  # how many they are


ALONE = Group(lambda part: part, 1)


# %%
#| export
class BatchMean:
    "A mean over a batch of which this process may hold a part only. Add them, and multiply or divide them by numbers."

    def __init__(
        self,
        share: Callable[[Group], Tensor],  # a group → what this process adds to the group's mean, [] float
    ) -> None:
        self._share = share

    def mean(self) -> Tensor:  # [] float
        "The mean over the images of this process."
        return self._share(ALONE)

    def share(self) -> Tensor:  # [] float; the shares of all processes add up to the mean over the whole batch
        "What this process adds to the mean over the whole batch; waits for the others."
        return self._share(Group(all_reduce, world_size()))

    def __add__(self, other: "BatchMean") -> "BatchMean":
        return BatchMean(lambda group: self._share(group) + other._share(group))

    def __mul__(self, factor: float) -> "BatchMean":
        return BatchMean(lambda group: factor * self._share(group))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "BatchMean":
        return BatchMean(lambda group: self._share(group) / divisor)


# %% [markdown]
# Three functions make one: from values whose mean is meant, from a sum and the count that belongs to it, and from a number that
# depends on the whole batch and comes out the same in every process.

# %%
#| export
def mean_of(
    values: Tensor,  # any shape, float: one value an image, or a pixel, …
) -> BatchMean:  # of all values of all processes
    "The mean of some values over the whole batch."
    return ratio(values.sum(), values.numel())


# %%
#| export
def ratio(
    total: Tensor,  # [] a sum over this process's part of the batch
    count: Tensor | int,  # over how many pixels, images, … of this part
) -> BatchMean:  # all sums over all counts
    "A sum over a count; 0 where nothing was counted."
    if isinstance(count, int):  # a number that stays on the CPU: to send it to a GPU would make the loop wait
        return BatchMean(lambda group: total / max(_summed(group, count, total.device), 1))
    return BatchMean(lambda group: total / group.sum(count).clamp(min=1))


# %%
#| export
def _summed(group: Group, count: int, device: torch.device) -> int:
    "A count over all processes."
    return count if group.size == 1 else int(group.sum(torch.tensor(count, device=device)))


# %%
#| export
def common(
    value: Callable[[Group], Tensor],  # of sums over the group: the same number in each of its processes, [] float
) -> BatchMean:  # that number
    "A number that all processes compute alike, such as a Dice over the whole batch: each adds an equal part."
    return BatchMean(lambda group: value(group) / group.size)


# %%
assert ratio(torch.tensor(6.0), 3).mean() == 2 and ratio(torch.tensor(0.0), 0).mean() == 0
assert mean_of(torch.tensor([1.0, 2.0, 6.0])).share() == 3 and common(lambda group: torch.tensor(5.0)).share() == 5
assert (2 * (mean_of(pixels) + mean_of(surprise)) / 4).mean() == (25 + 27.5) / 2
assert world_size() == 1 and rank() == 0 and all_reduce(pixels) is pixels

# %% [markdown]
# Two processes without two processes: a group that adds what the other one has.

# %%
first, second = (ratio(surprise[half].sum(), pixels[half].sum()) for half in halves)
with_second = Group(lambda part: part + pixels[halves[1]].sum(), 2)
assert first.mean() == 1 and torch.isclose(first._share(with_second), torch.tensor(0.9))


# %% [markdown]
# A loss that may also be used without this package's training returns a plain tensor, the mean over the images it was given, as PyTorch's
# own losses do. `batch_loss` makes such a function of one that returns a `BatchMean`, and keeps that one as its `of_batch`.

# %%
#| export
class _BatchLoss(Protocol[_P]):
    "A loss of this process's images, and of the whole batch."

    of_batch: Callable[_P, Any]

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> Any: ...


# %%
#| export
def batch_loss(
    function: Callable[_P, Any],  # returns a `BatchMean`, or one and a dict of others
) -> _BatchLoss[_P]:  # the same, with tensors in place of each; `.of_batch` is the function itself
    "A loss that returns tensors: means over the images it is given."
    @wraps(function)
    def loss(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        found = function(*args, **kwargs)
        if isinstance(found, BatchMean):
            return found.mean()
        value, notes = found
        return value.mean(), {name: note.mean() for name, note in notes.items()}

    loss.__signature__ = signature(function).replace(return_annotation=Tensor)  # type: ignore[attr-defined]
    loss.of_batch = function  # type: ignore[attr-defined]
    return cast(_BatchLoss[_P], loss)


# %%
@batch_loss
def squared(values):
    return mean_of(values.square())


assert squared(torch.tensor([1.0, 3.0])) == 5 and squared.of_batch(torch.tensor([1.0, 3.0])).share() == 5

# %% [markdown]
# ## Chance, divided
#
# Chance needs the same care. Dropout on one process draws noise for twelve images; two processes that draw for six each, from the same seed,
# would use the same noise twice. So each draws for all twelve and keeps the rows of its own images.

# %%
#| export
_SHARDED: list[int] = []  # images of the batch that is sharded now


# %%
#| export
@contextmanager
def shard(
    total: int,  # images of a batch
) -> Iterator[slice]:  # those that this process takes; the first ones take one more where it does not come out even
    "While it is open, this process works on its part of a batch."
    each, more = divmod(total, world_size())
    start = rank() * each + min(rank(), more)
    _SHARDED.append(total)
    try:
        yield slice(start, start + each + (rank() < more))
    finally:
        _SHARDED.pop()


# %%
#| export
def sharded_noise(
    draw: Callable[[int], Tensor],  # number of images → their noise, images along the first axis
    count: int,  # images that this process has
) -> Tensor:  # the noise of its images
    "Noise that does not depend on how a batch is sharded. Raises ValueError when the part has another size."
    if world_size() == 1 or not _SHARDED:
        return draw(count)
    with shard(total := _SHARDED[-1]) as part:
        if part.stop - part.start != count:
            raise ValueError(f"count: found {count} images, expected {part.stop - part.start} of a batch of {total}")
        return draw(total)[part]


# %%
with shard(7) as part:
    assert part == slice(0, 7) and sharded_noise(torch.zeros, 7).shape == (7,)


# %% [markdown]
# ## Exercise
#
# **Break.** Counts for two processes, annotated pixels and wrong ones, such that the mean of the two error rates is 0.5 and
# the true rate below 0.02: `((pixels, wrong), (pixels, wrong))`.

# %%
def check_skew(f):
    (a, wrong_a), (b, wrong_b) = f()
    assert abs((wrong_a / a + wrong_b / b) / 2 - 0.5) < 1e-9 and (wrong_a + wrong_b) / (a + b) < 0.02

def skewed():
    return (10, 5), (10, 5)  # your numbers here

exercise(check_skew, skewed, solution=lambda: ((1, 1), (99, 0)))

# %% [markdown]
# ## Recap
#
# `BatchMean` and `sharded_noise` let a loss and its noise be the same over one process and over many; a plain loss comes from
# `batch_loss`. Surprising: the mean of two right means is wrong. Next: [which voxel is which place](../data/10_grid.ipynb).
