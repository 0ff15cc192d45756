# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Thirty lines of C
#
# > A short loop in C where Python would wait; and without a compiler the same in PyTorch.
#
# **Where does the time go when all arithmetic is already inside PyTorch?** Much of it goes into memory traffic: each operation of an expression
# reads its arguments and writes its result, which the next one reads again, while a loop in C reads and writes once. This chapter measures the
# difference and shows how a notebook can hold such a loop; two of the book's losses use it.

# %%
#| default_exp basics.native

# %%
#| export
import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

# %%
#| export
import torch
from torch import Tensor

from attenscribble.basics.files import cache_folder, write_atomic

# %%
import math
import time

import matplotlib.pyplot as plt
from ipywidgets import interact

from attenscribble.basics.checking import exercise


# %% [markdown]
# ## A sum of six operations
#
# A bell curve of the difference of two images, times a third image, summed: the masked CRF is made of such expressions. PyTorch runs it as six
# passes over memory. Which costs more, arithmetic or memory? Let the images grow and look at the time for each pixel.

# %%
def bell_sum(a, b, weight):
    "Σ exp(−(a − b)²)·weight, one operation after the other."
    return (torch.exp(-((a - b) ** 2)) * weight).sum()


# %%
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
# A C compiler turns a text into a shared library in a fraction of a second, and `ctypes` calls it. The library is kept in the cache under a name
# made of its text, the compiler, the processor and its content, so it is compiled once. Without a compiler, or where something fails, the result is `None` and
# the caller takes its PyTorch form. The environment variable `ATTENSCRIBBLE_NATIVE=0` asks for that too.

# %%
#| export
@cache
def _compiler() -> tuple[str, tuple[str, ...], bytes] | None:
    "The C compiler, its flags for this processor, and all it says of both; None without one."
    found = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if found is None:
        return None
    for tuned in (["-march=native"], ["-mcpu=native"], []):
        flags = ("-O3", *tuned, "-ffast-math", "-fPIC")
        asked = subprocess.run([found, *flags, "-dM", "-E", "-x", "c", os.devnull], capture_output=True)
        if asked.returncode == 0:
            return found, flags, asked.stdout
    return None


