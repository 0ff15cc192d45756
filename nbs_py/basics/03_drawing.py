# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One way to draw
#
# > One palette and one way to draw: what every picture of this book shares.
#
# This book shows slices of scans, and on them scribbles, labels and predictions. One class has one colour in all of these pictures, and the
# colours can be told apart with any common form of colour blindness. The functions of this chapter draw every picture that follows.

# %%
#| default_exp basics.drawing

# %%
#| export
import html
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import binary_dilation

from attenscribble.basics.files import project_root, write_atomic

# %% [markdown]
# ## One colour for one class
#
# The colours are those of Okabe and Ito, in an order in which the first four classes differ most, also for colour-blind readers. Class 0, the
# background, is drawn white; a pixel that nobody annotated is transparent.

# %%
#| export
_BACKGROUND = "#FFFFFF"
CLASS_COLOURS = ("#56B4E9", "#F0E442", "#D55E00", "#CC79A7", "#0072B2", "#009E73", "#E69F00", "#999999")


# %%
#| export
def class_colour(
    class_id: int,  # 0 is the background; past the palette's end the colours repeat
) -> str:  # "#RRGGBB"
    "The colour of a class id, the same in every figure."
    return _BACKGROUND if class_id == 0 else CLASS_COLOURS[(class_id - 1) % len(CLASS_COLOURS)]


# %%
#| export
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
# ## Names are only names
#
# A class, a patient or a file may be called `$_$`, `a|b` or `<b>`, and a file's name need not be text at all. Matplotlib would read the first as a
# formula and fail, Markdown the second as a border, a browser the third as a command. Every name goes through one of these functions on its way.

# %%
#| export
def plain(
    text: object,  # a name from a file or its content
    keep: str = "",  # control characters that stay
) -> str:  # text that any file, terminal or font can take
    "A name with its control characters, and what is no text in it, shown by their codes."
    return "".join(c if c in keep or not _unprintable(c) else c.encode("unicode_escape", "backslashreplace").decode()
                   for c in str(text))


def _unprintable(char: str) -> bool:
    "A control character, half a character (a surrogate), a line separator, or a command to turn the writing round."
    turning = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
    return char in turning or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


# %%
#| export
def for_figure(
    text: object,  # a name
) -> str:  # for a title, a label, a caption
    "A name as matplotlib draws it: no formula, and no label that a legend leaves out."
    shown = plain(text).replace("$", r"\$")
    return f"\u200a{shown}" if shown.startswith("_") else shown  # a hair space


def for_html(
    text: object,  # a name
) -> str:  # for a widget or a page
    "A name as a browser shows it: no tag, no attribute."
    return html.escape(plain(text))


def for_markdown(
    text: object,  # a name
) -> str:  # for a cell of a table or a line
    "A name as Markdown shows it: no border, no emphasis, no link, no formula, no tag."
    shown = re.sub(r"([\\`*|\[\]~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain(text))
    return html.escape(shown, quote=False)


# %%
assert for_figure("$_$") == r"\$_\$" and for_html("<b>") == "&lt;b&gt;" and plain("a\udcffb\n") == r"a\udcffb\n"
assert for_markdown("a|b") == r"a\|b" and for_markdown("left_kidney") == "left_kidney"


# %% [markdown]
# ## One way to draw a slice
#
# `draw` puts an image in gray, fixed to [0, 1], and over it any of: a scribble, a filled label map, the outline of a
# label map.

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


# %%
#| export
def draw(
    axis: Axes,  # where to draw
    image: np.ndarray | None = None,  # [H,W] in [0,1]
    *,
    scribble: np.ndarray | None = None,  # [H,W] class ids, `ignore` where unannotated
    label: np.ndarray | None = None,  # [H,W] class ids, filled half-transparently
    outline: np.ndarray | None = None,  # [H,W] class ids, only their borders
    ignore: int | None = None,  # the value of an unannotated pixel
    spacing_mm: tuple[float, float] | None = None,  # (y,x) pixel size in mm; adds a scale bar
    title: str = "",  # above the picture
) -> Axes:  # the same axes
    "Draw one slice: gray image, then filled labels, outlines and scribbles over it."
    if image is not None:
        axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if label is not None:
        axis.imshow(class_rgba(np.asarray(label), ignore, alpha=0.55 if image is not None else 1.0),
                    interpolation="nearest")
    if outline is not None:
        _draw_outline(axis, np.asarray(outline), ignore)
    if scribble is not None:
        _draw_scribble(axis, np.asarray(scribble), ignore)
    if spacing_mm is not None:
        scale_bar(axis, spacing_mm[1])
    axis.set_title(title, fontsize=9)
    return axis


# %% [markdown]
# A white scribble would vanish on a bright image, so scribbles get a dark rim of one pixel.

# %%
#| export
def _draw_outline(axis: Axes, classes: np.ndarray, ignore: int | None) -> None:
    "The borders of all classes but the background."
    for class_id in np.unique(classes):
        if class_id not in (0, ignore):
            axis.contour(classes == class_id, [0.5], colors=[class_colour(int(class_id))], linewidths=1.2)


def _draw_scribble(axis: Axes, classes: np.ndarray, ignore: int | None) -> None:
    "Strokes in their colours, the background's too, with a rim around them."
    rim = binary_dilation(classes != ignore) & (classes == ignore)
    axis.imshow(np.dstack([np.zeros((*rim.shape, 3)), 0.6 * rim]), interpolation="nearest", zorder=2)
    axis.imshow(class_rgba(classes, ignore, background=True), interpolation="nearest", zorder=3)


# %%
#| export
def scale_bar(
    axis: Axes,  # with an image, which sets its limits
    pixel_mm: float,  # width of a pixel in mm
    length_mm: float = 20,  # length of the bar in mm
) -> None:
    "A scale bar in the lower left corner of an image."
    low, high = sorted(axis.get_ylim())
    left, right = sorted(axis.get_xlim())
    x, y = left + 0.05 * (right - left), high - 0.06 * (high - low)
    axis.plot([x, x + length_mm / pixel_mm], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axis.text(x, y - 0.02 * (high - low), f"{length_mm:g} mm", color="white", fontsize=7, va="bottom")


# %%
#| export
def class_legend(
    figure: Figure,  # of any number of panels
    class_names: Sequence[str],  # index = class id; the background first
    background: bool = False,  # name class 0 too
) -> None:
    "One legend below all panels: a coloured square for each class."
    handles = [Rectangle((0, 0), 1, 1, facecolor=class_colour(i), edgecolor="black", linewidth=0.5,
                         label=for_figure(name))
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
# Pictures that the README or another page shows are written to `figures/` of the project.

# %%
#| export
def save_figure(
    figure: Figure,  # what to write
    path: Path | str,  # a bare name goes to the clone's figures/ folder, if there is one
    dpi: int = 110,  # pixels an inch
) -> Path:  # the file written
    "Write a figure as PNG, byte-for-byte reproducible."
    path = Path(path).with_suffix(".png")
    if path.parent == Path(".") and (root := project_root()):
        path = root / "figures" / path
    write_atomic(path, lambda part: figure.savefig(part, dpi=dpi, metadata={"Software": None}))
    return path

# %% [markdown]
# ## Recap
#
# `draw`, `panels`, `class_legend` and `save_figure` make the pictures; `for_figure`, `for_html` and `for_markdown` keep names names. [The next chapter](04_native.ipynb) leaves Python
# for a few lines of C.
