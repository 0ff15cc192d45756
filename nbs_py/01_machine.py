# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The machine
#
# > Thirty lines of C where Python would wait, sums that know of the other processes, and both optional.
#
# **Where does the time go when all arithmetic is already inside PyTorch?** Into memory. Each operation of an expression reads
# its arguments from memory and writes its result back, and the next one reads it again. This chapter shows how much that costs, and how a
# notebook can hold a loop in C that reads once and writes once. Two of the book's losses use it.

# %%
#| default_exp machine

# %%
#| export
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from platformdirs import user_cache_dir
from torch import Tensor

# %%
import time

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.book import exercise


# %% [markdown]
# ## A sum of six operations
#
# A bell curve of the difference of two images, times a third image, summed: the kind of expression that the masked CRF is made
# of. PyTorch runs it as six passes over memory. Is arithmetic or memory the price? Let the images grow and look at the time for each pixel.

# %%
def bell_sum(a, b, weight):
    "Σ exp(−(a − b)²)·weight, one operation after the other."
    return (torch.exp(-((a - b) ** 2)) * weight).sum()


def nanoseconds(function, pixels, repeats=7):
    "Best time of a call, per pixel."
    a, b, weight = torch.rand(3, pixels)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(a, b, weight)
        times.append(time.perf_counter() - start)
    return 1e9 * min(times) / pixels


# %% [markdown]
# ## From text to a function
#
# A C compiler turns a text into a shared library in a fraction of a second, and `ctypes` calls it. What is needed around
# it is bookkeeping: a library is kept in the cache under a name made of its text, the compiler and the processor, so it is compiled once; without a
# compiler, or where something fails, the answer is `None` and the caller takes its PyTorch form. The environment variable
# `ATTENSCRIBBLE_NATIVE=0` asks for that.

# %% [markdown]
# **Whole or not at all.** What is kept may be read by another process while it is written, or be half there when the power goes. So
# checkpoints, results, masks and caches are written beside their place and renamed: a rename is one step, and an error leaves what was there.

# %%
#| export
def cache_folder() -> Path:
    "Where what was computed once is kept: $ATTENSCRIBBLE_CACHE, else the user's cache folder."
    return Path(os.environ.get("ATTENSCRIBBLE_CACHE") or user_cache_dir("attenscribble"))


def write_whole(
    path: Path,  # a file or a folder; its parent is made if it is not there
    write: Callable[[Path], object],  # writes what it is given: a place beside it, with the same ending
) -> None:
    "Write beside the place and rename, so that a reader never meets a half, and an error leaves what was there."
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)


# %%
place = Path(tempfile.mkdtemp()) / "kept/log.csv"
write_whole(place, lambda new: new.write_text("step,loss"))
try:
    write_whole(place, lambda new: (new.write_text("st"), 1 / 0))
except ZeroDivisionError:
    assert place.read_text() == "step,loss" and list(place.parent.iterdir()) == [place]


# %%
#| export
@cache
def _compiler() -> tuple[str, tuple[str, ...], bytes] | None:
    "The C compiler, its flags for this processor, and all it says of both; None without one."
    found = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    for tuned in (["-march=native"], ["-mcpu=native"], []) if found else ():
        flags = ("-O3", *tuned, "-ffast-math", "-fPIC")
        asked = subprocess.run([found, *flags, "-dM", "-E", "-x", "c", os.devnull], capture_output=True)
        if asked.returncode == 0:
            return found, flags, asked.stdout
    return None


