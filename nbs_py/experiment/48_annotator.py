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
# **The question.** Which byte of a drawing is which voxel of the patient? [One scan](47_desk.ipynb) needs strokes, a
# page in a browser has a mouse. Between them lie two programs that count voxels in different orders, and that talk with
# a delay.

# %%
#| default_exp experiment.annotator

# %%
#| export
import html
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.colors import to_rgb

from attenscribble.book import class_colour
from attenscribble.data.folder import IGNORE
from attenscribble.data.grid import PLANES, Grid
from attenscribble.data.scans import Case, DataError
from attenscribble.experiment.desk import Desk, learn, one_scan, only_more, open_desk, save_desk, save_learnt
from attenscribble.experiment.training import Training

# %%
import os
import tempfile
from dataclasses import replace
from itertools import permutations, product

from ipywidgets import interact

from attenscribble.book import cost, draw, exercise, panels
from attenscribble.data.phantom import phantom
from attenscribble.data.simulation import simulate
from attenscribble.experiment.check import check

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
# Left button draws, right button moves the picture, the wheel turns slices, as the slider does. **Train** works in the
# background: one may go on drawing, and **Stop** keeps the mask so far. The next training goes on from what this one has
# learnt, unless a stroke was erased since. Nothing is written before **Save**.
#
# ## Which byte is which voxel
#
# The page draws with [NiiVue](https://github.com/niivue/niivue). It gives its drawing as a row of bytes, one per voxel,
# on a grid whose axes run to the patient's right, front and head, $N_i\times N_j\times N_k$ voxels, the first axis fastest.
# A case has slices $z$, rows $y$ and columns $x$ ([Space](../data/09_grid.ipynb)); around each slice we lay a frame of
# $f$ voxels, for a reason that comes below:
#
# $$n=i+N_i\,(j+N_j\,k),\qquad(i,j,k)=\begin{cases}(X{+}f{-}1{-}x,\ Y{+}f{-}1{-}y,\ z)&\text{axial}\\
# (X{+}f{-}1{-}x,\ z,\ Y{+}f{-}1{-}y)&\text{coronal}\\(z,\ X{+}f{-}1{-}x,\ Y{+}f{-}1{-}y)&\text{sagittal}\end{cases}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $n$ | place in `bitmap` | $N_iN_jN_k$ bytes | class id + 1; 0 not drawn |
# | $x,y,z$ | place in `scribble` | [Z,Y,X] uint8 | class id; 255 not drawn |
# | $f$ | `FRAME` | – | voxels |
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
# **What breaks.** A pen three voxels wide writes to $n\pm1$ and $n\pm N_i$, and NiiVue does not look whether that is
# still beside the voxel. At the rim it is not: the ink turns up on the opposite side, or in the next slice. Hence the
# frame: what goes astray lands on it, and is dropped.

# %%
def pen_naive(i, j, shape, width):
    "The pixels of a slice [J,I] that NiiVue's square pen marks at (i,j): by their place in the row of bytes."
    page, half = np.zeros(shape, bool), width // 2
    for di, dj in product(range(-half, half + 1), repeat=2):
        page.ravel()[(i + di + shape[1] * (j + dj)) % page.size] = True
    return page

assert place_naive(0, 0, 0, (1, 1, 2), "axial", 0) == 1 and place_naive(0, 0, 0, (1, 1, 2), "axial", 1) == 6
assert pen_naive(3, 3, (8, 8), 3)[2:5, 2:5].sum() == 9
assert pen_naive(0, 3, (8, 8), 3)[:, 7].sum() == 3  # drawn on the left, marked on the right

# %% [markdown]
# ## Fast: the page's grid is a grid
#
# `Grid` knows axes that are exchanged and reversed. We give NiiVue a file that lies on its own grid, straightened and
# with 0 mm in the middle, and read its drawing with the same object.

# %%
#| export
FRAME = 3  # voxels around each slice: the widest pen reaches 2 past its middle
_TOWARD = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}  # the patient's axis of z, y, x


