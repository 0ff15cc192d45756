# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How to read this book
#
# > One palette, one way to draw, one way to check: what every chapter shares.
#
# A chapter asks a question, shows the answer, derives it in slow code that mirrors the equation, then replaces that
# code by a fast form and **proves** the two equal. The fast form is exported; it is what you import.

# %%
#| default_exp book

# %%
#| export
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from threading import Event, Thread

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation

# %% [markdown]
# ## One colour for one class
#
# The colours are those of Okabe and Ito, chosen so that a reader with any common form of colour blindness tells the
# first four classes apart. Class 0, the background, is drawn white; a pixel nobody annotated is transparent.

# %%
#| export
BACKGROUND = "#FFFFFF"
CLASS_COLOURS = ("#56B4E9", "#F0E442", "#D55E00", "#CC79A7", "#0072B2", "#009E73", "#E69F00", "#999999")


def class_colour(
    class_id: int,  # 0 is the background; past the palette's end the colours repeat
) -> str:  # "#RRGGBB"
    "The colour of a class id, the same in every figure."
    return BACKGROUND if class_id == 0 else CLASS_COLOURS[(class_id - 1) % len(CLASS_COLOURS)]


def class_rgba(
    classes: np.ndarray,  # [H,W] integer class ids
    ignore: int | None = None,  # this value is drawn transparent, and so is 0 unless `background`
    background: bool = False,  # draw class 0 in white
    alpha: float = 1.0,  # opacity of what is drawn
) -> np.ndarray:  # [H,W,4] float in [0,1]
    "Class ids as an RGBA picture."
    picture = np.zeros((*classes.shape, 4))
    for class_id in np.unique(classes):
        if class_id != ignore and (class_id != 0 or background):
            picture[classes == class_id] = to_rgba(class_colour(int(class_id)), alpha)
    return picture


# %%
assert class_colour(0) == "#FFFFFF" and class_colour(3) == "#D55E00" and class_colour(9) == class_colour(1)
two_by_two = class_rgba(np.array([[0, 1], [4, 3]]), ignore=4)
assert two_by_two[1, 0, 3] == 0 and two_by_two[0, 0, 3] == 0 and two_by_two[0, 1, 3] == 1


# %% [markdown]
# ## One way to draw a slice
#
# `draw` puts an image in gray, fixed to [0, 1], and over it any of: a scribble, a filled label map, the outline of a
# label map. A white scribble on a bright image would vanish, so scribbles get a dark rim of
# one pixel.

# %%
#| export
def panels(
    count: int,  # number of panels
    columns: int | None = None,  # panels a row; all in one row unless told
    size: float = 2.4,  # side of a panel in inches
) -> tuple[Figure, np.ndarray]:  # the figure, and `count` axes in reading order
    "Empty panels without ticks, for pictures to be compared."
    columns = columns or count
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows + 0.35), squeeze=False,
                                layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes.ravel()[:count]


def draw(
    axis: Axes,  # where to draw
    image: np.ndarray | None = None,  # [H,W] in [0,1]
    *,
    scribble: np.ndarray | None = None,  # [H,W] class ids, `ignore` where unannotated
    label: np.ndarray | None = None,  # [H,W] class ids, filled half-transparently
    outline: np.ndarray | None = None,  # [H,W] class ids, only their borders
    ignore: int | None = None,  # the value of an unannotated pixel
    spacing_mm: tuple[float, float] | None = None,  # (y,x) pixel size in mm; adds a scale bar
    title: str = "",
) -> Axes:  # the same axes
    "Draw one slice: gray image, then filled labels, outlines and scribbles over it."
    if image is not None:
        axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if label is not None:
        axis.imshow(class_rgba(np.asarray(label), ignore, alpha=0.55 if image is not None else 1.0),
                    interpolation="nearest")
    if outline is not None:
        for class_id in np.unique(outline):
            if class_id not in (0, ignore):
                axis.contour(np.asarray(outline) == class_id, [0.5], colors=[class_colour(int(class_id))],
                             linewidths=1.2)
    if scribble is not None:
        drawn = np.asarray(scribble)
        rim = binary_dilation(drawn != ignore) & (drawn == ignore)
        axis.imshow(np.dstack([np.zeros((*rim.shape, 3)), 0.6 * rim]), interpolation="nearest", zorder=2)
        axis.imshow(class_rgba(drawn, ignore, background=True), interpolation="nearest", zorder=3)
    if spacing_mm is not None:
        scale_bar(axis, spacing_mm[1])
    axis.set_title(title, fontsize=9)
    return axis