def _build(source: str, target: Path, compiler: str, flags: tuple[str, ...]) -> None:
    """Compile to a shared library, whole or not at all. Raises OSError with what the compiler says.

    The library leaves OpenMP's functions open: they are found in the process, where PyTorch has loaded its own, so both
    share one pool of threads. Linked without -ffast-math, which would change how the process treats denormals.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, part, library = (Path(folder) / name for name in ("loop.c", "loop.o", "loop.so"))
        text.write_text(source)
        openmp = () if platform.system() == "Darwin" else ("-fopenmp",)  # there PyTorch's OpenMP has another name
        for step in ((compiler, *flags, *openmp, "-c", text, "-o", part), (compiler, "-shared", part, "-o", library)):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"{compiler} failed: {done.stderr[-2000:]}")
        write_whole(target, partial(shutil.copyfile, library))


def native(
    source: str,  # C; `VECTORS` is put before it
    **sizes: int,  # constants, defined before the source: loops over them are unrolled
) -> ctypes.CDLL | None:  # None: no compiler, not wanted, or it failed (with a warning)
    "The functions of a C text, compiled for this processor and kept in the cache."
    return None if os.environ.get("ATTENSCRIBBLE_NATIVE") == "0" else _library(source, **sizes)


@cache
def _library(source: str, **sizes: int) -> ctypes.CDLL | None:
    "The same, looked up once a process."
    if not (chosen := _compiler()):
        return None
    compiler, flags, target = chosen
    text = "".join(f"#define {name} {value}\n" for name, value in sizes.items()) + VECTORS + source
    name = hashlib.sha256(repr((text, flags)).encode() + target).hexdigest()[:32]
    path = cache_folder() / "native" / f"{name}.so"
    try:
        if not path.is_file():
            _build(text, path, compiler, flags)
        return ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(f"C code does not run here, PyTorch takes over: {error}", stacklevel=2)
        return None


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    "Where a tensor's numbers begin, for C; NULL for None."
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def steps(tensor: Tensor) -> ctypes.Array:
    "A tensor's strides, for C: how far apart neighbours lie along each axis, in numbers."
    return (ctypes.c_int64 * tensor.ndim)(*tensor.stride())


# %% [markdown]
# Processors compute on sixteen numbers at once. GCC's and Clang's vector types say so without intrinsics; on a processor with
# narrower registers the compiler splits them. The exponential is the only function the losses need, and only for $x \le 0$:
# $e^x = 2^k e^f$ with $k$ whole and $|f| \le \frac12 \ln 2$, where seven terms of the series are enough for float32.

# %%
#| export
VECTORS = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* exp(x) for x <= 0, to 3 units in the last place; below -87 it is exp(-87), about 1e-38 */
static inline vec exp_negative(vec x) {
    const vec least = (vec){} - 87.0f;
    const ivec far = x < least;
    x = (vec)(((ivec)x & ~far) | ((ivec)least & far));
    const ivec k = __builtin_convertvector(x * 1.442695041f - 0.5f, ivec);  /* to the nearest, as x is not positive */
    const vec whole = __builtin_convertvector(k, vec);
    const vec f = x - whole * 0.693359375f + whole * 2.12194440e-4f;        /* ln 2 in two parts: f loses no digit */
    vec e = f * (1 / 5040.0f) + 1 / 720.0f;
    e = e * f + 1 / 120.0f;
    e = e * f + 1 / 24.0f;
    e = e * f + 1 / 6.0f;
    e = e * f + 0.5f;
    e = (e * f + 1.0f) * f + 1.0f;
    return e * (vec)((k + 127) << 23);                                      /* 2^k, written into the exponent's bits */
}
"""

# %% [markdown]
# The bell sum with it: each thread reads three numbers and keeps its sum in a register.

# %%
BELL = r"""
double bell_sum(const float *a, const float *b, const float *weight, int64_t count, int threads) {
    double total = 0;
    #pragma omp parallel for num_threads(threads) reduction(+ : total)
    for (int64_t block = 0; block < count / 4096; block++) {
        vec sum = {};
        for (int64_t i = block * 4096; i < (block + 1) * 4096; i += LANES) {
            const vec step = load(a + i) - load(b + i);
            sum += exp_negative(-step * step) * load(weight + i);
        }
        for (int i = 0; i < LANES; i++) total += sum[i];
    }
    return total;
}
"""


def bell_sum_c(a, b, weight):
    library = native(BELL)
    if library is None:
        return bell_sum(a, b, weight)
    library.bell_sum.restype = ctypes.c_double
    return library.bell_sum(address(a), address(b), address(weight), ctypes.c_int64(a.numel()), torch.get_num_threads())


a, b, weight = torch.rand(3, 2**20)
exact = bell_sum(a.double(), b.double(), weight.double())
print(f"PyTorch {bell_sum(a, b, weight):.2f}, C {bell_sum_c(a, b, weight):.2f}, float64 {exact:.2f}; "
      f"C code {'runs' if native(BELL) else 'does not run'} here")
