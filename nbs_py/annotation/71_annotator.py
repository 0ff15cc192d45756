# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The annotator
#
# > Draw, train, correct, train: a scan with pens for its classes in a notebook's cell.
#
# Which byte of a drawing is which voxel of the patient? The browser and Python count voxels in different orders and
# exchange messages with a delay, so a stroke could be stored in the wrong place or lost. This chapter converts one
# order into the other, builds a canvas with pens and buttons around it, and trains on the strokes of [one
# scan](70_session.ipynb).

# %%
#| default_exp annotation.annotator

# %%
#| export
import html
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from matplotlib.colors import to_rgb

# %%
#| export
from attenscribble.annotation.session import (
    Session,
    keeps_strokes,
    learn,
    open_session,
    opening_remarks,
    quick_config,
    save_results,
    save_session,
    scan_dataset,
)

# %%
#| export
from attenscribble.basics.drawing import class_colour
from attenscribble.basics.errors import DataError
from attenscribble.data.folder import IGNORE
from attenscribble.data.grid import PLANES, Grid
from attenscribble.data.scans import Case
from attenscribble.runs.training import Training

# %%
import tempfile
from dataclasses import replace
from itertools import permutations, product

from ipywidgets import interact

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import draw, panels
from attenscribble.data.check import check
from attenscribble.data.folder import scale_robust
from attenscribble.data.phantom import phantom
from attenscribble.data.simulation import simulate

# %%
heart = next(phantom(patients=1, seed=0, side=96).cases())
NAMES = ("background", "RV", "Myo", "LV")
work = Path(tempfile.mkdtemp())

def strokes(slices):
    "What an annotator draws on these slices; IGNORE elsewhere."
    drawn = simulate(heart.label, "hand", classes=4, ignore=IGNORE, case=heart.name, length=0.5)
    drawn[[z for z in range(len(drawn)) if z not in slices]] = IGNORE
    return drawn


# %% [markdown]
# ## The answer, as a picture
#
# The phantom in JupyterLab, drawn on with the mouse, after a training:
#
# ![The annotator: pens on the left, a slice with strokes and mask on the right](../../figures/annotator.png)
#
# The left button draws, the right button moves the picture, and the wheel or the slider changes the slice. **Train**
# works in the background: one may go on drawing, and **Stop** ends the training and keeps its mask. The next training
# goes on from the weights of this one, unless a stroke was erased in between. Nothing is written before **Save**.
#
# ## Which byte is which voxel
#
# The *canvas*, the surface in the browser that is drawn on, is a widget of [NiiVue](https://github.com/niivue/niivue).
# It gives its drawing as a row of bytes, one per voxel, on a grid whose axes run to the patient's right, front and
# head, $N_i\times N_j\times N_k$ voxels, the first axis fastest. A case has slices $z$, rows $y$ and columns $x$
# ([Space](../data/10_grid.ipynb)). Around each slice we lay a frame of $f$ voxels, for a reason that comes below:
#
# $$n=i+N_i\,(j+N_j\,k),\qquad(i,j,k)=\begin{cases}(X{+}f{-}1{-}x,\ Y{+}f{-}1{-}y,\ z)&\text{axial}\\
# (X{+}f{-}1{-}x,\ z,\ Y{+}f{-}1{-}y)&\text{coronal}\\(z,\ X{+}f{-}1{-}x,\ Y{+}f{-}1{-}y)&\text{sagittal}\end{cases}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $n$ | place in `bitmap` | $N_iN_jN_k$ bytes | class id + 1; 0 not drawn |
# | $x,y,z$ | place in `scribble` | [Z,Y,X] uint8 | class id; 255 not drawn |
# | $f$ | `_FRAME` | – | voxels |
#
# A case that was not read from a file, or from one without coordinates, counts as axial.

# %%
def place_naive(z, y, x, shape, plane, frame):
    "The byte of one voxel, as the equation says."
    Z, Y, X = shape
    left, up = X + frame - 1 - x, Y + frame - 1 - y
    wide, high = X + 2 * frame, Y + 2 * frame
    i, j, k, n_i, n_j = {"axial": (left, up, z, wide, high), "coronal": (left, z, up, wide, Z),
                         "sagittal": (z, left, up, Z, wide)}[plane]
    return i + n_i * (j + n_j * k)


# %% [markdown]
# **By hand.** One axial slice of 1×2 voxels, no frame: column 0 lies to the patient's right, so it comes last in a row
# of bytes that runs to the right: $n=2+0-1-0=1$. With a frame of one voxel the row is 4 bytes long and there are three:
# $n=(2+1-1-0)+4\,(1+1-1-0)=6$.
#
# **What breaks.** A pen three voxels wide writes to $n\pm1$ and $n\pm N_i$, and NiiVue does not check that these bytes
# are neighbours in the picture. At the border of a slice they are not: the stroke appears on the opposite side, or in
# the next slice. This is why there is a frame: such voxels lie on it, and are dropped.

# %%
def pen_naive(i, j, shape, width):
    "The pixels of a slice [J,I] that NiiVue's square pen marks at (i,j): by their place in the row of bytes."
    marked, half = np.zeros(shape, bool), width // 2
    for di, dj in product(range(-half, half + 1), repeat=2):
        marked.ravel()[(i + di + shape[1] * (j + dj)) % marked.size] = True
    return marked

