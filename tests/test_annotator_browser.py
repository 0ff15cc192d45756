"""The annotator in JupyterLab: a real browser, real pointer events, real training."""

import contextlib
import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as number_components

from attenscribble.annotation.annotator import _FRAME
from attenscribble.data.check import check
from attenscribble.data.folder import IGNORE
from attenscribble.data.grid import Grid
from attenscribble.data.phantom import phantom
from attenscribble.data.scribbles import centre_line, draw_path, walk
from attenscribble.data.simulation import simulate
from attenscribble.runs.inference import predict_files
from attenscribble.runs.metrics import dice

NAMES = ("background", "RV", "Myo", "LV")
SLICES = (1, 2, 4, 5, 6)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SETTINGS = ("--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader")
PICTURES = os.environ.get("ATTENSCRIBBLE_SCREENSHOTS")  # a folder: each stage of the test is kept there as PNG


def write_notebook(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@contextlib.contextmanager
def jupyterlab(folder: Path):
    "JupyterLab on a free port, all its settings in a temporary folder; its address with the token."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home, token = folder / "jupyter", secrets.token_hex(16)
    settings = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    env = os.environ | {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "RUNTIME", "DATA")}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython")}
    address = f"http://127.0.0.1:{port}"
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"],
            env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder)  # not the clone, whose hook cleans what is saved
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=1)
                break
            assert server.poll() is None, (folder / "lab.log").read_text()
            time.sleep(0.2)
        yield lambda name: f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The server's folder, and from a notebook's name to its address."
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as address:
        yield folder, address


@contextlib.contextmanager
def browser(*more: str):
    "A page of headless Chromium."
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as program:
        chromium = program.chromium.launch(executable_path=CHROMIUM, args=[*SETTINGS, *more])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        try:
            yield page
        except BaseException:
            if PICTURES:
                page.screenshot(path=f"{PICTURES}/failed.png")
            raise
        finally:
            chromium.close()


def store_heart(path: Path):
    "A phantom as a scanner might store it: axes exchanged and reversed, tilted by 10°. The case, and the file."
    case = next(phantom(patients=1, seed=0, side=96).cases())
    z, y, x = case.spacing_mm
    tilt = np.array([[np.cos(0.17), 0, np.sin(0.17), 30], [0, 1, 0, -20], [-np.sin(0.17), 0, np.cos(0.17), 5],
                     [0, 0, 0, 1]])
    upright = nib.Nifti1Image((1000 * case.image).astype(np.int16).T, tilt @ np.diag([-x, -y, z, 1]))
    nib.save(upright.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), path)
    return case