torch.testing.assert_close(torch.tensor(bell_sum_c(a, b, weight)).double(), exact, rtol=1e-5, atol=0)

# %%
sides = (64, 128, 256, 512, 1024, 2048)
curves = {name: [nanoseconds(function, side**2) for side in sides]
          for name, function in (("PyTorch, six passes", bell_sum), ("C, one pass", bell_sum_c))}
figure, axis = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
for (name, values), colour in zip(curves.items(), ("#D55E00", "#0072B2"), strict=True):
    axis.plot(sides, values, "o-", color=colour, label=name)
axis.set(xscale="log", yscale="log", xlabel="side of the image (pixels)", ylabel="ns for each pixel", xticks=sides,
         yticks=(0.3, 1, 3))
axis.set_xticklabels(sides)
axis.set_yticklabels((0.3, 1, 3))
axis.minorticks_off()
axis.legend(frameon=False, fontsize=8);

# %% [markdown]
# The two lines part. Small images are all overhead: starting threads, allocating results. In large ones PyTorch's results no longer fit into the cache
# and each pass goes to main memory. C pays for its three inputs only. In the [masked CRF](method/22_mcrf.ipynb) the
# expression is evaluated for 120 neighbours of every pixel, whose values are already at hand: there one pass wins by far more.
#
# ### How exact is that exponential?

# %%
EXPONENTIAL = "void exponential(const float *x, float *y) { store(y, exp_negative(load(x))); }"


def exponential_c(x):
    y = torch.empty_like(x)
    for start in range(0, len(x), 16):
        native(EXPONENTIAL).exponential(address(x[start:]), address(y[start:]))
    return y


if native(EXPONENTIAL):
    x = -torch.logspace(-6, 1.939, 4096)
    error = (exponential_c(x).double() / x.double().exp() - 1).abs()
    print(f"largest relative error {error.max():.1e}; a unit in the last place is 1.2e-07")
    assert error.max() < 3 * 2**-23


# %% [markdown]
# ## More than one process
#
# A batch can be split over processes, a device each. A loss is a fraction, such as the surprise of all annotated pixels over their
# number. If each process divides by its own count and the results are averaged, a process that has few strokes shouts. So counts are summed over
# all processes, and each process contributes its **share** of the one loss. The shares add up to what a single process computes.

# %%
#| export
def processes() -> int:
    "How many processes train together; 1 if nobody said otherwise."
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    "The number of this process among them, from 0. Number 0 writes."
    return dist.get_rank() if processes() > 1 else 0


def whole(
    part: Tensor,  # any shape, the same in all processes: a count or a sum over this process's part of the batch
) -> Tensor:  # the same shape: over the whole batch
    "Sum over all processes, and in the gradient too; with one process the argument itself."
    return part if processes() == 1 else _Whole.apply(part)


def _summed(part: Tensor) -> Tensor:
    "The sum itself."
    total = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Whole(torch.autograd.Function):
    "Every process feels what any process makes of the sum."

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        return _summed(slope)


def share_of(
    total: Tensor,  # a sum over this process's part of the batch
    count: Tensor | int,  # over how many pixels, images, …, of this part
) -> Tensor:  # the shares of all processes add up to the mean over the whole batch
    "This process's sum over the count in all processes; 0 where nothing was counted."
    return total / whole(torch.as_tensor(count, device=total.device)).clamp(min=1)


# %% [markdown]
# Two processes, one batch of four images with 90, 0, 5 and 5 annotated pixels and surprise 1 on all but the last five, where it is 3.
# The loss is $\frac{90 + 5 + 15}{100} = 1.1$. Split into two halves, the first process would report $\frac{90}{90} = 1$, the second
# $\frac{5 + 15}{10} = 2$, and their mean is 1.5. With shares: $\frac{90}{100} + \frac{20}{100} = 1.1$.

# %%
pixels, surprise = torch.tensor([90.0, 0, 5, 5]), torch.tensor([90.0, 0, 5, 15])
halves = [slice(0, 2), slice(2, 4)]
own_counts = sum(surprise[half].sum() / pixels[half].sum() for half in halves) / 2
shares = sum(surprise[half].sum() / pixels.sum() for half in halves)
torch.testing.assert_close(torch.stack([own_counts, shares]), torch.tensor([1.5, 1.1]))
torch.testing.assert_close(share_of(surprise.sum(), pixels.sum()), shares)
assert processes() == 1 and rank() == 0 and whole(pixels) is pixels

