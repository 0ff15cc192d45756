# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One launch on a GPU
#
# > The masked CRF once more, for cards that start a thousand small programs more slowly than they run them.
#
# Why does a loss that costs a GPU a tenth of a millisecond of arithmetic take four? In PyTorch's operations [the masked CRF](../method/32_mcrf.ipynb) is six
# programs for each of 60 offsets, and to start 360 programs takes the CPU longer than the GPU needs to run them. This chapter writes the walk as
# one program.

# %%
#| default_exp basics.gpu

# %%
#| export
import torch
from torch import Tensor

# %%
#| export
try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for CPUs comes without it
    triton = tl = None

# %%
import os

from attenscribble.basics.checking import exercise
from attenscribble.method.mcrf import Affinity, _half_window, _walk

# %% [markdown]
# ## How many launches?
#
# A window of radius 5 has 120 offsets, of which half are visited, each with six operations: subtract, square and add,
# exponential, mask, and two sums.

# %%
offsets = len(_half_window(5, 256, 256))
print(f"{offsets} offsets, {6 * offsets} launches in PyTorch, 1 here")
assert offsets == 60

# %% [markdown]
# ## The program
#
# It is the double loop of [chapter 32](../method/32_mcrf.ipynb) in [Triton](https://triton-lang.org), a language for kernels that PyTorch for GPUs brings along.
# Each copy of the program takes `BLOCK` neighbouring pixels $p$ of one image and walks their windows: the classes lie along one axis of a small tile,
# the pixels along the other. What it hands back is the gradient of each pixel and one energy for each block.

# %%
#| export
if triton is not None:
    @triton.jit  # type: ignore[untyped-decorator]
    def pair_energy(  # type: ignore[no-untyped-def]
        probs, image, free, energy, gradient, height, width, blocks, per_area, per_step,
        RADIUS: tl.constexpr, CLASSES: tl.constexpr, ROWS: tl.constexpr, MODALITIES: tl.constexpr,
        BOTH: tl.constexpr, BLOCK: tl.constexpr,
    ):
        "For each image Σ_p Σ_q s(p,q)·(1 − Σ_c P_p P_q) in parts, one a block of pixels, and its gradient in P."
        n, area = tl.program_id(1), height * width
        p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside, y, x = p < area, p // width, p % width
        c = tl.arange(0, ROWS)[:, None]
        planes = probs + (n * CLASSES + c) * area
        mine = tl.load(free + n * area + p, mask=inside, other=0).to(tl.float32)
        member = mine if BOTH else inside.to(tl.float32)
        field = tl.load(planes + p[None, :], mask=(c < CLASSES) & inside[None, :], other=0.0) * member[None, :]
        pulled, pairs = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for dy in range(-RADIUS, RADIUS + 1):
            for dx in range(-RADIUS, RADIUS + 1):
                v, u, q = y + dy, x + dx, p + dy * width + dx
                there = inside & (v >= 0) & (v < height) & (u >= 0) & (u < width) & ((dy != 0) | (dx != 0))
                theirs = tl.load(free + n * area + q, mask=there, other=0).to(tl.float32)
                other = theirs if BOTH else there.to(tl.float32)
                exponent = -(dy * dy + dx * dx) * per_area + tl.zeros((BLOCK,), tl.float32)
                for k in range(MODALITIES):
                    plane = image + (n * MODALITIES + k) * area
                    step = tl.load(plane + p, mask=inside, other=0.0) - tl.load(plane + q, mask=there, other=0.0)
                    exponent -= step * step * per_step * per_step
                s = tl.exp(exponent) * (mine + theirs) * other
                pulled += s[None, :] * tl.load(planes + q[None, :], mask=(c < CLASSES) & there[None, :], other=0.0)
                pairs += s
        total = tl.sum((pairs * member - tl.sum(field * pulled, 0)) / 2, 0)
        tl.store(energy + n * blocks + tl.program_id(0), total)
        tl.store(gradient + (n * CLASSES + c) * area + p[None, :], -pulled * member[None, :],
                 mask=(c < CLASSES) & inside[None, :])

