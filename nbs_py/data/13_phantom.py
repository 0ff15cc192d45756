# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A phantom
#
# > Seeded short-axis hearts with labels and scribbles: what the book draws, tests and trains on without any patient.
#
# What must a drawn heart have so that a network learns from it, and is misled by it, as by a real one? Patients' scans
# may not be published with code, and a heart of three gray circles is too easy to teach anything. This chapter draws
# hearts with all that lies around them, as a scanner would show them, and compares them with real ones.

# %%
#| default_exp data.phantom

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from attenscribble.basics.errors import DataError
from attenscribble.data.scans import ACDC_CLASSES, ACDC_IGNORE, Case, Dataset, scale_intensities
from attenscribble.data.scribbles import simulate_scribble

# %%
import os
from pathlib import Path

from ipywidgets import interact

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.scans import acdc
from attenscribble.data.scribbles import annotated_share

# %% [markdown]
# ## The answer, as a picture
#
# One patient from base to apex, heart filled (ED) and contracted (ES), with labels and scribbles. (The function comes
# from the finished module; the chapter builds it.) Look for what makes it hard: round vessels with a wall that pass for
# a small ventricle, fat as bright as blood, the liver touching the heart, papillary muscles inside the cavity.

# %%
from attenscribble.data.phantom import phantom

def plot_frames(frames):
    "Two frames base → apex: scribbles over the image, labels as outlines."
    figure, axes = panels(2 * len(frames[0].image), columns=len(frames[0].image), size=1.75)
    for row, case in enumerate(frames):
        for z, axis in enumerate(axes[row * len(case.image):][:len(case.image)]):
            draw(axis, case.image[z], scribble=case.scribble[z], outline=case.label[z], ignore=4,
                 spacing_mm=case.spacing_mm[1:] if z == 0 else None, title=f"{case.frame}, slice {z}")
    class_legend(figure, ACDC_CLASSES, background=True)

frames = phantom().read("patient001")
plot_frames(frames)


# %% [markdown]
# ## Shapes, pixels, scanner
#
# Every shape is given by a signed distance $\ell$ in mm, negative inside. A shape of intensity $v$ is painted over what
# is there, $I_0$, by the share $\alpha$ of the pixel (side $h$) that it covers; $t\in[0,1]$ runs from base to apex; the
# scanner adds the coil's shading $b$ and noise in two channels, and shows the magnitude:
#
# $$I=(1-\alpha)I_0+\alpha v,\quad \alpha=\mathrm{clip}\big(\tfrac12-\tfrac{\ell}{h},0,1\big);\qquad
# r(t)=r_0\sqrt{1-\big(\tfrac{t-0.1}{0.95}\big)^2};\qquad M=\sqrt{(bI+n_1)^2+n_2^2}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $\ell$ | `level_mm` | [H,W] | mm |
# | $\alpha$ | `cover` | [H,W] | share of a pixel |
# | $h$ | `edge_mm` | [] | mm |
# | $r_0$ | `_Heart.cavity` | [] | mm |
# | $n_1,n_2\sim\mathcal N(0,\sigma^2)$ | `noise` $=\sigma$ | [H,W] | of intensity |

# %% [markdown]
# ## Partial volume, by its definition
#
# A pixel on a rim shows a mixture. To know its shares, cut each pixel into many small ones and count those inside.

# %%
def cover_naive(centre, radius, shape, parts=16):
    "Share of each pixel that a disc covers, in float64; pixel (i,j) reaches from i−½ to i+½."
    cover, offsets = np.zeros(shape), (np.arange(parts) + 0.5) / parts - 0.5
    for i, j in np.ndindex(shape):
        for dy in offsets:
            for dx in offsets:
                cover[i, j] += np.hypot(i + dy - centre[0], j + dx - centre[1]) < radius
    return cover / parts**2


# %% [markdown]
# By hand, 2×2: a huge disc whose rim runs along $x=1$, through the middle of the second column. The first column is
# covered, the second one half: rows (1, ½). With the rim at $x=1.25$ it is ¾.

# %%
for rim, half in ((1.0, 0.5), (1.25, 0.75)):
    assert np.abs(cover_naive((0, rim - 1e5), 1e5, (2, 2)) - [[1, half], [1, half]]).max() < 1 / 16


# %% [markdown]
# The naive form looks at 256 points a pixel. A slice has about forty shapes, a patient 16 slices, and so a patient would
# cost 10⁹ points. A ramp as wide as the pixel needs one distance for each pixel. It is exact for a straight rim along
# the grid, and off by a few percent along a diagonal.

# %%
#| export
def _rim(u: np.ndarray, v: np.ndarray, waves: tuple[tuple[int, float, float], ...]) -> np.ndarray:
    "Radius of a unit circle with waves, in the direction of each point."
    rim = np.ones_like(u)
    if waves:
        theta = np.arctan2(v, u)
        for count, amplitude, phase in waves:
            rim += amplitude * np.cos(count * theta + phase)
    return rim