# %% [markdown]
# Chance needs the same care. Dropout on one process draws noise for twelve images; two processes that draw for six each, from the same seed,
# would use the same noise twice. So each draws for all twelve and keeps the rows of its own images.

# %%
#| export
_SPLIT: list[int] = []  # images of the batch that is split now


@contextmanager
def split(
    total: int,  # images of a batch
) -> Iterator[slice]:  # those that this process takes; the first ones take one more where it does not come out even
    "While it is open, this process works on its part of a batch."
    each, more = divmod(total, processes())
    start = rank() * each + min(rank(), more)
    _SPLIT.append(total)
    try:
        yield slice(start, start + each + (rank() < more))
    finally:
        _SPLIT.pop()


def own_rows(
    draw: Callable[[int], Tensor],  # number of images → their noise, images along the first axis
    count: int,  # images that this process has
) -> Tensor:  # the noise of its images
    "Noise that does not depend on how a batch is split. Raises ValueError when the part has another size."
    if processes() == 1 or not _SPLIT:
        return draw(count)
    with split(total := _SPLIT[-1]) as part:
        if part.stop - part.start != count:
            raise ValueError(f"count: found {count} images, expected {part.stop - part.start} of a batch of {total}")
        return draw(total)[part]


# %%
with split(7) as part:
    assert part == slice(0, 7) and own_rows(torch.zeros, 7).shape == (7,)


# %% [markdown]
# ## Slide the threads
#
# How many threads is the bell sum worth on this machine, for an image of a side of your choice?

# %%
def plot_threads(side=512):
    used, counts = torch.get_num_threads(), range(1, 1 + (os.cpu_count() or 1))
    _, axis = plt.subplots(figsize=(3.6, 2.4), layout="constrained")
    for name, function, colour in (("PyTorch", bell_sum, "#D55E00"), ("C", bell_sum_c, "#0072B2")):
        found = []
        for threads in counts:
            torch.set_num_threads(threads)
            found.append(nanoseconds(function, side**2))
        axis.plot(counts, found, "o-", color=colour, label=name)
    torch.set_num_threads(used)
    axis.set(xlabel="threads", ylabel="ns for each pixel", ylim=(0, None), xticks=counts,
             title=f"{side} × {side} pixels")
    axis.legend(frameon=False, fontsize=8)

interact(plot_threads, side=(128, 1024, 128));


# %% [markdown]
# ## Exercises
#
# **1. Predict.** An expression reads three arrays and writes one sum. How many bytes must cross the bus for `pixels` pixels of float32 at
# least, and how many if each of `passes` operations also writes an array that the next one reads?

# %%
def check_bytes(f):
    assert f(10, 0) == (120, 120) and f(10, 3) == (120, 360)

def bytes_moved(pixels, passes):
    ...  # your code here

exercise(check_bytes, bytes_moved, solution=lambda pixels, passes: (12 * pixels, 12 * pixels + 8 * pixels * passes))


# %% [markdown]
# **2. Implement.** The exponential as above in Python, for one number: split off $2^k$, then sum six terms of the series.

# %%
def check_exponential(f):
    import math

    assert all(math.isclose(f(x), math.exp(x), rel_tol=2e-6) for x in (0, -0.1, -1, -5.5, -30.0))

def exponential(x):
    ...  # your code here

def exponential_solution(x):
    import math

    k = round(x / math.log(2))
    f = x - k * math.log(2)
    return 2.0**k * sum(f**n / math.factorial(n) for n in range(7))

exercise(check_exponential, exponential, exponential_solution)


# %% [markdown]
# **3. Break.** Counts for two processes, annotated pixels and wrong ones, such that the mean of the two error rates is 0.5 and
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
# `native` compiles a C text once and calls it ever after, or says that it cannot. `share_of` and `own_rows` let a loss and its noise be the
# same over one process and over many. Surprising: an expression of six harmless operations is bound by memory, not by arithmetic.
# Next: [what a scan is](data/10_scans.ipynb).