def page_grid(
    case: Case,
) -> Grid:  # of [Z,Y+2·FRAME,X+2·FRAME]
    "How the page holds a case: axes to the patient's right, front and head, a tilt left out."
    plane = case.grid.plane if case.grid and case.grid.plane in PLANES else "axial"
    z, y, x = case.gray.shape
    order = np.argsort(_TOWARD[plane])
    shape = np.array([z, y + 2 * FRAME, x + 2 * FRAME])[order]
    mm = np.array(case.spacing_mm or (1, 1, 1))[order]
    affine = np.diag([*mm, 1.0])
    affine[:3, 3] = -mm * (shape - 1) / 2  # NiiVue zooms towards 0 mm
    return Grid.of(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), plane)


def to_page(
    volume: np.ndarray,  # [Z,Y,X] uint8
    grid: Grid,  # of `page_grid`
) -> nib.Nifti1Image:
    "A volume as a file on the page's grid, framed by zeros."
    return grid.picture(np.pad(volume, ((0, 0), (FRAME, FRAME), (FRAME, FRAME))))


def in_bytes(
    volume: np.ndarray,  # [Z,Y,X] uint8
    grid: Grid,  # of `page_grid`
) -> np.ndarray:  # [voxels] uint8
    "A volume in the page's order."
    return np.asarray(to_page(volume, grid).dataobj).ravel(order="F")


def bitmap_of(
    scribble: np.ndarray,  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    grid: Grid,  # of `page_grid`
) -> np.ndarray:  # [voxels] uint8: class id + 1, 0 where not drawn
    "A scribble as the page's drawing."
    return in_bytes(scribble + np.uint8(1), grid)  # IGNORE is the last value of a byte: + 1 makes it 0


def scribble_of(
    bitmap: np.ndarray,  # [voxels] uint8, as `bitmap_of`
    grid: Grid,  # of `page_grid`
) -> np.ndarray:  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
    "The page's drawing as a scribble; what lies on the frame is dropped."
    drawn = grid.take(bitmap.reshape(grid.shape, order="F"))[:, FRAME:-FRAME, FRAME:-FRAME]
    return np.ascontiguousarray(drawn) - np.uint8(1)


# %% [markdown]
# ## Equal, and there and back
#
# In each plane the fast form equals the naive one, voxel by voxel.

# %%
tiny = Case("tiny", "", np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5), (10.0, 1.5, 1.5))
for plane, toward in _TOWARD.items():
    lies = nib.Nifti1Image(np.zeros(np.array([3, 4, 5])[np.argsort(toward)]), np.diag([1.5, 1.5, 1.5, 1]))
    grid = page_grid(replace(tiny, grid=Grid.of(lies, plane)))
    marks = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    bitmap = bitmap_of(marks, grid)
    for z, y, x in np.ndindex(3, 4, 5):
        assert bitmap[place_naive(z, y, x, (3, 4, 5), plane, FRAME)] == marks[z, y, x] + 1
    np.testing.assert_array_equal(scribble_of(bitmap, grid), marks)
    bitmap[bitmap == 0] = 2  # ink on the frame
    np.testing.assert_array_equal(scribble_of(bitmap, grid), marks)

# %%
grid, empty = page_grid(heart), np.full(heart.image.shape, IGNORE, np.uint8)
print(f"fast, {empty.size} voxels there and back: {cost(lambda: scribble_of(bitmap_of(empty, grid), grid))}")

# %% [markdown]
# **Under the pen is in the file.** In each of the 48 ways to store a tilted scan: mark the voxel of one gray value on
# the page, save, and read the saved file next to the scan's: the marked voxel has that value. The folder passes the
# check.

# %%
block = np.random.default_rng(1).permutation(210).reshape(5, 6, 7).astype(np.int16)
turn = np.array([[0.94, 0, 0.34, 9], [0, 1, 0, -7], [-0.34, 0, 0.94, 5], [0, 0, 0, 1]])
upright = nib.Nifti1Image(block, turn @ np.diag([-1.5, -1.5, 8, 1]))
for number, (order, signs) in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
    scan = upright.as_reoriented(np.array(list(zip(order, signs, strict=True))))
    nib.save(scan, work / f"block{number}.nii.gz")
    desk = open_desk(work / f"block{number}.nii.gz", NAMES[:2], work / "blocks")
    grid, drawing = page_grid(desk.case), bitmap_of(desk.case.scribble, page_grid(desk.case))
    picture = in_bytes(np.rint(207 * desk.case.image).astype(np.uint8), grid)  # 1 % are cut off: 0 … 207 are left
    drawing[picture == 100], drawing[picture == 50] = 2, 1
    saved = nib.load(save_desk(desk, scribble_of(drawing, grid)))
    assert np.asarray(scan.dataobj)[np.asarray(saved.dataobj) == 1].tolist() == [100]
    assert np.allclose(saved.affine, scan.affine)