assert place_naive(0, 0, 0, (1, 1, 2), "axial", 0) == 1 and place_naive(0, 0, 0, (1, 1, 2), "axial", 1) == 6
assert pen_naive(3, 3, (8, 8), 3)[2:5, 2:5].sum() == 9
assert pen_naive(0, 3, (8, 8), 3)[:, 7].sum() == 3  # drawn on the left, marked on the right

# %% [markdown]
# ## Fast: NiiVue's order as a `Grid`
#
# `Grid` converts between axes that are exchanged and reversed. We give NiiVue a file that lies on a grid of its own,
# without a tilt and with 0 mm in the middle, and read its drawing with the same object.

# %%
#| export
_FRAME = 3  # voxels around each slice: the widest pen marks 2 beside its middle
_DIRECTIONS = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}  # the patient's axis of z, y, x


def canvas_grid(
    case: Case,  # the scan to show
) -> Grid:  # of [Z,Y,X] with a frame around each slice
    "How the canvas holds a case: axes to the patient's right, front and head, a tilt left out."
    plane = case.grid.plane if case.grid and case.grid.plane in PLANES else "axial"
    order, (z, y, x) = np.argsort(_DIRECTIONS[plane]), case.shape
    shape = np.array([z, y + 2 * _FRAME, x + 2 * _FRAME])[order]
    mm = np.array(case.spacing_mm or (1, 1, 1))[order]
    affine = np.diag([*mm, 1.0])
    affine[:3, 3] = -mm * (shape - 1) / 2  # NiiVue zooms towards 0 mm
    return Grid.of(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), plane)


# %%
#| export
def to_canvas(
    volume: np.ndarray,  # [Z,Y,X] uint8
    grid: Grid,  # of `canvas_grid`
) -> nib.Nifti1Image:  # on that grid, the frame 0
    "A volume as a file that NiiVue shows."
    return grid.picture(np.pad(volume, ((0, 0), (_FRAME, _FRAME), (_FRAME, _FRAME))))


# %%
#| export
def canvas_bytes(
    volume: np.ndarray,  # [Z,Y,X] uint8
    grid: Grid,  # of `canvas_grid`
) -> np.ndarray:  # [voxels] uint8
    "A volume in the order of NiiVue's bytes."
    return np.asarray(to_canvas(volume, grid).dataobj).ravel(order="F")


# %% [markdown]
# NiiVue calls its drawing a bitmap: 0 is not drawn, and pen 1 draws class 0.

# %%
#| export
def bitmap_of(
    scribble: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    grid: Grid,  # of `canvas_grid`
) -> np.ndarray:  # [voxels] uint8: class id + 1, 0 where not drawn
    "A scribble as NiiVue's drawing."
    return canvas_bytes(scribble + np.uint8(1), grid)  # IGNORE is the last value of a byte: + 1 makes it 0


# %%
#| export
def scribble_of(
    bitmap: np.ndarray,  # [voxels] uint8, as `bitmap_of`
    grid: Grid,  # of `canvas_grid`
) -> np.ndarray:  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    "NiiVue's drawing as a scribble; what lies on the frame is dropped."
    drawn = grid.take(bitmap.reshape(grid.shape, order="F"))[:, _FRAME:-_FRAME, _FRAME:-_FRAME]
    return np.ascontiguousarray(drawn) - np.uint8(1)


# %% [markdown]
# ## Equal, and there and back
#
# In each plane the fast form equals the naive one, voxel by voxel.

# %%
tiny = Case("tiny", "", np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5), (10.0, 1.5, 1.5))
for plane, directions in _DIRECTIONS.items():
    stored = nib.Nifti1Image(np.zeros(np.array([3, 4, 5])[np.argsort(directions)]), np.diag([1.5, 1.5, 1.5, 1]))
    grid = canvas_grid(replace(tiny, grid=Grid.of(stored, plane)))
    marks = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    bitmap = bitmap_of(marks, grid)
    for z, y, x in np.ndindex(3, 4, 5):
        assert bitmap[place_naive(z, y, x, (3, 4, 5), plane, _FRAME)] == marks[z, y, x] + 1
    np.testing.assert_array_equal(scribble_of(bitmap, grid), marks)
    bitmap[bitmap == 0] = 2  # drawn on the frame
    np.testing.assert_array_equal(scribble_of(bitmap, grid), marks)

# %%
grid, empty = canvas_grid(heart), np.full(heart.image.shape, IGNORE, np.uint8)
print(f"fast, {empty.size} voxels there and back: {cost(lambda: scribble_of(bitmap_of(empty, grid), grid))}")

# %% [markdown]
# **The voxel under the pen is the one marked in the file.** In each of the 48 ways to store a tilted scan, mark the
# voxel of one gray value on the canvas, save, and read the saved file beside the scan's: the marked voxel has that
# value. The folder passes the check.

# %%
block = np.random.default_rng(1).permutation(210).reshape(5, 6, 7).astype(np.int16)
turn = np.array([[0.94, 0, 0.34, 9], [0, 1, 0, -7], [-0.34, 0, 0.94, 5], [0, 0, 0, 1]])
upright = nib.Nifti1Image(block, turn @ np.diag([-1.5, -1.5, 8, 1]))