def scale_bar(
    axis: Axes,
    pixel_mm: float,  # width of a pixel in mm
    length_mm: float = 20,  # length of the bar in mm
) -> None:
    "A scale bar in the lower left corner of an image."
    low, high = sorted(axis.get_ylim())
    left, right = sorted(axis.get_xlim())
    x, y = left + 0.05 * (right - left), high - 0.06 * (high - low)
    axis.plot([x, x + length_mm / pixel_mm], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axis.text(x, y - 0.02 * (high - low), f"{length_mm:g} mm", color="white", fontsize=7, va="bottom")


def class_legend(
    figure: Figure,
    class_names: Sequence[str],  # index = class id; the background first
    background: bool = False,  # name class 0 too
) -> None:
    "One legend below all panels: a coloured square for each class."
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=class_colour(i), edgecolor="black", linewidth=0.5, label=name)
               for i, name in enumerate(class_names) if i or background]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


# %%
yy, xx = np.mgrid[:64, :64]
radius = np.hypot(yy - 32, xx - 32)
label = np.where(radius < 10, 3, np.where(radius < 16, 2, 0))
scribble = np.full_like(label, 4)
scribble[32, 28:36], scribble[18, 28:36], scribble[5, 8:56] = 3, 2, 0
figure, (left, right) = panels(2)
draw(left, 0.8 - radius / 60, scribble=scribble, ignore=4, spacing_mm=(1.5, 1.5), title="image and scribble")
draw(right, 0.8 - radius / 60, label=label, outline=label, title="label, filled and outlined")
class_legend(figure, ["background", "RV", "Myo", "LV"], background=True)


# %% [markdown]
# ## Figures that outlive the notebook
#
# Pictures that the README or a later page shows are written to `figures/` of the project.

# %%
#| export
def project_root(
    start: Path | str | None = None,  # where to look from; the current folder unless told
) -> Path | None:  # the clone's top folder, or None outside of one
    "The folder of the clone that holds `start`: the nearest one with this project's settings.ini."
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        settings = folder / "settings.ini"
        if settings.is_file() and "lib_name = attenscribble" in settings.read_text():
            return folder
    return None


def save_figure(
    figure: Figure,
    path: Path | str,  # a bare name goes to the clone's figures/ folder, if there is one
    dpi: int = 110,
) -> Path:  # the file written
    "Write a figure as PNG, byte-for-byte reproducible."
    path = Path(path).with_suffix(".png")
    if path.parent == Path(".") and (root := project_root()):
        path = root / "figures" / path
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path


# %% [markdown]
# ## Equal means value *and* gradient
#
# A fast form is right when, in float64, it gives the reference's value and the reference's gradient in every input.
# One helper says so for the whole book.

# %%
#| export
def assert_same(
    fast: Callable,  # the form to be checked: float tensors in, a scalar tensor out
    reference: Callable,  # the obviously correct form, same arguments
    *inputs: torch.Tensor,  # float tensors; compared in float64
    **tolerances: float,  # rtol and atol of `torch.testing.assert_close`
) -> None:
    "Check that two forms agree in value and in the gradient of every input. Raises AssertionError."
    def run(form: Callable) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().double().requires_grad_() for x in inputs]
        value = form(*leaves)
        return (value, *torch.autograd.grad(value, leaves))

    torch.testing.assert_close(run(fast), run(reference), **tolerances)