class Hand:
    "A user in front of the annotator."

    def __init__(self, page, case):
        self.page, self.case = page, case
        self.box = page.locator("canvas").last.bounding_box()
        _, height, width = case.image.shape
        _, row_mm, column_mm = case.spacing_mm
        wide, high = (width + 2 * _FRAME) * column_mm, (height + 2 * _FRAME) * row_mm
        self.px_per_mm = min(self.box["width"] / wide, self.box["height"] / high)
        self.z, self.pen = len(case.image) // 2, ""

    def at(self, y: float, x: float) -> tuple[float, float]:
        "Where on the screen the middle of a pixel lies: the slice is centred, columns to the right, rows down."
        _, height, width = self.case.image.shape
        _, row_mm, column_mm = self.case.spacing_mm
        return (self.box["x"] + self.box["width"] / 2 + (x + 0.5 - width / 2) * column_mm * self.px_per_mm,
                self.box["y"] + self.box["height"] / 2 + (y + 0.5 - height / 2) * row_mm * self.px_per_mm)

    def press(self, name: str) -> None:
        self.page.locator("button.jupyter-button", has_text=name).first.click()

    def take(self, pen: str) -> None:
        "Press a pen's button, and wait until it is shown as the chosen one."
        if pen != self.pen:
            self.press(pen)
            self.page.locator("button.jupyter-button", has_text=f"✎ {pen}").wait_for()
            self.pen = pen

    def stroke(self, path) -> None:
        self.page.mouse.move(*self.at(*path[0]))
        self.page.mouse.down()
        for point in path[1:]:
            self.page.mouse.move(*self.at(*point))
        self.page.mouse.up()

    def turn(self, z: int) -> None:
        "With the wheel."
        self.page.mouse.move(*self.at(2, 2))
        for _ in range(abs(z - self.z)):
            self.page.mouse.wheel(0, 100 if z > self.z else -100)
            self.page.wait_for_timeout(60)
        self.z = z

    def slide(self, z: int) -> None:
        "With the slider."
        handle = self.page.locator(".widget-hslider", has_text="slice").locator(".noUi-handle")
        handle.focus()
        for _ in range(abs(z - self.z)):
            handle.press("ArrowRight" if z > self.z else "ArrowLeft")
        self.z = z

    def says(self, text: str, seconds: float = 30) -> None:
        "Wait until the annotator shows a text."
        try:
            self.page.get_by_text(text).first.wait_for(timeout=1000 * seconds)
        except Exception:
            shown = self.page.locator(".jp-OutputArea-output .widget-html").all_inner_texts()
            pytest.fail(f"after {seconds} s: found the texts {shown}, expected {text!r}")

    def colours(self) -> int:
        "Number of pixels of the picture that are not gray."
        picture = np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=self.box))).convert("RGB")).astype(int)
        return int((np.ptp(picture, axis=2) > 40).sum())

    def keep(self, stage: str) -> None:
        if PICTURES:
            area = self.page.locator(".jp-OutputArea-output", has=self.page.locator("canvas")).last
            area.screenshot(path=f"{PICTURES}/{stage}.png")


def strokes_for(case) -> list[tuple[int, int, np.ndarray]]:
    "Slice, class and the pen's path (y,x): in every organ, around them, and in bright places that are no organ."
    drawn, rng = simulate(case.label, "hand", classes=4, ignore=IGNORE), np.random.default_rng(0)
    strokes = []
    for z in SLICES:
        lines = [(class_id, part) for class_id in range(len(NAMES)) for part in parts(drawn[z] == class_id)]
        bright = binary_erosion((case.image[z] > 0.4) & (case.label[z] == 0))
        lines += [(0, centre_line(part)) for part in sorted(parts(bright), key=np.sum)[-2:]]
        for class_id, line in lines:
            path = walk(line, rng)
            strokes.append((z, class_id, np.concatenate([path[:-1:6], path[-1:]])))
    return strokes


def parts(region: np.ndarray) -> list[np.ndarray]:
    numbers, count = number_components(region, np.ones((3, 3)))
    return [numbers == part for part in range(1, count + 1)]