report = check(work / "blocks", axis="axial")
assert report.fine and len(report.scans) == 48


# %% [markdown]
# ## Slide the pen
#
# Where ink goes at the rim, without a frame (left) and on a framed slice (right: the slice inside the line).

# %%
def plot_pen(columns, width=5, side=12):
    "NiiVue's pen in the middle row, at some columns: without and with a frame."
    _, axes = panels(2 * len(columns), size=1.6)
    for number, i in enumerate(columns):
        bare, framed = axes[2 * number:2 * number + 2]
        draw(bare, pen_naive(i, side // 2, (side, side), width), title=f"column {i}, bare")
        wide = side + 2 * FRAME
        draw(framed, pen_naive(i + FRAME, side // 2 + FRAME, (wide, wide), width), title="framed")
        framed.plot(*(np.array([0, 0, 1, 1, 0]) * side + FRAME - 0.5, np.array([0, 1, 1, 0, 0]) * side + FRAME - 0.5),
                    color="#D55E00")

plot_pen((0, 1, 6))

# %%
interact(lambda column=0, width=5: plot_pen((column,), width), column=(0, 11), width=(1, 5, 2));


# %% [markdown]
# ## The page
#
# What NiiVue is told: which plane, how radiologists look at it, which button does what, and the colours of the book.

# %%
#| export
def _canvas() -> type:
    "NiiVue without its echo: it sends back each drawing that arrives, and would undo what was drawn meanwhile."
    try:
        from ipyniivue import NiiVue
    except ImportError as error:
        raise ImportError("the annotator needs ipyniivue: pip install 'attenscribble[book]'") from error

    class Canvas(NiiVue):
        def _handle_binary_trait_change(self, change: Any) -> None:
            pass

    return Canvas


def page_options(plane: str) -> dict[str, Any]:
    "Slices as radiologists look at them; left draws, right moves the picture, the wheel turns slices."
    from ipyniivue import DragMode, SliceType

    return dict(slice_type=SliceType[plane.upper()], is_radiological_convention=True, sagittal_nose_left=True,
                drawing_enabled=True, crosshair_width=0, is_nearest_interpolation=True, drag_and_drop_enabled=False,
                drag_mode=DragMode.NONE, mouse_event_config={"rightButton": DragMode.PAN.value})


def class_lut(
    names: Sequence[str],  # index = class id
    first: int,  # the class that has the value 1; 0 is transparent
) -> dict[str, list]:  # as NiiVue takes it
    "The colours of the book for the values of a drawing or a mask."
    colours = [(0, 0, 0), *(to_rgb(class_colour(class_id)) for class_id in range(first, len(names)))]
    red, green, blue = ([round(255 * part) for part in parts] for parts in zip(*colours, strict=True))
    return {"R": red, "G": green, "B": blue, "A": [0] + [255] * (len(red) - 1), "I": list(range(len(red))),
            "labels": ["", *names[first:]]}


def said(
    text: object,
    kind: str = "ui-font",  # or "error", "success": a colour of JupyterLab's theme
) -> str:  # HTML
    "A line of text for a widget."
    return f'<span style="color:var(--jp-{kind}-color0, inherit)">{html.escape(str(text))}</span>'


# %%
#| export
class Page:
    "The picture in the browser: scan, drawing, mask. It sends its drawing when it is asked to, a moment later."

    def __init__(self, case: Case, names: Sequence[str], height: int):
        "Raises ImportError without ipyniivue."
        canvas = _canvas()
        from ipyniivue import ColorMap, Volume
        from ipyniivue.utils import make_draw_lut

        self.grid = page_grid(case)
        self.axis, self.z = _TOWARD[self.grid.plane][0], len(case.gray) // 2  # NiiVue begins in the middle
        gray = np.rint(255 * case.gray).astype(np.uint8)
        scan, none = (to_page(volume, self.grid).to_bytes() for volume in (gray, np.zeros_like(gray)))
        letters = case.grid is not None and case.grid.plane in PLANES
        self.view = canvas(height=height, is_orientation_text_visible=letters, **page_options(self.grid.plane))
        self.mask = Volume(data=none, name="mask.nii", opacity=0.4)
        self.mask.set_colormap_label(class_lut(names, 1))
        self.view.load_volumes([Volume(data=scan, name="scan.nii", cal_min=0, cal_max=255), self.mask])
        self.view.draw_lut, self.view.draw_opacity = make_draw_lut(ColorMap(**class_lut(names, 0))), 1.0
        self.shown, self.asked, self.turning = False, deque(), 0
        self.heard: Callable[[np.ndarray], object] = lambda scribble: None  # gets each drawing that arrives
        self.loaded: Callable[[], object] = lambda: None  # called when the page has just shown the scan
        self.turned: Callable[[int], object] = lambda z: None  # called when the wheel has turned to a slice
        self.view.on_mouse_up(lambda _: self.ask())
        self.view.on_image_loaded(lambda volume: self._load() if volume is self.mask else None)
        self.view.on_location_change(self._moved)
        self.view.observe(self._arrived, "draw_bitmap")

    def _load(self) -> None:
        "The mask, the second of two volumes, is on the screen; in a browser without WebGL2 it never is."
        self.shown = True
        self.loaded()

    def ask(self, then: Callable[[], object] | None = None, *, listen: bool = True) -> None:
        "Have the drawing sent, then go on; where no page is shown, at once."
        if self.shown:
            self.asked.append((then, listen))
            self.view.send({"type": "set_drawing_enabled", "data": [True]})
        elif then:
            then()

    def _arrived(self, change: Any) -> None:
        then, listen = self.asked.popleft() if self.asked else (None, True)
        if listen and change.new is not None and change.new.size == np.prod(self.grid.shape):
            self.heard(scribble_of(change.new, self.grid))
        if then:
            then()

    def draw(self, scribble: np.ndarray) -> None:
        "Replace the drawing."
        self._send(self.view, "drawBitmap", bitmap_of(scribble, self.grid))

    def cover(self, mask: np.ndarray) -> None:
        "Replace the mask."
        self._send(self.mask, "img", in_bytes(mask, self.grid))

    def _send(self, widget: Any, name: str, voxels: np.ndarray) -> None:
        widget.send({"type": "buffer_change", "data": {"attr": name, "type": "uint8"}}, buffers=[voxels.tobytes()])

    def turn(self, z: int) -> None:
        "Show a slice."
        step, self.z = z - self.z, z
        if step and self.shown:
            self.turning += 1  # the page answers with the place it then shows
            self.view.move_crosshair_in_vox(*(step * (axis == self.axis) for axis in range(3)))

    def _moved(self, place: dict[str, Any]) -> None:
        if self.turning:
            self.turning -= 1
        elif (z := int(place["vox"][self.axis])) != self.z:
            self.z = z
            self.turned(z)


# %% [markdown]
# **Two programs, one drawing.** The page draws, Python remembers. After each stroke the page is asked for its drawing;
# what changed goes on a pile, and undo takes the top of it off and sends the result back. Before undo, Train and Save
# the page is asked once more, so that none of them misses a stroke that is still on its way.

# %%
#| export
class Controls:
    "Pens, sliders and buttons around a page."

    def __init__(self, desk: Desk, page: Page):
        import ipywidgets as w

        def wide(**more: Any) -> w.Layout:
            return w.Layout(width="auto", **more)

        self.names, last = desk.labels.names, len(desk.case.gray) - 1
        self.pens = [w.Button(layout=wide()) for _ in (*self.names, "eraser")]
        self.undo = w.Button(description="undo", icon="undo", layout=wide(), tooltip="take the last stroke back")
        self.size = w.ToggleButtons(options=[("1", 1), ("3", 3), ("5", 5)], style={"button_width": "36px"},
                                    tooltips=[f"{wide} voxels wide" for wide in (1, 3, 5)])
        self.zoom, self.ink, self.cover = (
            w.FloatSlider(value, min=low, max=high, step=step, description=name, readout=False, layout=wide(),
                          style={"description_width": "52px"})
            for name, value, low, high, step in (("zoom", 1, 1, 8, 0.1), ("strokes", 1, 0, 1, 0.05),
                                                 ("mask", 0.4, 0, 1, 0.05)))
        self.train = w.Button(description="Train", icon="play", button_style="primary", layout=w.Layout(width="76px"))
        self.stop = w.Button(description="Stop", icon="stop", disabled=True, layout=w.Layout(width="70px"))
        self.save = w.Button(description="Save", icon="save", layout=w.Layout(width="72px"))
        self.bar = w.IntProgress(layout=wide(visibility="hidden"))
        self.slice = w.IntSlider(page.z, 0, last, description="slice", layout=wide())
        self.status, self.help = w.HTML(), w.HTML(said("No picture? Then this browser has no WebGL2.", "error"))
        pen = w.HBox([w.Label("pen", layout=w.Layout(width="52px", justify_content="flex-end")), self.size])
        panel = w.VBox([*self.pens, self.undo, pen, self.zoom, self.ink, self.cover,
                        w.HBox([self.train, self.stop, self.save]), self.bar], layout=w.Layout(flex="0 0 240px"))
        picture = w.VBox([page.view, self.slice, self.help], layout=w.Layout(flex="1 1 auto", min_width="0"))
        self.widget = w.VBox([w.HTML(title(desk)), w.HBox([panel, picture]), self.status])
        self.size.observe(lambda change: setattr(page.view.opts, "pen_size", change.new), "value")
        self.ink.observe(lambda change: setattr(page.view, "draw_opacity", change.new), "value")
        self.cover.observe(lambda change: setattr(page.mask, "opacity", change.new), "value")
        self.zoom.observe(lambda change: setattr(
            page.view.scene, "pan2d_xyzmm", [*page.view.scene.pan2d_xyzmm[:3], change.new]), "value")
        self.slice.observe(lambda change: page.turn(change.new), "value")
        page.turned = lambda z: setattr(self.slice, "value", z)

    def show_pens(self, scribble: np.ndarray, chosen: int) -> None:
        "Each pen in its class's colour, with the number of voxels drawn; the last one is the eraser."
        counts = np.bincount(scribble.ravel(), minlength=256)
        for number, pen in enumerate(self.pens):
            eraser, held = number == len(self.names), number == chosen
            colour = "#DDDDDD" if eraser else class_colour(number)
            light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.55
            pen.description = "✎ " * held + ("eraser" if eraser else f"{self.names[number]} · {counts[number]}")
            pen.style.button_color, pen.style.text_color = colour, "black" if light else "white"
            pen.style.font_weight = "bold" if held else "normal"
            pen.layout.border = f"{'3px' if held else '1px'} solid var(--jp-ui-font-color0, black)"

    def running(self, on: bool) -> None:
        "Which buttons can be pressed."
        self.train.disabled, self.stop.disabled = on, not on
        self.bar.layout.visibility = "visible" if on else "hidden"


def title(desk: Desk) -> str:  # HTML
    "Name, size and place of a scan."
    case = desk.case
    z, y, x = case.gray.shape
    mm = " × ".join(f"{mm:.3g}" for mm in case.spacing_mm) + " mm" if case.spacing_mm else "voxel size unknown"
    home = desk.root.relative_to(Path.cwd()) if desk.root.is_relative_to(Path.cwd()) else desk.root
    return said(f"{desk.name}: {z} slices of {y} × {x} voxels, {mm}, {case.grid.plane if case.grid else 'as stored'}; "
                f"Save writes to {home}")


# %%
#| export
class Annotator:
    "A scan with pens for its classes: draw, train, look, correct, train again, save."

    def __init__(
        self,
        scan: Case | Path | str | Sequence[Path | str],  # a NIfTI file, one file a modality, or a case
        classes: Sequence[str] | None = None,  # names, the background first; None: as dataset.json in the folder says
        folder: Path | str | None = None,  # where Save writes, as `open_desk`
        height: int = 480,  # of the picture in px
        **settings: Any,  # of `Config`, over QUICK
    ):
        "A fault of the data is shown in the widget's place, and raised by whatever is asked of it next."
        self.settings, self.fault = settings, None
        self.mask: np.ndarray | None = None  # [Z,Y,X] uint8 class ids
        self.state: Training | None = None  # the weights behind a mask that is finished
        self.learnt: np.ndarray | None = None  # [Z,Y,X] the strokes that they have seen
        self.stop, self.thread, self.past, self.pen = threading.Event(), None, [], 1
        try:
            self.desk = open_desk(scan, classes, folder)
        except (DataError, OSError) as error:
            self.fault = error
            return
        self.scribble = self.desk.case.scribble  # [Z,Y,X] uint8 class ids, IGNORE where not drawn
        self.page = Page(self.desk.case, self.desk.labels.names, height)
        self.controls = Controls(self.desk, self.page)
        self._connect()
        self.choose(1)

    def _connect(self) -> None:
        controls = self.controls
        self.page.heard, self.page.loaded = self.record, self._loaded
        for number, pen in enumerate(controls.pens):
            pen.on_click(lambda _, number=number: self.choose(number))
        for button, act in ((controls.undo, self.undo), (controls.train, self.start), (controls.save, self.save)):
            button.on_click(lambda _, act=act: self.page.ask(partial(self._try, act)))
        controls.stop.on_click(lambda _: self.stop.set())

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(said(self.fault, "error")) if self.fault else self.controls.widget)

    def _ready(self) -> None:
        if self.fault:
            raise self.fault

    def _try(self, act: Callable[[], object]) -> None:
        "Do something, and say in words what went wrong."
        try:
            act()
        except (ValueError, OSError, RuntimeError, ArithmeticError, TypeError) as error:
            self.tell(error, "error")

    def tell(self, text: object, kind: str = "ui-font") -> None:
        "A line below the picture."
        self.controls.status.value = said(text, kind)

    def _loaded(self) -> None:
        "A page that was just shown gets what there is, drawing and mask."
        self.controls.help.value = said("left: draw · right: move · wheel: slice")
        self.page.ask(self._show_all, listen=False)

    def _show_all(self) -> None:
        self.page.draw(self.scribble)
        if self.mask is not None:
            self.page.cover(self.mask)

    def choose(self, number: int) -> None:
        "Take up a class's pen; past the last class, the eraser."
        self._ready()
        self.pen = number
        self.page.view.set_pen_value(0 if number == len(self.desk.labels.names) else number + 1, False)
        self.controls.show_pens(self.scribble, number)

    def record(self, scribble: np.ndarray) -> None:
        "Take a drawing over, and remember what it replaced."
        changed = np.flatnonzero(scribble != self.scribble)
        if changed.size:
            self.past.append((changed, self.scribble.ravel()[changed]))
            self.scribble = scribble
            self._changed()

    def undo(self) -> None:
        "Take the last stroke back."
        self._ready()
        if self.past:
            changed, before = self.past.pop()
            self.scribble.ravel()[changed] = before
            self._changed()
            self.page.draw(self.scribble)

    def _changed(self) -> None:
        "Say what is drawn and what is missing."
        self.controls.show_pens(self.scribble, self.pen)
        self.controls.save.button_style = "warning"
        drawn = self.scribble != IGNORE
        missing = [name for c, name in enumerate(self.desk.labels.names) if not (self.scribble == c).any()]
        slices = ", ".join(map(str, np.flatnonzero(drawn.any((1, 2)))))
        text = f"{drawn.mean():.2%} of the voxels drawn, on slices {slices}." if slices else "Nothing drawn."
        self.tell(text + f" Not yet: {', '.join(missing)}." * bool(missing))

    def save(self) -> Path:  # the strokes' file
        "Write what `save_desk` does; after a training also masks/NAME.nii.gz and models/NAME.pt, for `predict`."
        self._ready()
        desk, files = self.desk, [save_desk(self.desk, self.scribble)]
        if self.state and not self.controls.train.disabled:
            files += save_learnt(desk, self.mask, self.state)
        self.controls.save.button_style = ""
        self.tell(f"Saved in {desk.root}: {', '.join(str(file.relative_to(desk.root)) for file in files)}", "success")
        return files[0]

    def train(self) -> np.ndarray:  # [Z,Y,X] uint8 class ids
        """Train on what is drawn and segment; the page follows. Raises DataError if too little is drawn.

        It goes on from the last weights, unless a stroke that they have seen was erased or drawn over."""
        self._ready()
        self.stop.clear()
        self.controls.running(True)
        began, drawn = time.monotonic(), self.scribble.copy()
        before = self.state if self.learnt is not None and only_more(self.learnt, drawn) else None
        try:
            self.mask, self.state = learn(self.desk, drawn, self._progress, self.stop, before, **self.settings)
            self.learnt = drawn
            self.page.cover(self.mask)
        finally:
            self.controls.running(False)
        self.controls.save.button_style = "warning"
        end = "Stopped" if self.stop.is_set() else "Done"
        self.tell(f"{end} after {self.state.step} iterations, {time.monotonic() - began:.0f} s. Draw where the mask is "
                  "wrong and train again, or save.", "success")
        return self.mask

    def start(self) -> None:
        "Train in the background, so that the page stays alive."
        self._ready()
        one_scan(self.desk, self.scribble)
        if not self.controls.train.disabled:
            self.controls.running(True)
            self.thread = threading.Thread(target=self._work, daemon=True)
            self.thread.start()

    def _work(self) -> None:
        from IPython import get_ipython

        publisher = getattr(get_ipython(), "display_pub", None)
        if hasattr(publisher, "register_hook"):  # for this thread: the loop's own bar stays out of the notebook
            publisher.register_hook(lambda message: None)
        self._try(self.train)

    def _progress(self, state: Training, mask: np.ndarray | None) -> None:
        self.controls.bar.max, self.controls.bar.value = state.config.iterations, state.step
        self.tell(f"Training: iteration {state.step} of {state.config.iterations}, {state.seconds:.0f} s, "
                  f"loss {state.log[-1]['loss']:.2f}")
        if mask is not None:
            self.mask = mask
            self.page.cover(mask)


# %% [markdown]
# In JupyterLab the next cell shows it; press a pen, draw, train. Where nobody looks on, Python holds the pen.

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
# Opened, drawn on by an expert, saved, opened again: the strokes lie where they lay. It shows one header; the 48 above
# stand for the others.

# %%
path = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training/patient001/patient001_frame01.nii.gz"
if path.is_file():
    theirs = np.asarray(nib.load(str(path).replace(".nii", "_scribble.nii")).dataobj)
    annotator = Annotator(path, NAMES, work / "acdc")
    drawn = annotator.desk.case.grid.take(np.where(theirs == 4, IGNORE, theirs).astype(np.uint8))
    drawing = bitmap_of(drawn, annotator.page.grid)
    annotator.record(scribble_of(drawing, annotator.page.grid))
    ours = np.asarray(nib.load(annotator.save()).dataobj)
    assert np.array_equal(ours == IGNORE, theirs == 4) and np.array_equal(ours[theirs < 4], theirs[theirs < 4])
    print(f"{(ours != IGNORE).sum()} voxels; the page would send {drawing.size} bytes a stroke")
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** A scan has 30 slices of 250 × 250 voxels. How many bytes does the page send for one stroke?

# %%
def check_bytes(answer):
    assert answer() == in_bytes(np.zeros((30, 250, 250), np.uint8), page_grid(replace(
        tiny, image=np.zeros((30, 250, 250), np.float32)))).size

def my_bytes():
    ...  # your number here

exercise(check_bytes, my_bytes, solution=lambda: 30 * 256 * 256)


# %% [markdown]
# **2. Implement** redo. `undo` takes a pair (places, values before) off a pile and puts the values back. From a drawing
# and the pair that undo is about to use, make the pair that takes the undo back.

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
# **3. Break.** Where on a slice of 8 × 8 pixels, without a frame, does a pen five pixels wide mark most pixels far from
# itself: more than 10 that are over 4 columns or rows away?

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
# Exported: `Annotator`, and what it is made of: `Page` for the picture, `Controls` around it, `page_grid`, `bitmap_of`
# and `scribble_of` for the order of voxels. What may surprise: a pen can paint where it is not, and a widget can undo a
# stroke that it has just been sent. Next: masks for many scans, with the model that Save wrote beside the strokes:
# `attenscribble predict` of [chapter 50](50_commands.ipynb).