# %%
#| export
def blob_level(
    y: np.ndarray,  # [...] mm
    x: np.ndarray,  # [...] mm
    centre: tuple[float, float],  # (y,x) mm
    half: tuple[float, float],  # half-axes (along `angle`, across it) in mm
    angle: float = 0.0,  # direction of the first half-axis, from +x towards +y
    waves: tuple[tuple[int, float, float], ...] = (),  # (k, amplitude, phase): the rim moves out by a·cos(kθ+φ)
) -> np.ndarray:  # [...] about the distance in mm from the rim: negative inside, exact for a circle
    "Level of an ellipse with a wavy rim."
    dy, dx = y - centre[0], x - centre[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / half[0]
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / half[1]
    return (np.hypot(u, v) - _rim(u, v, waves)) * min(half)


# %%
#| export
def paint(
    image: np.ndarray,  # [H,W] changed in place
    level_mm: np.ndarray,  # [H,W] negative inside
    value: float | np.ndarray,  # [] or [H,W], what to paint
    edge_mm: float,  # width of the ramp from inside to outside: the pixel's size
) -> None:
    "Paint a shape; a pixel on its rim gets a share of the value, as large as the share of the pixel that is covered."
    cover = np.clip(0.5 - level_mm / edge_mm, 0, 1)
    image += cover * (value - image)


# %%
y, x = (axis.astype(float) for axis in np.mgrid[:8, :8])
ramp = np.zeros((8, 8))
paint(ramp, blob_level(y, x, (3.3, 3.8), (2.6, 2.6)), 1.0, edge_mm=1.0)
exact = cover_naive((3.3, 3.8), 2.6, (8, 8))
print(f"largest difference {np.abs(ramp - exact).max():.3f}, in area {abs(ramp.sum() / exact.sum() - 1):.2%}")
assert np.abs(ramp - exact).max() < 0.1
print("naive", cost(lambda: cover_naive((3.3, 3.8), 2.6, (8, 8))))
print("fast ", cost(lambda: blob_level(y, x, (3.3, 3.8), (2.6, 2.6))))

# %% [markdown]
# ## Hearts
#
# ACDC has five groups of twenty patients: normal, dilated, thickened, infarcted, and with a wide right ventricle. A
# heart here is a dozen numbers, drawn from its group's ranges. Contracted, the cavities are smaller, the wall is
# thicker and the base lies deeper.

# %%
#| export
RV, MYO, LV = 1, 2, 3  # class ids, as in ACDC


# %%
#| export
@dataclass(frozen=True)
class _Heart:
    "One heart in one phase; lengths in mm, angles in radian, levels `t` from 0 at the base to 1 at the apex."

    cavity: float  # radius of the left ventricle's cavity where it is widest
    wall: float  # mean thickness of the left ventricle's wall
    thick: float  # share by which the wall is thicker on one side and thinner on the other
    thick_at: float  # angle of the thickest wall
    oval: float  # share by which the left ventricle is longer one way than the other
    rv_depth: float  # how far the right ventricle bulges, share of the left one's outer radius
    rv_span: float  # its length along the septum, share of the same
    rv_at: float  # angle from the left ventricle to the right one: π is to the left in the picture
    rv_end: float  # level at which it ends
    papillary: float  # radius of the papillary muscles, share of the cavity's
    papillary_at: tuple[float, float]  # their angles from the side opposite to the right ventricle
    base_mm: float  # level 0, above (−) or below (+) the first slice
    length_mm: float  # from level 0 to level 1


# %%
#| export
_GROUPS = {  # as the five groups of ACDC: (cavity, wall, rv_depth), ED, lowest and highest
    "normal": ((19, 23), (7.0, 9.0), (1.00, 1.20)),
    "dilated": ((24, 28), (6.0, 7.5), (0.85, 1.05)),
    "thick": ((17, 20), (10.0, 12.5), (0.85, 1.05)),
    "infarct": ((21, 25), (6.5, 8.0), (0.90, 1.10)),
    "right": ((18, 21), (7.0, 8.5), (1.20, 1.45)),
}


# %%
#| export
def _filled(group: str, rng: np.random.Generator) -> _Heart:
    "A heart at the end of diastole (ED)."
    cavity, wall, depth = (rng.uniform(*limits) for limits in _GROUPS[group])
    return _Heart(
        cavity, wall, thick=rng.uniform(0.1, 0.5 if group == "infarct" else 0.25), thick_at=rng.uniform(-np.pi, np.pi),
        oval=rng.uniform(0.0, 0.08), rv_depth=depth, rv_span=rng.uniform(0.88, 1.05), rv_at=np.pi + rng.normal(0, 0.3),
        rv_end=rng.uniform(0.85, 1.0), papillary=rng.uniform(0.09, 0.18),
        papillary_at=(rng.normal(-0.95, 0.2), rng.normal(0.85, 0.2)), base_mm=rng.uniform(-9, 2),
        length_mm=rng.uniform(62, 68))


def _draw_heart(group: str, rng: np.random.Generator) -> tuple[_Heart, _Heart]:
    "One patient's heart, filled (ED) and contracted (ES); the group is a key of _GROUPS."
    full = _filled(group, rng)
    return full, _contracted(full, group, rng)


# %%
#| export
def _contracted(full: _Heart, group: str, rng: np.random.Generator) -> _Heart:
    "The same heart at the end of systole (ES): smaller cavities, a thicker wall, a lower base."
    ratio = rng.uniform(0.82, 0.92) if group == "dilated" else rng.uniform(0.6, 0.75)
    shorter = rng.uniform(0.03, 0.08) * full.length_mm
    return replace(
        full, cavity=ratio * full.cavity, wall=rng.uniform(1.25, 1.5) * full.wall, papillary=full.papillary / ratio,
        rv_depth=rng.uniform(0.75, 0.9) * full.rv_depth, rv_end=full.rv_end - 0.05,
        base_mm=full.base_mm + shorter, length_mm=full.length_mm - shorter)


# %% [markdown]
# The left ventricle is two nested ellipsoids, the right one an ellipse that the left one cuts to a crescent. It ends
# before the left one does. Papillary muscles are dark in the image and belong to the cavity in the label, as in ACDC.

# %%
#| export
def _taper(t: float, middle: float, length: float) -> float:
    "Radius of an ellipsoid at a level, share of its largest: 1 at `middle`, 0 from `length` beyond it on."
    return np.sqrt(max(0.0, 1 - ((t - middle) / length) ** 2))


def _left_levels(heart: _Heart, t: float, outer: float, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Cavity and outer rim of the left ventricle in one plane, mm, negative inside; +inf where there is no cavity."
    inner = _taper(t, 0.1, 0.95) * heart.cavity
    oval = (2, heart.oval, -2 * heart.rv_at)
    inside = blob_level(y, x, (0, 0), (inner, inner), waves=(oval,)) if inner else np.full_like(y, np.inf)
    swell = (1, heart.thick * (outer - inner) / outer, -heart.thick_at)
    return inside, blob_level(y, x, (0, 0), (outer, outer), waves=(oval, swell))


# %%
#| export
def _right_level(heart: _Heart, t: float, outer: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    "The right ventricle in one plane, mm, negative inside, before the left one cuts it; +inf below its end."
    taper = _taper(t, 0.0, heart.rv_end)
    if taper == 0:
        return np.full_like(y, np.inf)
    direction = np.array([np.sin(heart.rv_at), np.cos(heart.rv_at)])
    half = (heart.rv_depth * outer * taper, heart.rv_span * outer * taper**0.5)
    waves = ((2, 0.05, 0.4), (3, 0.12, heart.thick_at))
    return blob_level(y, x, tuple(0.8 * outer * direction), half, heart.rv_at, waves)


# %%
#| export
def _heart_levels(heart: _Heart, t: float, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Cavity, wall's outer rim, right ventricle in mm, negative inside; (y,x) in mm from the left ventricle's axis."
    outer = _taper(t, 0.1, 1.02) * (heart.cavity + heart.wall)
    if not 0 <= t or outer == 0:
        return (np.full_like(y, np.inf),) * 3  # no heart at this level
    inside, outside = _left_levels(heart, t, outer, y, x)
    return inside, outside, np.maximum(_right_level(heart, t, outer, y, x), -outside)


def _heart_label(heart: _Heart, t: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    "[H,W] uint8 in 0 … 3: which pixel's centre lies in which part; papillary muscles belong to the cavity."
    inside, outside, right = _heart_levels(heart, t, y, x)
    return np.select([inside < 0, outside < 0, right < 0], [LV, MYO, RV], 0).astype(np.uint8)


# %%
full, contracted = _draw_heart("normal", np.random.default_rng(0))
y, x = np.mgrid[-60:60:1.0, -80:60:1.0]
volume = {name: sum((_heart_label(heart, t, y, x) == LV).sum() for t in np.linspace(0, 1, 50)) * heart.length_mm / 50
          for name, heart in (("ED", full), ("ES", contracted))}
print(f"cavity {volume['ED'] / 1000:.0f} ml filled, {volume['ES'] / 1000:.0f} ml contracted: "
      f"ejection fraction {1 - volume['ES'] / volume['ED']:.0%}")
assert volume["ES"] < volume["ED"] and contracted.wall > full.wall
assert not (_heart_label(full, -0.1, y, x).any() or _heart_label(full, 1.2, y, x).any())

# %% [markdown]
# ## What is around them
#
# Trunk, lungs with vessels, liver, stomach, spleen, spine, great vessels, bowel: the same list for every patient, each
# item moved, resized, turned, dented and shaded at random. Several are meant to look like a ventricle: bright blood in a
# dark wall.

# %%
#| export
_ORGANS = (  # tissue, centre (y,x) from the heart's axis and half-axes (y,x) in mm, later ones over earlier ones
    ("fat", 15, 30, 165, 128), ("muscle", 15, 36, 148, 108), ("lung", -62, 22, 72, 88), ("lung", -8, 78, 62, 40),
    ("vessel", -62, 5, 4, 3), ("vessel", -48, 40, 3, 4), ("vessel", -75, 50, 3, 3), ("vessel", -28, 72, 4, 3),
    ("fat", 22, -72, 34, 11), ("fat", -44, 2, 9, 24), ("liver", 80, -30, 44, 78), ("vessel", 78, -58, 4, 7),
    ("vessel", 62, -44, 6, 4), ("fat", 44, 44, 12, 30), ("muscle", 54, 66, 26, 22), ("stomach", 54, 66, 17, 14),
    ("spleen", 92, 98, 30, 20), ("bone", 122, 44, 20, 24), ("muscle", 60, 30, 15, 15), ("blood", 60, 30, 10, 10),
    ("muscle", 58, -10, 13, 14), ("blood", 58, -10, 8, 9), ("bowel", 104, 78, 14, 16), ("bowel", 118, 4, 15, 18),
    ("bowel", 128, -40, 18, 16), ("muscle", -52, -48, 13, 15), ("blood", -52, -48, 7, 9), ("muscle", -58, 28, 11, 11),
    ("blood", -58, 28, 7, 7), ("blood", 30, -66, 12, 6), ("blood", -14, -80, 14, 6), ("muscle", -20, 52, 8, 12),
    ("blood", -20, 52, 3.5, 7),
)

# %%
#| export
_SHADES = {  # lowest and highest intensity of a tissue on a bright-blood scan, before the coil's shading
    "blood": (0.72, 0.95), "muscle": (0.20, 0.28), "fat": (0.60, 0.95), "lung": (0.03, 0.09), "vessel": (0.35, 0.80),
    "liver": (0.24, 0.42), "stomach": (0.15, 0.95), "spleen": (0.30, 0.50), "bone": (0.30, 0.50), "bowel": (0.10, 0.90),
}


@dataclass(frozen=True)
class _Body:
    "What is drawn once for a patient, whatever the phase."

    organs: tuple  # (intensity, centre, half-axes, angle, waves, drift per level), as blob_level takes them
    shades: dict  # tissue → intensity
    coil: np.ndarray  # (y,x) mm of the receiving coil and its strength
    tilt: np.ndarray  # (y,x) relative change of the intensity over 100 mm


# %%
#| export
def _draw_organ(organ: tuple, shades: dict, contrast: float, scale: float, rng: np.random.Generator) -> tuple:
    "One entry of _ORGANS for one patient: moved, resized, turned, dented and shaded."
    tissue, cy, cx, hy, hx = organ
    move = np.clip(rng.normal(0, 6, 2), -12, 12) * min(1, 60 / max(hy, hx))
    waves = tuple((k, 0.28 / k * rng.uniform(0.2, 1), rng.uniform(-np.pi, np.pi)) for k in (2, 3, 4, 5))
    shade = shades[tissue] + contrast * (0.08 * rng.normal() if tissue not in ("lung", "muscle") else 0)
    grow = rng.uniform(0.85, 1.15) if max(hy, hx) < 90 else 1.0
    return (max(shade, 0.02), (scale * cy + move[0], scale * cx + move[1]), (grow * hx, grow * hy),
            rng.normal(0, 0.15), waves, rng.normal(0, 10, 2))


# %%
#| export
def _draw_body(rng: np.random.Generator, contrast: float = 1.0) -> _Body:
    "A patient's surroundings; contrast 1: as scanned, towards 0 all tissues look like muscle."
    shades = {name: rng.uniform(*limits) for name, limits in _SHADES.items()}
    shades = {name: shades["muscle"] + contrast * (shade - shades["muscle"]) for name, shade in shades.items()}
    scale = rng.uniform(0.92, 1.08)
    organs = tuple(_draw_organ(organ, shades, contrast, scale, rng) for organ in _ORGANS)
    coil = np.array([rng.normal(-20, 30), rng.normal(-85, 20), rng.uniform(0.2, 0.8)])
    return _Body(organs, shades, coil, rng.uniform(-0.2, 0.2, 2))


# %% [markdown]
# ## One plane
#
# A plane is painted from the back to the front: the surroundings, then the heart, or above its base the atria, two
# round chambers of blood that look like ventricles and that nobody labels.

# %%
#| export
_YX = tuple[np.ndarray, np.ndarray]  # of a slice's pixels in mm, each [H,W]


def _paint_body(body: _Body, t: float, y: np.ndarray, x: np.ndarray, edge_mm: float) -> np.ndarray:
    "[H,W] float64, intensities at a level without the heart; (y,x) in mm from its axis, `edge_mm`: a pixel's size."
    image = np.full(y.shape, 0.02)  # air
    for shade, centre, half, angle, waves, drift in body.organs:
        moved = np.add(centre, (t - 0.5) * drift)
        radius = 1.5 * max(half) + edge_mm  # no rim moves out by more than half
        rows, columns = (slice(*np.searchsorted(axis, (mm - radius, mm + radius)))
                         for axis, mm in zip((y[:, 0], x[0]), moved, strict=True))
        level = blob_level(y[rows, columns], x[rows, columns], tuple(moved), half, angle, waves)
        paint(image[rows, columns], level, shade, edge_mm)
    return image


# %%
#| export
def _paint_heart(image: np.ndarray, heart: _Heart, t: float, grid: _YX, shades: dict, edge_mm: float) -> None:
    "Blood, wall, papillary muscles and trabeculae over the surroundings; `grid`: (y,x), each [H,W], mm."
    angle, (blood, muscle) = np.arctan2(*grid), (shades["blood"], shades["muscle"])
    inside, outside, right = _heart_levels(heart, t, *grid)
    comb = np.cos(9 * angle + heart.thick_at) + np.cos(14 * angle - 3 * heart.thick_at)  # trabeculae
    fat = 3.5 * np.maximum(np.cos(2 * angle + 3 * heart.thick_at) + 0.5 * np.cos(5 * angle), 0)
    paint(image, np.minimum(outside, right) - fat, shades["fat"], edge_mm)
    paint(image, right - 2.5, muscle, edge_mm)
    paint(image, right + 0.8 * np.maximum(comb, 0), 0.95 * blood, edge_mm)
    paint(image, outside, muscle, edge_mm)
    paint(image, inside + (0.4 + 0.8 * t) * np.maximum(comb, 0), blood, edge_mm)
    if 0.2 < t < 0.8:
        for level in _papillary_levels(heart, t, *grid):
            paint(image, np.maximum(level, inside), 1.2 * muscle, edge_mm)


# %%
#| export
def _papillary_levels(heart: _Heart, t: float, y: np.ndarray, x: np.ndarray) -> Iterator[np.ndarray]:
    "The two papillary muscles at a level between 0.2 and 0.8, mm, negative inside."
    for turn, bend in zip(heart.papillary_at, (1, -1), strict=True):
        at, size = heart.rv_at + np.pi + turn + 0.4 * bend * (t - 0.5), heart.papillary * heart.cavity
        centre = (0.75 - 0.35 * abs(t - 0.4)) * heart.cavity * np.array([np.sin(at), np.cos(at)])
        yield blob_level(y, x, tuple(centre), (1.5 * size, size), at, ((3, 0.15, 2 * bend),))


def _paint_atria(image: np.ndarray, heart: _Heart, grid: _YX, shades: dict, edge_mm: float) -> None:
    "What lies above the base; `grid`: (y,x), each [H,W], mm."
    for side, half in ((0.0, (0.9, 0.75)), (1.0, (0.7, 0.8))):
        centre = side * 1.5 * heart.cavity * np.array([np.sin(heart.rv_at), np.cos(heart.rv_at)])
        level = blob_level(*grid, tuple(centre), tuple(heart.cavity * np.array(half)), heart.rv_at, ((3, 0.1, 1.0),))
        paint(image, level - 2.5, shades["muscle"], edge_mm)
        paint(image, level, shades["blood"], edge_mm)


# %% [markdown]
# ## The scanner
#
# Air has no signal, and yet its magnitude is not zero: with $I=0$ and noise $\sigma$ the mean of $M$ is
# $\sigma\sqrt{\pi/2}$. Noise that is added to the magnitude instead would have a mean of 0 in air and be negative in half
# of its pixels, which no scanner shows.

# %%
#| export
def _acquire(image: np.ndarray, body: _Body, grid: _YX, rng: np.random.Generator, noise: float) -> np.ndarray:
    "[H,W] ≥ 0: uneven tissue, blur, the coil's shading, the magnitude of two channels with noise of that σ (Rice)."
    texture = sum(share * 2 * np.sqrt(np.pi) * s * gaussian_filter(rng.normal(size=image.shape), s)
                  for s, share in ((1.2, 0.07), (4.0, 0.09)))
    image = gaussian_filter(image * (1 + np.clip(texture, -0.4, 0.4)), 0.6)
    far = np.hypot(grid[0] - body.coil[0], grid[1] - body.coil[1])
    shading = 1 + body.coil[2] * np.exp(-((far / 80) ** 2))
    image = image * shading * np.exp((body.tilt[0] * grid[0] + body.tilt[1] * grid[1]) / 100)
    first, second = noise * rng.normal(size=(2, *image.shape))
    return np.hypot(image + first, second)


# %%
body = _draw_body(np.random.default_rng(1))
grid = tuple(np.mgrid[-50.0:50.0, -50.0:50.0])
air = _acquire(np.zeros((100, 100)), body, grid, np.random.default_rng(2), noise=0.05)
assert abs(air.mean() / (0.05 * np.sqrt(np.pi / 2)) - 1) < 0.02 and air.min() >= 0
print(f"air: {air.mean():.4f} measured, {0.05 * np.sqrt(np.pi / 2):.4f} expected")


# %% [markdown]
# ## Patients
#
# Each patient has a pose, a pixel size, a field of view and a slice distance; each slice is taken in another breath-hold
# and so a little shifted. At 96 pixels one sees the heart and its neighbours, at 224 the whole trunk.

# %%
#| export
@dataclass(frozen=True)
class _Patient:
    "What both frames of a patient share."

    hearts: tuple[_Heart, _Heart]  # filled, contracted
    body: _Body
    shape: tuple[int, int, int]  # (Z,Y,X)
    spacing_mm: tuple[float, float, float]  # (z,y,x)
    axis_mm: np.ndarray  # (y,x) of the left ventricle's axis from the image's centre


# %%
#| export
_AXIS_MM = 17.0  # the left ventricle's axis lies right of the image's centre, so that both ventricles are in view
_FULL_VIEW = 96  # pixels of full resolution that show a whole heart; below, the pixels grow instead


def _draw_patient(group: str, rng: np.random.Generator, side: int, slices: int, contrast: float) -> _Patient:
    "Anatomy, pose and scan geometry. From 96 pixels on, a larger side shows more of the same patient."
    hearts, body = _draw_heart(group, rng), _draw_body(rng, contrast)
    gap = rng.uniform(8, 10) * 7 / max(slices - 1, 1)  # eight slices span a heart; fewer lie further apart
    pixel = rng.uniform(1.4, 1.9) * max(1, _FULL_VIEW / side)
    shape = (slices, side - 2 * int(0.04 * side * rng.uniform()), side - 2 * int(0.07 * side * rng.uniform()))
    return _Patient(hearts, body, shape, (gap, pixel, pixel), rng.uniform(-6, 6, 2) + (0, _AXIS_MM))


# %% [markdown]
# A slice is some millimetres thick. The mean of two planes inside it gives partial volume along z.

# %%
#| export
_LEVEL_MM = 65.0  # a heart's usual length, by which the surroundings change from slice to slice
_BREATH_MM = 1.3  # standard deviation of the shift from slice to slice: each is taken in a breath-hold of its own


def _slice_grid(patient: _Patient, rng: np.random.Generator) -> _YX:
    "(y,x) of a slice's pixels in mm from the left ventricle's axis, each [Y,X]; every slice is shifted a little."
    at = (np.arange(n) - (n - 1) / 2 for n in patient.shape[1:])
    shift = patient.axis_mm + np.clip(rng.normal(0, _BREATH_MM, 2), -3, 3)
    return tuple(axis * patient.spacing_mm[1] - mm
                 for axis, mm in zip(np.meshgrid(*at, indexing="ij"), shift, strict=True))


# %%
#| export
def _paint_slice(patient: _Patient, heart: _Heart, top_mm: float, grid: _YX) -> np.ndarray:
    "[Y,X] tissue intensities of a slice at a distance from the first one: the mean of two planes inside it."
    pixel, shades = patient.spacing_mm[1], patient.body.shades
    body = _paint_body(patient.body, top_mm / _LEVEL_MM, *grid, pixel)
    planes = [body.copy(), body]
    for plane, mm in zip(planes, (-2, 2), strict=True):
        t = (top_mm + mm - heart.base_mm) / heart.length_mm
        if t < 0:
            _paint_atria(plane, heart, grid, shades, pixel)
        else:
            _paint_heart(plane, heart, t, grid, shades, pixel)
    return (planes[0] + planes[1]) / 2


# %%
#| export
def _draw_slice(patient: _Patient, heart: _Heart, z: int, rng: np.random.Generator, noise: float) -> tuple:
    "Intensities and label of one slice, each [Y,X]."
    grid, top_mm = _slice_grid(patient, rng), z * patient.spacing_mm[0]
    label = _heart_label(heart, (top_mm - heart.base_mm) / heart.length_mm, *grid)
    return _acquire(_paint_slice(patient, heart, top_mm, grid), patient.body, grid, rng, noise), label


# %%
#| export
_DRAWN_SHARE = (0.3, 0.6)  # a close view makes long strokes a large share of it, so the annotator stops early


def _draw_case(name: str, frame: int, patient: _Patient, noise: float, streams: list) -> Case:
    "One frame of a patient; the first one is ED, any other ES."
    scanner, hand = (np.random.default_rng(stream) for stream in streams)
    heart = patient.hearts[frame > 1]
    planes = [_draw_slice(patient, heart, z, scanner, noise) for z in range(patient.shape[0])]
    image, label = (np.stack(arrays) for arrays in zip(*planes, strict=True))
    scribble = [simulate_scribble(s, hand, classes=len(ACDC_CLASSES), ignore=ACDC_IGNORE, drawn_share=_DRAWN_SHARE)
                for s in label]
    affine = np.diag([*patient.spacing_mm[::-1], 1.0])
    return Case(name, f"frame{frame:02d}", scale_intensities(image.astype(np.float32)), patient.spacing_mm, affine,
                np.stack(scribble), label)


# %% [markdown]
# Nothing is drawn before it is asked for. Patients cycle through the five groups; with fewer than five patients the folds
# without one are left out.

# %%
#| export
_MOST_VOXELS = 2 * 10**9  # of all patients: 8 GB


def _check_settings(integers: dict[str, tuple[int, int]], contrast: float, noise: float) -> None:
    "Raise ValueError for a wrong argument of `phantom`; name → (value, least)."
    for name, (value, least) in integers.items():
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name}: found {value!r}, expected a whole number, at least {least}")
    patients, side, slices = (int(integers[name][0]) for name in ("patients", "side", "slices"))
    if patients > 10_000 or 2 * patients * slices * side**2 > _MOST_VOXELS:
        raise ValueError(f"patients, slices, side: found {patients} × {slices} × {side}², expected at most 10,000 "
                         f"patients and {_MOST_VOXELS:,} voxels in two frames of each")
    if not (np.isfinite(contrast) and contrast > 0):
        raise ValueError(f"contrast: found {contrast}, expected a positive number")
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise: found {noise}, expected 0 or a positive number")


# %%
#| export
def phantom(
    patients: int = 20,  # how many, at least 1; the first ones stay the same when there are more
    seed: int = 0,  # of everything that is drawn, at least 0
    side: int = 96,  # longest side of a slice in pixels, at least 32; 96 shows the heart, 224 the whole trunk
    slices: int = 8,  # from base to apex, at least 1
    *,
    contrast: float = 1.0,  # difference of the tissues' intensities from muscle's, relative; > 0
    noise: float = 0.04,  # standard deviation of each channel; blood is about 0.8
) -> Dataset:  # "phantom": classes and ignore of ACDC, ED and ES of each patient, five folds by blocks
    "Seeded hearts with labels and scribbles. Raises ValueError; DataError on reading for a patient that is not there."
    _check_settings({"patients": (patients, 1), "seed": (seed, 0), "side": (side, 32), "slices": (slices, 1)},
                    contrast, noise)
    names = tuple(f"patient{number:03d}" for number in range(1, patients + 1))
    folds = {k: test for k in range(1, 6) if (test := names[(k - 1) * patients // 5:k * patients // 5])}

    def read(patient: str) -> list[Case]:
        if patient not in names:
            raise DataError("phantom: patient", repr(patient), f"one of {names[0]} … {names[-1]}")
        index = names.index(patient)
        streams = np.random.SeedSequence([seed, index]).spawn(5)
        drawn = _draw_patient(tuple(_GROUPS)[index % 5], np.random.default_rng(streams[0]), side, slices, contrast)
        return [_draw_case(patient, frame, drawn, noise, streams[i:i + 2]) for frame, i in ((1, 1), (9 + index % 5, 3))]

    return Dataset("phantom", ACDC_CLASSES, ACDC_IGNORE, names, read, folds, "acdc",
                   f"drawn by attenscribble, seed {seed}", content=lambda patient: {})  # its options say all


# %% [markdown]
# A patient has random streams of its own: it is the same in any order of reading and in a data set of any size.

# %%
alone, among = phantom(patients=3, seed=7, side=48, slices=3), phantom(patients=9, seed=7, side=48, slices=3)
list(among.cases())
for one, other in zip(alone.read("patient002"), among.read("patient002"), strict=True):
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.scribble, other.scribble)
print("one patient:", cost(lambda: phantom().read("patient004")))


# %%
def plot_patients(dataset, patients):
    "The middle slice of several patients, filled."
    figure, axes = panels(len(patients), columns=5, size=1.9)
    for number, (axis, patient) in enumerate(zip(axes, patients, strict=True)):
        case = dataset.read(patient)[0]
        z = len(case.image) // 2 - 1
        draw(axis, case.image[z], outline=case.label[z], spacing_mm=case.spacing_mm[1:],
             title=f"{patient}: {tuple(_GROUPS)[number % 5]}")
    class_legend(figure, ACDC_CLASSES)

dataset = phantom()
plot_patients(dataset, dataset.patients[:10])


# %% [markdown]
# ## Against real scans
#
# What share of a slice belongs to each class, and what share of it is annotated? Percent of the pixels; the phantom in
# ACDC's field of view (side 224) and in its own (side 96).

# %%
def shares(cases):
    "Mean share of the pixels in percent: each organ, then what the scribble gives to each class and in all."
    rows = [[*(100 * np.mean(case.label == c) for c in (RV, MYO, LV)),
             *100 * annotated_share(case.scribble, 4, ACDC_IGNORE)] for case in cases]
    return (*(mean := np.mean(rows, 0)), mean[3:].sum())


# %%
sources = {"phantom, 96": phantom().cases(dataset.patients[:5]),
           "phantom, 224": phantom(side=224).cases(dataset.patients[:3])}
if (root := Path(os.environ.get("ATTENSCRIBBLE_DATA", "data")) / "acdc").is_dir():
    data = acdc(root)
    sources["ACDC"] = data.cases(data.patients[4::10])
else:
    print("no ACDC: set ATTENSCRIBBLE_DATA to the folder that holds acdc/")
print(" " * 14 + "".join(f"{name:>8}" for name in ("RV", "Myo", "LV", "| bg", "RV", "Myo", "LV", "all")))
for name, cases in sources.items():
    print(f"{name:<14}" + "".join(f"{share:8.2f}" for share in shares(cases)))


# %% [markdown]
# The hearts are smaller than ACDC's, so that a whole one fits into 96 pixels; in that close view everything takes a
# larger share. The phantom's strokes are cut short to make up for it: at ACDC's field of view they mark fewer pixels than
# the experts do. What the numbers do not show: real anatomy varies in ways that a list of ellipses cannot.

# %% [markdown]
# ## Is it hard enough?
#
# We trained a small U-Net (8 to 128 channels) for 400 steps of 8 slices on 15 patients and tested it on the other 5.
# With dense labels (cross-entropy and Dice) the mean DSC was 0.86 and 0.89 for two seeds of the training; with
# scribbles alone (partial cross-entropy, same schedule) 0.45 and 0.43. The scribble network finds the heart, and finds it
# a second time in vessels, fat and air, where no stroke was drawn. The method of this book is meant to close that gap.

# %% [markdown]
# ## Make it harder
#
# `contrast` scales how far each tissue's intensity lies from that of muscle, `noise` is the standard deviation of each
# channel. The anatomy stays the same.

# %%
def plot_quality(settings, patient="patient003", z=3):
    "One slice under several settings of contrast and noise."
    _, axes = panels(len(settings))
    for axis, (contrast, noise) in zip(axes, settings, strict=True):
        case = phantom(patients=3, contrast=contrast, noise=noise).read(patient)[0]
        draw(axis, case.image[z], spacing_mm=case.spacing_mm[1:], title=f"contrast {contrast:g}, noise {noise:g}")

plot_quality([(1.0, 0.0), (1.0, 0.04), (0.4, 0.04), (1.0, 0.15)])

# %%
interact(lambda contrast=1.0, noise=0.04: plot_quality([(contrast, noise)]),
         contrast=(0.1, 1.5, 0.1), noise=(0.0, 0.3, 0.02));


# %% [markdown]
# ## Exercises
#
# **1. Implement** the volume of the left ventricle's cavity in ml, from a label and the voxel size (z,y,x) in mm. The
# fraction that leaves it with each beat is what cardiologists want from such a label.

# %%
def check_volume(f):
    label = np.zeros((2, 10, 10), np.uint8)
    label[:, :5] = LV
    assert abs(f(label, (10.0, 1.0, 2.0)) - 2.0) < 1e-9

def my_volume(label, spacing_mm):
    ...  # your code here

exercise(check_volume, my_volume,
         solution=lambda label, spacing_mm: (label == LV).sum() * np.prod(spacing_mm) / 1000)


# %% [markdown]
# **2. Predict.** By which factor does the mean of the air grow when the noise is doubled?

# %%
def check_factor(f):
    quiet, loud = (_acquire(np.zeros((100, 100)), body, grid, np.random.default_rng(0), s).mean() for s in (0.05, 0.1))
    assert abs(loud / quiet - f()) < 0.05

def my_factor():
    return 1  # your prediction

exercise(check_factor, my_factor, solution=lambda: 2)


# %% [markdown]
# **3. Break** the idea that brightness is enough. Give a threshold for "blood" that finds most of the cavity in the
# middle slice, while the DSC of the left ventricle stays below 0.6. Then look for a threshold with a higher DSC.

# %%
def check_threshold(f):
    image, cavity = frames[0].image[3], frames[0].label[3] == LV
    found = image > f()
    assert found[cavity].mean() > 0.5, "most of the cavity has to be found"
    assert 2 * (found & cavity).sum() / (found.sum() + cavity.sum()) < 0.6

def my_threshold():
    return 1.0  # your threshold

exercise(check_threshold, my_threshold, solution=lambda: 0.4)


# %% [markdown]
# **4. Implement** the taper: the level below which the cavity's radius is less than half of `cavity`.

# %%
def check_level(f):
    r = lambda t: np.sqrt(1 - ((t - 0.1) / 0.95) ** 2)
    assert abs(r(f()) - 0.5) < 1e-6 and f() > 0.1

def my_level():
    ...  # a number between 0 and 1

exercise(check_level, my_level, solution=lambda: 0.1 + 0.95 * np.sqrt(0.75))

# %% [markdown]
# ## Recap
#
# Exported: `phantom`, the data set; `blob_level` and `paint`, with which other bodies can be drawn; the class ids `RV`,
# `MYO` and `LV`. The surprise: what makes a phantom useful for weak labels is not the heart but everything around it
# that looks like one. [The next chapter](14_simulation.ipynb) draws scribbles in five ways;
# [chapter 19](19_datasets.ipynb) puts the phantom beside the real data sets.