def mark_and_save(path):
    "The file of strokes after two voxels of a scan were marked on the canvas: those of the gray values 100 and 50."
    session = open_session(path, NAMES[:2], work / "blocks")
    grid = canvas_grid(session.case)
    bitmap = bitmap_of(session.case.scribble, grid)
    marked = sum(mark * np.isclose(session.case.image, scale_robust(block, fills=True)[block == gray])
                 for mark, gray in ((2, 100), (1, 50)))
    picture = canvas_bytes(np.asarray(marked, np.uint8), grid)
    bitmap[picture == 2], bitmap[picture == 1] = 2, 1
    return nib.load(save_session(session, scribble_of(bitmap, grid)))


# %%
for number, (order, signs) in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
    scan = upright.as_reoriented(np.array(list(zip(order, signs, strict=True))))
    nib.save(scan, work / f"block{number}.nii.gz")
    saved = mark_and_save(work / f"block{number}.nii.gz")
    assert np.asarray(scan.dataobj)[np.asarray(saved.dataobj) == 1].tolist() == [100]
    assert np.allclose(saved.affine, scan.affine)

report = check(work / "blocks", axis="axial")
assert report.fine and len(report.scans) == 48


# %% [markdown]
# ## Slide the pen
#
# What a pen marks at the border of a slice, without a frame (left) and with one (right: the slice inside the line).