# %%
#| export
def _build(source: str, target: Path, compiler: str, flags: tuple[str, ...]) -> None:
    """Compile to a shared library, which appears when it is complete. Raises OSError with what the compiler says.

    The library is not linked to an OpenMP of its own: it finds the one that PyTorch has loaded, and both share one pool
    of threads. Linked without -ffast-math, which would change how the process treats denormals.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, part, library = (Path(folder) / name for name in ("loop.c", "loop.o", "loop.so"))
        text.write_text(source)
        openmp = () if platform.system() == "Darwin" else ("-fopenmp",)  # there PyTorch's OpenMP has another name
        for step in ((compiler, *flags, *openmp, "-c", text, "-o", part), (compiler, "-shared", part, "-o", library)):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"{compiler} failed: {done.stderr[-2000:]}")
        write_atomic(target, partial(shutil.copyfile, library))


# %%
#| export
def native(
    source: str,  # C; `LANES` and the vector functions below are put before it
    **sizes: int,  # constants, defined before the source: loops over them are unrolled
) -> ctypes.CDLL | None:  # None: no compiler, not wanted, or it failed (with a warning)
    "The functions of a C text, compiled for this processor and kept in the cache."
    return None if os.environ.get("ATTENSCRIBBLE_NATIVE") == "0" else _library(source, **sizes)


# %%
#| export
@cache
def _library(source: str, **sizes: int) -> ctypes.CDLL | None:
    "The same, looked up once a process."
    if not (chosen := _compiler()):
        return None
    compiler, flags, target = chosen
    text = _text(source, sizes)
    name = hashlib.sha256(repr((text, flags)).encode() + target).hexdigest()[:32]
    try:
        return _kept(name) or _fresh(name, text, compiler, flags)
    except OSError as error:
        warnings.warn(f"C code does not run here, PyTorch takes over: {error}", stacklevel=2)
        return None


# %%
#| export
def _text(source: str, sizes: dict[str, int]) -> str:
    "What the compiler is given: the constants, the vector functions, the source."
    defined = "".join(f"#define {name} {value}\n" for name, value in (sizes | {"LANES": LANES}).items())
    return defined + _VECTORS + source


# %% [markdown]
# ## Whose library?
#
# A library that is loaded runs with all our rights, and a damaged one can end the process. So the folder must belong to us, with nobody else allowed to
# write there (mode 0700) or to put another in its place. The hash of its content is part of a library's name: one that does not hold what its name
# says, or that belongs to somebody else, is compiled anew and never loaded. Where the folder cannot be trusted or written, the library goes to a
# temporary folder of this process, and a warning says so.

# %%
#| export
def _kept(name: str) -> ctypes.CDLL | None:
    "The library of that name in the cache, if it is ours and whole; one that is not is removed."
    folder = cache_folder() / "native"
    if _open_to_others(folder):
        return None
    for path in sorted(folder.glob(f"{name}-*.so")):
        if _is_whole(path):
            with suppress(OSError):  # one of another machine
                return ctypes.CDLL(str(path))
        with suppress(OSError):
            path.unlink()
    return None


# %%
#| export
def _fresh(name: str, text: str, compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    "A library compiled now, and kept where it is safe. Raises OSError with what the compiler says."
    with tempfile.TemporaryDirectory() as place:
        built = Path(place) / "library.so"
        _build(text, built, compiler, flags)
        path = _home() / f"{name}-{_digest(built)}.so"
        write_atomic(path, partial(shutil.copyfile, built))
    return ctypes.CDLL(str(path))


# %%
#| export
def _digest(path: Path) -> str:
    "A hash of a file's content."
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _is_ours(path: Path) -> bool:
    "Whether a file or folder itself, not what a link leads to, belongs to this user; on Windows the folder says."
    return os.name == "nt" or path.lstat().st_uid == os.geteuid()


# %%
#| export
def _is_whole(path: Path) -> bool:
    "Whether this is a file of our own that holds what its name says."
    try:
        return _is_ours(path) and stat.S_ISREG(path.lstat().st_mode) and path.stem.endswith(f"-{_digest(path)}")
    except OSError:
        return False


# %%
#| export
def _open_to_others(folder: Path) -> str:
    "Who else could have written into a folder or exchanged it, in words; empty for nobody. Windows has no such modes."
    if os.name == "nt" or not folder.parent.exists():
        return ""
    above, closed = folder.parent.stat(), any(not p.stat().st_mode & 0o011 for p in folder.parent.resolve().parents)
    if above.st_uid not in (0, os.geteuid()):
        return f"one below {folder.parent}, which belongs to user {above.st_uid}"
    if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX and not closed:
        return f"one below {folder.parent}, where others can write"
    if not os.path.lexists(folder):
        return ""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "no folder"
    if found.st_uid != os.geteuid():
        return f"one that belongs to user {found.st_uid}"
    return "one in which others can write" if found.st_mode & 0o022 else ""


# %%
#| export
def _home() -> Path:
    "The cache's folder for libraries, made for us alone; where it cannot be trusted, a temporary one."
    folder = cache_folder() / "native"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.environ.get("ATTENSCRIBBLE_CACHE") and os.name != "nt" and _is_ours(folder.parent):
            folder.parent.chmod(folder.parent.stat().st_mode & 0o7755)  # the user's own, whatever the umask was
        if not _open_to_others(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not (fault := _open_to_others(folder)):
            folder.chmod(0o700)
    except OSError as error:
        fault = f"none that can be written to ({error.strerror})"
    return _temporary(f"{folder}: found {fault}") if fault else folder


# %%
#| export
@cache
def _temporary(why: str) -> Path:
    "A folder of this process alone, with a warning that says why."
    place = Path(tempfile.mkdtemp(prefix="attenscribble-"))  # mode 0700
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    warnings.warn(f"{why}, expected a folder of your own that nobody else can write to; C code is compiled for this "
                  "process alone (chmod 700, or another folder in ATTENSCRIBBLE_CACHE)", stacklevel=2)
    return place


# %% [markdown]
# Tensors are handed over as addresses and strides.

# %%
#| export
def address(
    tensor: Tensor | None,  # of any shape and dtype, on the CPU
) -> ctypes.c_void_p:  # of its first number; NULL for None
    "Where a tensor's numbers begin, for C."
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def strides(
    tensor: Tensor,  # of any shape and dtype
) -> ctypes.Array:  # one int64 for each axis
    "A tensor's strides, for C: how far apart neighbours lie along each axis, in numbers."
    return (ctypes.c_int64 * tensor.ndim)(*tensor.stride())


# %% [markdown]
# Processors compute on up to sixteen float32 numbers at once. GCC's and Clang's vector types express that without code for one processor; where
# the registers are narrower, the compiler uses several. The only function that the losses need is the exponential for $x \le 0$:
# $e^x = 2^k e^f$ with an integer $k$ and $|f| \le \frac12 \ln 2$, where the series up to $f^7$ is exact enough for float32.

# %%
#| export
LANES = 16  # numbers that a vector holds; all C texts get it from here
_VECTORS = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
    const vec rounded = __builtin_convertvector(k, vec);
    const vec f = x - rounded * 0.693359375f + rounded * 2.12194440e-4f;    /* ln 2 in two parts: f loses no digit */
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
# The bell sum with it: each thread reads three vectors at a time and keeps its sum in a register.

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


# %%
def bell_sum_c(a, b, weight):
    library = native(BELL)
    if library is None:
        return bell_sum(a, b, weight)
    library.bell_sum.restype = ctypes.c_double
    return library.bell_sum(address(a), address(b), address(weight), ctypes.c_int64(a.numel()), torch.get_num_threads())


# %%
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
# For small images both times are overhead: starting threads, allocating results. For large ones the lines part: PyTorch's results no longer fit
# into the cache and each pass goes to main memory, while C reads its three inputs once. In the [masked CRF](../method/32_mcrf.ipynb) the
# expression is evaluated for 120 neighbours of every pixel, whose values are already in the cache: there the difference is far larger.
#
# ### How exact is that exponential?

# %%
EXPONENTIAL = "void exponential(const float *x, float *y) { store(y, exp_negative(load(x))); }"


def exponential_c(x):
    y = torch.empty_like(x)
    for start in range(0, len(x), LANES):
        native(EXPONENTIAL).exponential(address(x[start:]), address(y[start:]))
    return y


# %%
if native(EXPONENTIAL):
    x = -torch.logspace(-6, 1.939, 4096)
    error = (exponential_c(x).double() / x.double().exp() - 1).abs()
    print(f"largest relative error {error.max():.1e}; a unit in the last place is 1.2e-07")
    assert error.max() < 3 * 2**-23


# %% [markdown]
# ## Slide the threads
#
# How much do more threads speed up the bell sum on this machine, for an image of a side of your choice?

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
# **1. Predict.** An expression reads three arrays and returns one sum. At least how many bytes of float32 move between memory and processor for
# `pixels` pixels, and how many if each of `passes` operations also writes an array that the next one reads?

# %%
def check_bytes(f):
    assert f(10, 0) == (120, 120) and f(10, 3) == (120, 360)

def bytes_moved(pixels, passes):
    ...  # your code here

exercise(check_bytes, bytes_moved, solution=lambda pixels, passes: (12 * pixels, 12 * pixels + 8 * pixels * passes))


# %% [markdown]
# **2. Implement.** The exponential as above in Python, for one number: divide by $2^k$, then sum the series up to $f^6$.

# %%
def check_exponential(f):
    assert all(math.isclose(f(x), math.exp(x), rel_tol=2e-6) for x in (0, -0.1, -1, -5.5, -30.0))

def exponential(x):
    ...  # your code here

def exponential_solution(x):
    k = round(x / math.log(2))
    f = x - k * math.log(2)
    return 2.0**k * sum(f**n / math.factorial(n) for n in range(7))

exercise(check_exponential, exponential, exponential_solution)

# %% [markdown]
# ## Recap
#
# `native` compiles a C text once and gives its functions, or None where it cannot. Surprising: memory, not arithmetic, limits an expression of six
# simple operations. [The next chapter](05_distributed.ipynb): several processes, one batch.