def run_first_cell(page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Shift+Enter")


OPEN = f"""from attenscribble.annotation.annotator import Annotator
work = Annotator("heart.nii.gz", classes={list(NAMES)}, folder="mine")
work"""


def test_draw_train_segment_save(lab):
    folder, address = lab
    case = store_heart(folder / "heart.nii.gz")
    write_notebook(folder / "draw.ipynb", OPEN)
    strokes = strokes_for(case)
    with browser() as page:
        run_first_cell(page, address("draw"))
        page.get_by_text("left: draw").wait_for(timeout=60_000)
        page.wait_for_timeout(500)
        hand = Hand(page, case)
        hand.keep("1-before")
        began, gray = time.monotonic(), hand.colours()
        for z, class_id, path in strokes:
            if z != hand.z:
                (hand.slide if z == SLICES[2] else hand.turn)(z)
                page.wait_for_timeout(1500 if z == SLICES[2] else 200)  # the slider's way leads through the kernel
            hand.take(NAMES[class_id])
            hand.stroke(path)
        hand.take("RV")
        hand.stroke([(10, 60), (10, 75)])  # a mistake, taken back
        hand.press("undo")
        hand.take("LV")
        hand.stroke([(20, 10), (20, 14)])  # another one, rubbed out
        hand.take("eraser")
        hand.stroke([(20, 8), (20, 16)])
        hand.says(f"on slices {', '.join(map(str, SLICES))}.")
        hand.turn(4)
        page.wait_for_timeout(300)
        hand.keep("2-drawn")
        inked, drawn_s = hand.colours(), time.monotonic() - began
        hand.press("Train")
        hand.says("Training: iteration")
        while hand.colours() < 1.05 * inked and page.get_by_text("Training: iteration").count():
            page.wait_for_timeout(200)
        live = page.get_by_text("Training: iteration").count() > 0
        hand.keep("3-training")
        hand.says("Done after", 120)
        seconds = time.monotonic() - began
        page.wait_for_timeout(300)
        hand.keep("4-done")
        hand.press("Save")
        hand.says("Saved in")
        files = {kind: (folder / f"mine/{kind}/heart.nii.gz").read_bytes() for kind in ("scribbles", "masks")}
        hand.take("Myo")
        hand.press("Train")
        hand.says("Training: iteration")
        hand.stroke([(20, 70), (20, 74)])  # the canvas draws on while the kernel trains
        page.locator("button.jupyter-button", has_text="✎ Myo · ").wait_for()
        hand.press("Stop")
        hand.says("Stopped after", 15)
        before = hand.colours()
        page.locator(".jp-InputArea-editor").first.click()
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1500)
        page.reload()  # the drawing and the mask are the kernel's: a new page gets them
        page.wait_for_selector("canvas", timeout=60_000)
        hand.says("left: draw")
        page.wait_for_timeout(2000)
        after = Hand(page, case).colours()
    assert 0.8 < after / before < 1.25, f"colours before and after loading the page again: {before}, {after}"
    print(f"draw {drawn_s:.0f} s; draw, train, segment {seconds:.0f} s")
    assert gray < 100 < inked and live, "strokes colour the picture, and the mask does before the training is over"
    assert all((folder / f"mine/{kind}/heart.nii.gz").read_bytes() == data for kind, data in files.items())

    scan, scribble, mask = (nib.load(folder / f"mine/{kind}/heart.nii.gz")
                            for kind in ("images", "scribbles", "masks"))
    assert scribble.shape == mask.shape == scan.shape and mask.get_data_dtype() == np.uint8
    assert np.array_equal(scribble.affine, scan.affine) and np.array_equal(mask.affine, scan.affine)
    marks, found = (Grid.of(scan).take(np.asarray(file.dataobj)) for file in (scribble, mask))
    assert set(np.flatnonzero((marks != IGNORE).any((1, 2)))) == set(SLICES)
    for class_id in range(len(NAMES)):
        passed, points = np.zeros(marks.shape, bool), []
        for z, _, path in (stroke for stroke in strokes if stroke[1] == class_id):
            passed[z] |= draw_path(path, marks.shape[1:])
            points += [marks[z, y, x] for y, x in path]
        far = [distance_transform_edt(~passed[z])[marks[z] == class_id].max(initial=0) for z in SLICES]
        assert max(far) <= 1.5, f"{NAMES[class_id]}: marked {max(far):.1f} pixels beside the pen's path"
        assert np.mean(np.array(points) == class_id) > 0.8, f"{NAMES[class_id]} is missing where the pen went"
    score = [dice(found == c, case.label == c) for c in (1, 2, 3)]
    print("DSC", np.round(score, 2))
    assert np.mean(score) > 0.55
    assert check(folder / "mine").fine
    predict_files(folder / "mine/models/heart.pt", folder / "heart.nii.gz", folder / "again.nii.gz")
    assert np.array_equal(nib.load(folder / "again.nii.gz").dataobj, mask.dataobj)


def test_without_webgl_it_says_so(lab):
    folder, address = lab
    store_heart(folder / "heart.nii.gz")
    write_notebook(folder / "blind.ipynb", OPEN.replace("mine", "blind"))
    with browser("--disable-3d-apis") as page:
        run_first_cell(page, address("blind"))
        page.get_by_text("No picture? Then this browser has no WebGL2.").wait_for(timeout=60_000)
        page.wait_for_timeout(2000)
        page.locator("button.jupyter-button", has_text="Train").click()
        page.get_by_text("found nothing drawn").wait_for(timeout=10_000)
        page.get_by_text("No picture? Then this browser has no WebGL2.").wait_for(timeout=1000)