# %% [markdown]
# The call. Without a GPU, Triton's interpreter (`TRITON_INTERPRET=1`) runs the same program on the CPU, slowly, which is how it is tested here.

# %%
#| export
_PIXELS = 128  # of a block


def walk_on_gpu(
    probs: Tensor,  # [N,C,H,W] float32
    image: Tensor,  # [N,K,H,W] float
    unlabelled: Tensor,  # [N,1,H,W] bool: Ω_U
    radius: int,  # pixels: the window is 2·radius+1 wide
    per_area: float,  # 1/2σ² of the distance in pixels
    per_step: float,  # 1/√2σ of the difference in intensity
    both: bool,  # p and q both in Ω_U, or p alone
) -> tuple[Tensor, Tensor]:  # [N] the pair sums of each image, [N,C,H,W] their gradient in `probs`
    "The pair sums of the masked CRF and their gradient in one launch. Raises what Triton raises where it is not there."
    (count, classes, height, width), modalities = probs.shape, image.shape[1]
    blocks = triton.cdiv(height * width, _PIXELS)
    probs, image, free = probs.contiguous(), image.float().contiguous(), unlabelled.contiguous().view(torch.uint8)
    energy, gradient = probs.new_empty(count, blocks), torch.empty_like(probs)
    pair_energy[(blocks, count)](
        probs, image, free, energy, gradient, height, width, blocks, per_area, per_step, RADIUS=radius, CLASSES=classes,
        ROWS=triton.next_power_of_2(classes), MODALITIES=modalities, BOTH=both, BLOCK=_PIXELS)
    return energy.sum(1), gradient


# %% [markdown]
# ## Equal, where it runs
#
# Against the walk in PyTorch's operations, on a GPU or in the interpreter. Here neither may be at hand; then nothing is compared, and the line says so.

# %%
def largest_gap(radius=2, mask_neighbours=True):
    "Relative to the largest number: how far sums and gradients of the two forms lie apart."
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator().manual_seed(0)
    probs, image = torch.randn(2, 3, 12, 17, generator=draw).softmax(1), torch.rand(2, 1, 12, 17, generator=draw)
    inputs = [x.to(device) for x in (probs, image, torch.rand(2, 1, 12, 17, generator=draw) > 0.2)]
    found = walk_on_gpu(*inputs, radius, 1 / (2 * 3.0**2), 1 / (2**0.5 * 0.1), mask_neighbours)
    pairs = zip(found, _walk(*inputs, Affinity(radius, 3.0, 0.1, mask_neighbours), True), strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


# %%
if triton is not None and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"):
    for radius, both in ((2, True), (3, False)):
        assert largest_gap(radius, both) < 1e-5
else:
    print("not compared: no GPU, and no Triton with its interpreter turned on")


# %% [markdown]
# ## Exercise
#
# **Predict.** How many bytes must the program read and write at least, for a batch of $N$ images with $C$ classes and one modality: probabilities and
# image in float32, a byte of mask a pixel, and the gradient in float32? At 3 TB/s, is that more than the time of one launch, about 5 µs, for 12 images
# of 256²? Return the bytes.

# %%
def check_bytes(count):
    assert count(12, 4, 256) == 12 * 256**2 * (4 * 4 + 4 + 1 + 4 * 4)

def attempt_bytes(images, classes, side):
    ...  # your code here

exercise(check_bytes, attempt_bytes, solution=lambda images, classes, side: images * side**2 * (8 * classes + 5))

# %% [markdown]
# ## Recap
#
# `walk_on_gpu` is the masked CRF's double loop as one launch. [Chapter 32](../method/32_mcrf.ipynb) uses it on CUDA devices and falls back to PyTorch's
# operations, with a warning, where it does not run. Surprising: for a small loss the cost on a GPU is the number of launches, not what they compute.