# %%
x = torch.randn(5)
assert_same(lambda x: x.square().sum(), lambda x: sum(v * v for v in x), x)
try:  # same value at 0, another slope: the gradient gives it away
    assert_same(lambda x: x.sum(), lambda x: (2 * x).sum(), torch.zeros(3))
    raise RuntimeError("a wrong gradient passed")
except AssertionError:
    pass


# %% [markdown]
# ## What does it cost?
#
# One line: seconds, peak memory, threads. It teaches orders of magnitude; it judges nothing.

# %%
#| export
@dataclass(frozen=True)
class Cost:
    "What one call took."

    seconds: float
    peak_mib: float  # growth of the process's resident memory above its start, sampled every millisecond
    threads: int

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s, {self.peak_mib:.0f} MiB, {self.threads} threads, {torch.get_num_threads()} used"


def cost(
    call: Callable[[], object],  # what to measure; called twice, the first time to warm up
) -> Cost:
    "Seconds and peak memory of a call on the CPU."
    call()
    process, done = psutil.Process(), Event()
    start_bytes = peak_bytes = process.memory_info().rss

    def sample() -> None:
        nonlocal peak_bytes
        while not done.wait(0.001):
            peak_bytes = max(peak_bytes, process.memory_info().rss)

    sampler = Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    return Cost(seconds, (peak_bytes - start_bytes) / 2**20, os.cpu_count() or 1)


# %%
print(cost(lambda: torch.randn(1000, 1000) @ torch.randn(1000, 1000)))


# %% [markdown]
# ## Exercises that check themselves
#
# Each chapter ends with a few. You replace the body of the attempt and run the cell; `exercise` tells you whether the
# check passes. The solution stands below, and the check runs on it too: an exercise that cannot be solved is a bug.

# %%
#| export
def exercise(
    check: Callable[[Callable], None],  # raises AssertionError unless the function it is given is right
    attempt: Callable,  # yours
    solution: Callable,  # ours
) -> None:
    "Run a check on the attempt and say how it went; the solution has to pass."
    check(solution)
    try:
        check(attempt)
    except Exception as error:
        print(f"not yet: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    else:
        if os.environ.get("ATTENSCRIBBLE_CHECK_BOOK"):
            raise AssertionError(f"the untouched attempt of {check.__name__} passes: the exercise asks nothing")
        print("correct")


# %%
def check_double(f):
    assert f(3) == 6

def attempt_double(x):
    ...  # your code here

exercise(check_double, attempt_double, solution=lambda x: 2 * x)


# %% [markdown]
# ## A wrong name gets a right one
#
# Methods, datasets and profiles are chosen by name. A misspelt one is answered with the choices and the nearest.

# %%
#| export
def one_of(
    field: str,  # what is being chosen, for the message
    value: str,
    choices: Iterable[str],
) -> str:  # the value
    "The value, if it is one of the choices. Raises ValueError with the choices and the nearest of them."
    choices = list(choices)
    if value not in choices:
        near = get_close_matches(str(value).lower(), choices, n=1)
        raise ValueError(f"{field}: found {value!r}, expected one of {', '.join(choices)}"
                         + (f"; did you mean {near[0]!r}?" if near else ""))
    return value


# %%
assert one_of("fruit", "pear", ("apple", "pear")) == "pear"
try:
    one_of("fruit", "aple", ("apple", "pear"))
    raise RuntimeError("a wrong name passed")
except ValueError as error:
    assert str(error) == "fruit: found 'aple', expected one of apple, pear; did you mean 'apple'?"

# %% [markdown]
# ## Recap
#
# `draw`, `panels`, `class_legend`, `save_figure` for pictures; `assert_same` and `cost` for checks; `exercise` for you.
# [The first chapter](data/10_scans.ipynb) opens a scan.