# %%
def plot_pen(columns, width=5, side=12):
    "NiiVue's pen in the middle row, at some columns: without and with a frame."
    _, axes = panels(2 * len(columns), size=1.6)
    wide, square = side + 2 * _FRAME, np.array([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    for number, i in enumerate(columns):
        bare, framed = axes[2 * number:2 * number + 2]
        draw(bare, pen_naive(i, side // 2, (side, side), width), title=f"column {i}, bare")
        draw(framed, pen_naive(i + _FRAME, side // 2 + _FRAME, (wide, wide), width), title="framed")
        framed.plot(*(square * side + _FRAME - 0.5), color="#D55E00")

plot_pen((0, 1, 6))

# %%
interact(lambda column=0, width=5: plot_pen((column,), width), column=(0, 11), width=(1, 5, 2));


# %% [markdown]
# ## The canvas
#
# What NiiVue is told: which plane, how radiologists look at it, which button does what, and the colours of this book.
# NiiVue is imported when a canvas is made, since a script that only calls the functions above does not need it.

# %%
#| export
def _niivue_class() -> type:
    "NiiVue that does not send back a drawing that has just arrived: that would undo what was drawn meanwhile."
    try:
        from ipyniivue import NiiVue
    except ImportError as error:
        raise ImportError("the annotator needs ipyniivue: pip install 'attenscribble[book]'") from error

    class SilentNiiVue(NiiVue):  # type: ignore[misc]  # it has no types
        def _handle_binary_trait_change(self, change: Any) -> None:
            pass

    return SilentNiiVue


# %%
#| export
def _canvas_options(plane: str) -> dict[str, Any]:
    "Slices as radiologists look at them; left draws, right moves the picture, the wheel changes the slice."
    from ipyniivue import DragMode, SliceType

    return dict(slice_type=SliceType[plane.upper()], is_radiological_convention=True, sagittal_nose_left=True,
                drawing_enabled=True, crosshair_width=0, is_nearest_interpolation=True, drag_and_drop_enabled=False,
                drag_mode=DragMode.NONE, mouse_event_config={"rightButton": DragMode.PAN.value})


# %%
#| export
def _colour_table(names: Sequence[str], first: int) -> dict[str, list]:
    "Colours for the values 0 (transparent), 1 (of class `first`), 2 …, as NiiVue takes them."
    colours = [(0, 0, 0), *(to_rgb(class_colour(class_id)) for class_id in range(first, len(names)))]
    red, green, blue = ([round(255 * part) for part in parts] for parts in zip(*colours, strict=True))
    return {"R": red, "G": green, "B": blue, "A": [0] + [255] * (len(red) - 1), "I": list(range(len(red))),
            "labels": ["", *names[first:]]}


# %%
#| export
def _volumes(case: Case, names: Sequence[str], grid: Grid) -> tuple[Any, Any]:
    "Scan and empty mask, as NiiVue loads them."
    from ipyniivue import Volume

    gray = np.rint(255 * case.gray).astype(np.uint8)
    scan, empty = (to_canvas(volume, grid).to_bytes() for volume in (gray, np.zeros_like(gray)))
    mask = Volume(data=empty, name="mask.nii", opacity=0.4)
    mask.set_colormap_label(_colour_table(names, 1))
    return Volume(data=scan, name="scan.nii", cal_min=0, cal_max=255), mask


# %%
#| export
def _niivue(case: Case, names: Sequence[str], grid: Grid, height: int) -> tuple[Any, Any]:
    "A NiiVue widget that shows a scan, and the volume of its mask. Raises ImportError without ipyniivue."
    widget = _niivue_class()
    from ipyniivue import ColorMap
    from ipyniivue.utils import make_draw_lut

    scan, mask = _volumes(case, names, grid)
    letters = case.grid is not None and case.grid.plane in PLANES
    view = widget(height=height, is_orientation_text_visible=letters, **_canvas_options(grid.plane))
    view.load_volumes([scan, mask])
    view.draw_lut, view.draw_opacity = make_draw_lut(ColorMap(**_colour_table(names, 0))), 1.0
    return view, mask


# %% [markdown]
# **Two programs, one drawing.** The canvas draws, Python keeps the strokes. After each stroke Python asks the canvas
# for its drawing, and compares it with the last one; undo restores what changed and sends the result back. Before
# undo, Train and Save it asks once more, so that none of them misses a stroke that is still on its way.
#
# A browser without WebGL2 never shows the canvas, and never answers. So nothing waits for an answer before the canvas
# has been shown once.

# %%
#| export
class Canvas:
    "The drawing surface in the browser, a NiiVue widget: scan, strokes and mask. It sends its strokes when asked to."

    def __init__(
        self,
        case: Case,  # the scan to show
        names: Sequence[str],  # of the classes, the background first
        height: int,  # px
    ):
        "Raises ImportError without ipyniivue."
        self.grid = canvas_grid(case)
        self.view, self.mask = _niivue(case, names, self.grid, height)
        self.axis, self.z = _DIRECTIONS[self.grid.plane][0], len(case.gray) // 2  # NiiVue begins in the middle
        self.shown, self.moves = False, 0
        self.requests: deque[Any] = deque()  # what is not answered yet
        self.on_drawing: Callable[[np.ndarray], object] = lambda scribble: None  # called with each drawing that arrives
        self.on_shown: Callable[[], object] = lambda: None  # called when the browser has just shown the scan
        self.on_slice: Callable[[int], object] = lambda z: None  # called when the wheel has changed the slice
        _listen(self)

    def request_drawing(self, then: Callable[[], object] | None = None,  # what is done afterwards
                        *, keep: bool = True) -> None:  # hand the drawing to `on_drawing`
        "Ask for the drawing, and do something when it has come; before the canvas was shown, at once."
        if self.shown:
            self.requests.append((then, keep))
            self.view.send({"type": "set_drawing_enabled", "data": [True]})
        elif then:
            then()

    def show_scribble(self, scribble: np.ndarray) -> None:  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
        "Replace the drawing."
        _send(self.view, "drawBitmap", bitmap_of(scribble, self.grid))

    def show_mask(self, mask: np.ndarray) -> None:  # [Z,Y,X] uint8 class ids
        "Replace the mask."
        _send(self.mask, "img", canvas_bytes(mask, self.grid))

    def show_slice(self, z: int) -> None:  # number of the slice
        "Show another slice."
        _move(self, z)


# %% [markdown]
# How messages from the browser are answered:

# %%
#| export
def _listen(canvas: Canvas) -> None:
    "Let functions answer what happens in the browser."
    canvas.view.on_mouse_up(lambda _: canvas.request_drawing())
    canvas.view.on_image_loaded(lambda volume: _loaded(canvas) if volume is canvas.mask else None)
    canvas.view.on_location_change(partial(_moved, canvas))
    canvas.view.observe(partial(_arrived, canvas), "draw_bitmap")


# %%
#| export
def _loaded(canvas: Canvas) -> None:
    "The mask, the second of two volumes, is on the screen; in a browser without WebGL2 it never is."
    canvas.shown = True
    canvas.on_shown()


# %%
#| export
def _arrived(canvas: Canvas, change: Any) -> None:
    "A drawing has come: pass it on, then do what has been waiting for it."
    then, keep = canvas.requests.popleft() if canvas.requests else (None, True)
    if keep and change.new is not None and change.new.size == np.prod(canvas.grid.shape):
        canvas.on_drawing(scribble_of(change.new, canvas.grid))
    if then:
        then()


# %%
#| export
def _send(widget: Any, attribute: str, voxels: np.ndarray) -> None:
    "Replace the bytes of a drawing or of a volume in the browser."
    widget.send({"type": "buffer_change", "data": {"attr": attribute, "type": "uint8"}}, buffers=[voxels.tobytes()])


# %% [markdown]
# The wheel changes the slice in the browser, the slider in Python. The canvas answers each move of the slider with the
# place that it then shows. These answers are counted and not taken for the wheel: a late one would pull the slider
# back.

# %%
#| export
def _move(canvas: Canvas, z: int) -> None:
    "Show another slice."
    step, canvas.z = z - canvas.z, z
    if step and canvas.shown:
        canvas.moves += 1
        canvas.view.move_crosshair_in_vox(*(step * (axis == canvas.axis) for axis in range(3)))


# %%
#| export
def _moved(canvas: Canvas, place: dict[str, Any]) -> None:
    "The canvas shows another place: after a move of the slider, or of the wheel."
    if canvas.moves:
        canvas.moves -= 1
    elif (z := int(place["vox"][canvas.axis])) != canvas.z:
        canvas.z = z
        canvas.on_slice(z)


# %% [markdown]
# ## Pens, sliders, buttons

# %%
#| export
def _text_html(text: object, colour: str = "ui-font") -> str:
    'A line of text as HTML, in a colour of JupyterLab\'s theme: "ui-font", "error" or "success".'
    return f'<span style="color:var(--jp-{colour}-color0, inherit)">{html.escape(str(text))}</span>'


# %%
#| export
def _title(session: Session) -> str:
    "Name, size and place of a scan."
    case = session.case
    z, y, x = case.shape
    mm = " × ".join(f"{mm:.3g}" for mm in case.spacing_mm) + " mm" if case.spacing_mm else "voxel size unknown"
    return (f"{session.name}: {z} slices of {y} × {x} voxels, {mm}, {case.grid.plane if case.grid else 'as stored'}; "
            f"Save writes to {_home(session.root)}")


def _home(root: Path) -> str:
    "A folder for the user: from the current one on, and where it leads if it is reached by a link."
    shown = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    real = Path(os.path.realpath(root))
    return f"{shown}" if real == root else f"{shown}, which is {real}"


# %%
#| export
def _full_width(**options: Any) -> Any:
    "The layout of a widget that is as wide as its column."
    from ipywidgets import Layout

    return Layout(width="auto", **options)


def _buttons() -> tuple[Any, Any, Any, Any]:
    "Undo, Train, Stop, Save."
    from ipywidgets import Button, Layout

    return (Button(description="undo", icon="undo", layout=_full_width(), tooltip="take the last stroke back"),
            Button(description="Train", icon="play", button_style="primary", layout=Layout(width="76px")),
            Button(description="Stop", icon="stop", disabled=True, layout=Layout(width="70px")),
            Button(description="Save", icon="save", layout=Layout(width="72px")))


# %%
#| export
def _sliders() -> tuple[Any, Any, Any]:
    "Zoom, and how opaque strokes and mask are."
    from ipywidgets import FloatSlider

    rows = ("zoom", 1, 1, 8, 0.1), ("strokes", 1, 0, 1, 0.05), ("mask", 0.4, 0, 1, 0.05)
    zoom, strokes, mask = (
        FloatSlider(value, min=low, max=high, step=step, description=name, readout=False, layout=_full_width(),
                    style={"description_width": "52px"})
        for name, value, low, high, step in rows)
    return zoom, strokes, mask


# %%
#| export
def _pens(names: Sequence[str]) -> tuple[list[Any], Any]:
    "A button for each class and for the eraser, and the choice of the pen's width."
    from ipywidgets import Button, ToggleButtons

    width = ToggleButtons(options=[("1", 1), ("3", 3), ("5", 5)], style={"button_width": "36px"},
                          tooltips=[f"{width} voxels wide" for width in (1, 3, 5)])
    return [Button(layout=_full_width()) for _ in (*names, "eraser")], width


# %%
#| export
_NO_WEBGL = "No picture? Then this browser has no WebGL2."


def _indicators(z: int, slices: int) -> tuple[Any, Any, Any, Any]:
    "Which slice is shown, how far a training is, what has happened, and which button of the mouse does what."
    from ipywidgets import HTML, IntProgress, IntSlider

    return (IntSlider(z, 0, slices - 1, description="slice", layout=_full_width()),
            IntProgress(layout=_full_width(visibility="hidden")), HTML(), HTML(_text_html(_NO_WEBGL, "error")))


# %%
#| export
class Controls:
    "Pens, sliders, buttons and lines of text around a canvas; `widget` is all of it."

    def __init__(
        self,
        session: Session,  # what is drawn on
        canvas: Canvas,  # that shows it
    ):
        self.pens, self.pen_width = _pens(session.labels.names)
        self.zoom, self.stroke_opacity, self.mask_opacity = _sliders()
        self.undo, self.train, self.stop, self.save = _buttons()
        self.slice, self.progress, self.status, self.help = _indicators(canvas.z, len(session.case.gray))
        self.widget = _arranged(self, canvas, _title(session))
        _bind(self, canvas)


# %% [markdown]
# How they lie around the canvas, and what the sliders do:

# %%
#| export
def _arranged(controls: Controls, canvas: Canvas, title: str) -> Any:
    "Title, pens and buttons beside the canvas, and the status below."
    from ipywidgets import HTML, HBox, Label, Layout, VBox

    label = Label("pen", layout=Layout(width="52px", justify_content="flex-end"))
    left = VBox([*controls.pens, controls.undo, HBox([label, controls.pen_width]), controls.zoom,
                 controls.stroke_opacity, controls.mask_opacity,
                 HBox([controls.train, controls.stop, controls.save]), controls.progress],
                layout=Layout(flex="0 0 240px"))
    right = VBox([canvas.view, controls.slice, controls.help], layout=Layout(flex="1 1 auto", min_width="0"))
    return VBox([HTML(_text_html(title)), HBox([left, right]), controls.status])


# %%
#| export
def _bind(controls: Controls, canvas: Canvas) -> None:
    "Let the sliders act on the canvas, and the wheel on the slider of slices."
    view = canvas.view
    controls.pen_width.observe(lambda change: setattr(view.opts, "pen_size", change.new), "value")
    controls.stroke_opacity.observe(lambda change: setattr(view, "draw_opacity", change.new), "value")
    controls.mask_opacity.observe(lambda change: setattr(canvas.mask, "opacity", change.new), "value")
    controls.zoom.observe(lambda change: setattr(
        view.scene, "pan2d_xyzmm", [*view.scene.pan2d_xyzmm[:3], change.new]), "value")
    controls.slice.observe(lambda change: canvas.show_slice(change.new), "value")
    canvas.on_slice = lambda z: setattr(controls.slice, "value", z)


# %%
#| export
def _show_pens(controls: Controls, names: Sequence[str], scribble: np.ndarray, chosen: int) -> None:
    "Each pen in its class's colour, with the number of voxels drawn; the last one is the eraser."
    counts = np.bincount(scribble.ravel(), minlength=256)
    for number, pen in enumerate(controls.pens):
        eraser, held = number == len(names), number == chosen
        colour = "#DDDDDD" if eraser else class_colour(number)
        light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55
        pen.description = "✎ " * held + ("eraser" if eraser else f"{names[number]} · {counts[number]}")
        pen.style.button_color, pen.style.text_color = colour, "black" if light else "white"
        pen.style.font_weight = "bold" if held else "normal"
        pen.layout.border = f"{'3px' if held else '1px'} solid var(--jp-ui-font-color0, black)"


# %%
#| export
def _show_running(controls: Controls, running: bool) -> None:
    "Which buttons can be pressed."
    controls.train.disabled, controls.stop.disabled = running, not running
    controls.progress.layout.visibility = "visible" if running else "hidden"


# %%
#| export
def _tell(controls: Controls, text: object, colour: str = "ui-font") -> None:
    "A line below the picture."
    controls.status.value = _text_html(text, colour)


# %% [markdown]
# ## What the buttons do
#
# An annotator keeps the strokes, what undo needs, and the last training.

# %%
#| export
@dataclass(eq=False, repr=False)
class _State:
    "What is drawn on one scan, and what was learnt from it."

    session: Session
    canvas: Canvas
    controls: Controls
    settings: dict[str, Any]  # of `Config`, over QUICK
    scribble: np.ndarray  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    pen: int = 1  # a class id; past the last class, the eraser
    history: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # of undo: places, values before
    mask: np.ndarray | None = None  # [Z,Y,X] uint8 class ids, of the last training that ended
    training: Training | None = None  # with the weights behind that mask
    trained_on: np.ndarray | None = None  # [Z,Y,X] the strokes that they have seen
    preview: np.ndarray | None = None  # [Z,Y,X] the mask on the canvas
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


# %%
#| export
def _tell_drawn(state: _State) -> None:
    "Say what is drawn and what is missing."
    names, drawn = state.session.labels.names, state.scribble != IGNORE
    _show_pens(state.controls, names, state.scribble, state.pen)
    state.controls.save.button_style = "warning"
    missing = [name for class_id, name in enumerate(names) if not (state.scribble == class_id).any()]
    slices = ", ".join(map(str, np.flatnonzero(drawn.any((1, 2)))))
    text = f"{drawn.mean():.2%} of the voxels drawn, on slices {slices}." if slices else "Nothing drawn."
    _tell(state.controls, text + f" Not yet: {', '.join(missing)}." * bool(missing))


# %%
#| export
def _take(state: _State, scribble: np.ndarray) -> None:
    "Keep a new drawing, and for undo what it replaces."
    changed = np.flatnonzero(scribble != state.scribble)
    if changed.size:
        state.history.append((changed, state.scribble.ravel()[changed]))
        state.scribble = scribble
        _tell_drawn(state)


# %%
#| export
def _undo(state: _State) -> None:
    "Take the last change of the drawing back."
    if state.history:
        changed, before = state.history.pop()
        state.scribble.ravel()[changed] = before
        _tell_drawn(state)
        state.canvas.show_scribble(state.scribble)


# %%
#| export
def _choose(state: _State, pen: int) -> None:
    "Take up a pen. Raises ValueError for one that is not there."
    eraser = len(state.session.labels.names)
    if not 0 <= pen <= eraser:
        raise ValueError(f"pen: found {pen}, expected a class id below {eraser}, or {eraser}, the eraser")
    state.pen = pen
    state.canvas.view.set_pen_value(0 if pen == eraser else pen + 1, False)
    _show_pens(state.controls, state.session.labels.names, state.scribble, pen)


# %%
#| export
def _show_all(state: _State) -> None:
    "A canvas that was just shown gets drawing and mask."
    state.canvas.show_scribble(state.scribble)
    if state.preview is not None:
        state.canvas.show_mask(state.preview)


# %% [markdown]
# Strokes may come from Python as well. They are checked and copied, since undo writes into them.

# %%
#| export
def _checked_scribble(session: Session, scribble: np.ndarray) -> np.ndarray:
    "A copy, [Z,Y,X] uint8. Raises ValueError for another shape, and for values that are no class."
    found, classes = np.asarray(scribble), len(session.labels.names)
    if found.shape != session.case.shape:
        raise ValueError(f"scribble: found shape {found.shape}, expected {session.case.shape}")
    unknown = np.setdiff1d(found, [*range(classes), IGNORE])
    if unknown.size:
        raise ValueError(f"scribble: found the values {', '.join(map(str, unknown[:5]))}, expected class ids below "
                         f"{classes}, and {IGNORE} where nothing is drawn")
    return np.array(found, np.uint8, order="C")


# %%
#| export
def _save(state: _State, overwrite: bool = False) -> Path:
    "Write scan and strokes; after a training also mask and weights."
    root, files = state.session.root, [save_session(state.session, state.scribble, overwrite)]
    if state.training and state.mask is not None and not state.controls.train.disabled:
        files += save_results(state.session, state.mask, state.training, overwrite)
    state.controls.save.button_style = ""
    _tell(state.controls, f"Saved in {root}: {', '.join(str(file.relative_to(root)) for file in files)}", "success")
    return files[0]


# %%
#| export
def _train(state: _State) -> np.ndarray:
    "Train on the strokes: from the last weights, unless a stroke that they have seen was erased or drawn over."
    state.stop.clear()
    _show_running(state.controls, True)
    began, drawn = time.monotonic(), state.scribble.copy()
    kept = state.trained_on is not None and keeps_strokes(state.trained_on, drawn)
    try:
        mask, training = learn(state.session, drawn, partial(_show_progress, state), state.stop,
                               state.training if kept else None, **state.settings)
        state.mask, state.preview, state.training, state.trained_on = mask, mask, training, drawn
        state.canvas.show_mask(mask)
    finally:
        _show_running(state.controls, False)
    _tell_trained(state, time.monotonic() - began)
    return mask


# %%
#| export
def _show_progress(state: _State, training: Training, mask: np.ndarray | None) -> None:
    "How far a training is; now and then its mask."
    iterations = training.config.iterations
    state.controls.progress.max, state.controls.progress.value = iterations, training.step
    _tell(state.controls, f"Training: iteration {training.step} of {iterations}, {training.seconds:.0f} s, "
                          f"loss {training.log[-1]['loss']:.2f}")
    if mask is not None:
        state.preview = mask
        state.canvas.show_mask(mask)


# %%
#| export
def _tell_trained(state: _State, seconds: float) -> None:
    "Say that a training is over, and what to do next."
    state.controls.save.button_style = "warning"
    end, done = "Stopped" if state.stop.is_set() else "Done", state.training.step if state.training else 0
    _tell(state.controls, f"{end} after {done} iterations, {seconds:.0f} s. Draw where the mask is "
                          "wrong and train again, or save.", "success")


# %% [markdown]
# The button Train starts a thread, so that one may go on drawing. What goes wrong behind a button is written below the
# picture, since nobody sees an exception there.

# %%
#| export
def _attempt(controls: Controls, act: Callable[[], object]) -> None:
    "Do something, and say in words what went wrong."
    try:
        act()
    except (ValueError, OSError, RuntimeError, ArithmeticError, TypeError) as error:
        _tell(controls, error, "error")


# %%
#| export
def _start(state: _State) -> None:
    "Train in the background, unless a training is running. Raises DataError if too little is drawn."
    scan_dataset(state.session, state.scribble)
    if not state.controls.train.disabled:
        _show_running(state.controls, True)
        state.thread = threading.Thread(target=_train_in_thread, args=(state,), daemon=True)
        state.thread.start()


# %%
#| export
def _train_in_thread(state: _State) -> None:
    "Train without the loop's progress bar, which would appear in whatever cell runs meanwhile."
    from IPython import get_ipython

    publisher = getattr(get_ipython(), "display_pub", None)
    if publisher is not None and hasattr(publisher, "register_hook"):  # it holds for this thread alone
        publisher.register_hook(lambda message: None)
    _attempt(state.controls, partial(_train, state))


# %%
#| export
def _connect(state: _State) -> None:
    "Let the canvas and the buttons act."
    canvas, controls = state.canvas, state.controls
    canvas.on_drawing, canvas.on_shown = partial(_take, state), partial(_greet, state)
    for number, pen in enumerate(controls.pens):
        pen.on_click(lambda _, number=number: _choose(state, number))
    for button, act in ((controls.undo, _undo), (controls.train, _start), (controls.save, _save)):
        button.on_click(lambda _, act=act: canvas.request_drawing(partial(_attempt, controls, partial(act, state))))
    controls.stop.on_click(lambda _: state.stop.set())


# %%
#| export
def _greet(state: _State) -> None:
    "The canvas was just shown, and is empty: drawing and mask are sent, and its own drawing is not taken over."
    state.controls.help.value = _text_html("left: draw · right: move · wheel: slice")
    state.canvas.request_drawing(partial(_show_all, state), keep=False)


# %% [markdown]
# ## The annotator
#
# Its methods do what the buttons do, for a notebook that runs without anybody at the mouse.

# %%
#| export
class _Commands(_State):
    "What a notebook may do without the buttons."

    error: Exception | None = None  # why the scan could not be opened

    def choose(self, pen: int) -> None:  # a class id; past the last class, the eraser
        "Take up a pen. Raises ValueError for one that is not there."
        _choose(self._opened(), pen)

    def record(self, scribble: np.ndarray) -> None:  # [Z,Y,X] class ids, 255 where not drawn
        "Replace all strokes; `undo` brings them back. Raises ValueError for another shape or a value that is no class."
        _take(self._opened(), _checked_scribble(self.session, scribble))
        self.canvas.show_scribble(self.scribble)

    def undo(self) -> None:
        "Take the last stroke back."
        _undo(self._opened())

    def train(self) -> np.ndarray:  # the mask, [Z,Y,X] uint8 class ids
        "Train on the strokes and wait for the mask. Raises DataError if too little is drawn."
        return _train(self._opened())

    def start(self) -> None:
        "Train in the background, as the button does. Raises DataError if too little is drawn."
        _start(self._opened())

    def save(self, overwrite: bool = False) -> Path:  # the strokes' file
        """Write scan and strokes, after a training also mask and weights. Raises DataError if nothing is drawn, and for
        files that others saved or changed meanwhile, unless these may be replaced: `overwrite`."""
        return _save(self._opened(), overwrite)

    def _opened(self) -> "_Commands":
        if self.error:
            raise self.error
        return self

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(_text_html(self.error, "error")) if self.error else self.controls.widget)


# %%
#| export
class Annotator(_Commands):
    """A scan to draw on in a notebook: pens for its classes, a training on the strokes, and the mask that it gives.

    As the last expression of a cell it shows a slice, a pen for each class, an eraser, undo, Train, Stop and Save.
    Masks appear while the network learns. It needs a browser with WebGL2, and `pip install 'attenscribble[book]'`:

        from attenscribble import Annotator
        Annotator("scan.nii.gz", classes=["background", "liver"], iterations=600)

    `scan` is a NIfTI file, a list of them (one a modality), or a `Case`. `classes` are names, the background first; a
    folder whose dataset.json has them needs none. `folder` is where Save writes: without it, the dataset that
    holds the scan (in images/, or flat with dataset.json or masks beside it), else annotated/ beside the scan. Links
    are not followed: the path that you open decides. `height` is the picture's, in px. All others are of `Config`.

    The methods `record`, `undo`, `train` and `save` do the same without a mouse. `scribble` holds the strokes, [Z,Y,X]
    class ids and 255 where nothing is drawn; `mask` is what the last training found, None before.

    Raises ImportError without ipyniivue, ValueError for a wrong setting. A scan or folder that cannot be used is shown
    in the widget's place and kept as `error`; every method then raises it: DataError or OSError."""

    def __init__(
        self,
        scan: Case | Path | str | Sequence[Path | str],  # a NIfTI file, one file a modality, or a case
        classes: Sequence[str] | None = None,  # names, the background first; None: as dataset.json in the folder says
        folder: Path | str | None = None,  # where Save writes; None: as `open_session` chooses
        height: int = 480,  # of the picture in px
        **settings: Any,  # of `Config`, over `session.QUICK`: of the training
    ):
        try:
            session = open_session(scan, classes, folder)
        except (DataError, OSError) as error:
            self.error = error
            return
        quick_config(session, **settings)  # a wrong setting is refused before anything is drawn
        canvas = Canvas(session.case, session.labels.names, height)
        drawn = cast(np.ndarray, session.case.scribble)  # filled in by `open_session`
        super().__init__(session, canvas, Controls(session, canvas), settings, drawn)
        _connect(self)
        _tell(self.controls, opening_remarks(session))
        self.choose(1)


# %% [markdown]
# In JupyterLab the next cell shows the annotator: press a pen, draw, train. The cell after it draws and trains without
# a mouse.

# %%
annotator = Annotator(heart, NAMES, work / "drawn", size=64, iterations=60)
annotator

# %%
for which in ((3,), (3, 4), (3, 4, 1)):
    annotator.record(strokes(which))
annotator.undo()
assert np.array_equal(annotator.scribble, strokes((3, 4))) and "Not yet" not in annotator.controls.status.value
annotator.train()
annotator.save()
print(check(work / "drawn"))

# %% [markdown]
# ## Real data: a heart of ACDC
#
# A heart is opened, gets an expert's strokes, and is saved: the strokes lie where the expert's file has them. It is one
# header of one scanner; the 48 above stand for the others.

# %%
path = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training/patient001/patient001_frame01.nii.gz"
if path.is_file():
    theirs = np.asarray(nib.load(str(path).replace(".nii", "_scribble.nii")).dataobj)
    annotator = Annotator(path, NAMES, work / "acdc")
    drawn = annotator.session.case.grid.take(np.where(theirs == 4, IGNORE, theirs).astype(np.uint8))
    drawing = bitmap_of(drawn, annotator.canvas.grid)
    annotator.record(scribble_of(drawing, annotator.canvas.grid))
    ours = np.asarray(nib.load(annotator.save()).dataobj)
    assert np.array_equal(ours == IGNORE, theirs == 4) and np.array_equal(ours[theirs < 4], theirs[theirs < 4])
    print(f"{(ours != IGNORE).sum()} voxels; the canvas would send {drawing.size} bytes a stroke")
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** A scan has 30 slices of 250 × 250 voxels. How many bytes does the canvas send for one stroke?

# %%
def check_bytes(answer):
    assert answer() == canvas_bytes(np.zeros((30, 250, 250), np.uint8), canvas_grid(replace(
        tiny, image=np.zeros((30, 250, 250), np.float32)))).size

def my_bytes():
    ...  # your number here

exercise(check_bytes, my_bytes, solution=lambda: 30 * 256 * 256)


# %% [markdown]
# **2. Implement** redo. `undo` takes the last pair (places, values before) of `history` and puts the values back. From
# a drawing and the pair that undo is about to use, make the pair that takes the undo back.

# %%
def check_redo(redo):
    before, after = strokes((3,)), strokes((3, 4))
    places = np.flatnonzero(before != after)
    pair = redo(after, (places, before.ravel()[places]))
    undone = before.copy()
    undone.ravel()[pair[0]] = pair[1]
    np.testing.assert_array_equal(undone, after)

def my_redo(scribble, pair):
    return pair  # improve this

exercise(check_redo, my_redo, solution=lambda scribble, pair: (pair[0], scribble.ravel()[pair[0]]))


# %% [markdown]
# **3. Break.** Where on a slice of 8 × 8 pixels, without a frame, does a pen five pixels wide mark the most pixels far
# from itself: more than 10 that are over 4 columns or rows away?

# %%
def check_astray(where):
    i, j = where()
    marked = np.argwhere(pen_naive(i, j, (8, 8), 5))
    assert (np.abs(marked - [j, i]).max(1) > 4).sum() > 10

def my_astray():
    return 3, 3  # improve this

exercise(check_astray, my_astray, solution=lambda: (0, 0))

# %% [markdown]
# ## Recap
#
# Exported: `Annotator`, and what it is made of: `Canvas` for the picture, `Controls` around it, `canvas_grid`,
# `bitmap_of` and `scribble_of` for the order of voxels. What may surprise: a pen can mark voxels where it is not, and
# a widget can undo a stroke by sending back the drawing that has just arrived. Next: masks for many scans, with the
# model that Save wrote beside the strokes: `attenscribble predict` of [chapter 81](../entry/81_commands.ipynb).
