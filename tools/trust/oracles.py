"""What a file says, by other libraries and by code that shares nothing with the package: to compare what was loaded.

An oracle returns what is right, or raises `Refuse`: such an input must be refused."""

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.filereader import read_partial


class Refuse(Exception):
    "This input has no right reading."


def need(condition: object, why: str) -> None:
    if not condition:
        raise Refuse(why)


def differ(wrong: bool, what: str) -> None:
    if wrong:
        raise AssertionError(what)


def nifti(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    "Voxels as stored (x,y,z), affine in mm, and what the header says of voxel sizes: by nibabel and by the bytes."
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        scan = nib.Nifti1Image.from_bytes(data)
        voxels = np.asarray(scan.dataobj)
    except Exception as error:
        raise Refuse(f"nibabel: {error}") from None
    order = scan.header.endianness
    units = struct.unpack_from("B", data, 123)[0] & 7
    to_mm = {1: 1000.0, 3: 0.001}.get(units, 1.0)
    sizes = np.abs(np.array(struct.unpack_from(f"{order}8f", data, 76)[1:4])) * to_mm
    affine = scan.affine.copy()
    affine[:3] *= to_mm
    with np.errstate(all="ignore"):
        norms = np.sqrt((affine[:3, :3].astype(np.float64) ** 2).sum(0))
    need(np.isfinite(affine).all(), "an affine that is not finite")
    need((norms > 1e-4).all() and (norms < 1e5).all(), f"voxels of {norms} mm")
    placed = struct.unpack_from(f"{order}2h", data, 252)
    return voxels, affine, {"sizes": sizes, "norms": norms, "placed": any(code > 0 for code in placed)}


def three_axes(voxels: np.ndarray) -> np.ndarray:
    "The same voxels without further axes of length 1, and with three at least."
    squeezed = voxels.shape[:3] + tuple(n for n in voxels.shape[3:] if n != 1)
    need(len(squeezed) <= 3 and voxels.size, f"shape {voxels.shape}")
    return voxels.reshape((*squeezed, 1, 1)[:3])


def usable_scan(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    "`nifti`, if it is a scan with sizes that its affine bears out."
    voxels, affine, facts = nifti(path)
    voxels = three_axes(voxels)
    need(voxels.dtype.kind in "iuf" and np.isfinite(voxels).all(), f"{voxels.dtype} or not finite")
    need(abs(np.linalg.det(affine[:3, :3])) > 1e-3 * facts["norms"].prod(), "an affine without volume")
    need(np.allclose(facts["sizes"], facts["norms"], rtol=0.02), f"sizes {facts['sizes']} beside {facts['norms']}")
    return voxels, affine, facts


def same_place(mine: np.ndarray, affine_mine: np.ndarray, file: np.ndarray, affine: np.ndarray) -> np.ndarray:
    "The file's voxels [Z,Y,X] in the order in which the case has them, found through millimetres."
    z, y, x = np.indices(mine.shape).reshape(3, -1)
    here = np.linalg.inv(affine) @ affine_mine @ np.stack([x, y, z, np.ones_like(x)])
    places = np.rint(here[:3]).astype(int)
    differ(np.abs(here[:3] - places).max() > 0.25, "voxels lie between those of the file")
    inside = ((places >= 0) & (places < np.array(file.shape)[:, None])).all()
    differ(not inside or mine.size != file.size, f"{mine.shape} voxels of {file.shape}, or outside of them")
    return file[tuple(places)].reshape(mine.shape)


def same_look(mine: np.ndarray, file: np.ndarray, contrast: bool = True) -> None:
    """A scaled image never reverses the order of the file's intensities and gives equal ones alike; where the paper's
    own scaling is not asked for, it keeps contrast."""
    order = np.argsort(file, axis=None, kind="stable")
    values, scaled = file.ravel()[order], mine.ravel()[order]
    differ(bool((np.diff(scaled) < -1e-6).any()), "intensities in another order")
    equal = np.diff(values) == 0
    differ(bool((np.abs(np.diff(scaled))[equal] > 1e-6).any()), "equal intensities differ")
    middle = np.quantile(scaled, (0.1, 0.9))
    raw = np.quantile(values.astype(float), (0.1, 0.9))
    differ(contrast and raw[1] > raw[0] and middle[1] - middle[0] < 0.02, "almost no contrast is left")


def same_sizes(mine: Any, affine: np.ndarray) -> None:
    "The voxel size (z,y,x) of a case is that of its affine."
    norms = np.sort(np.sqrt((affine[:3, :3] ** 2).sum(0)))
    differ(not np.allclose(np.sort(mine), norms, rtol=0.02), f"voxel size {mine} where the file has {norms}")


def meaning(content: Mapping[str, Any]) -> tuple[dict[int, str], int]:
    "Value → name, and the value that is not drawn, of a dataset.json."
    named = content.get("labels")
    if named is None:
        named = {}
    need(isinstance(named, dict), "labels that are no names with values")
    try:
        values = {int(str(value)): str(name) for name, value in named.items()}
    except (TypeError, ValueError):
        values = {}
    if named and not values:
        try:
            values = {int(str(value)): str(name) for value, name in named.items()}
        except (TypeError, ValueError):
            raise Refuse("labels that are no names and whole numbers") from None
    need(len(values) == len(named), "a value twice")
    hidden = {value for value, name in values.items() if name.lower() in ("ignore", "unannotated", "unlabelled",
                                                                         "unlabeled")}
    ignore = content.get("ignore", next(iter(hidden), None))
    need(ignore is None or (isinstance(ignore, (int, float, str)) and str(ignore) not in ("", "nan")), "ignore")
    return {value: name for value, name in values.items() if value not in hidden}, ignore  # type: ignore[return-value]


def same_strokes(ids: np.ndarray, names: tuple[str, ...], unset: int, file: np.ndarray,
                 said: Mapping[str, Any]) -> None:
    "Each voxel has the class whose name dataset.json gives to the file's value, or is not drawn."
    values, ignore = meaning(said)
    need(np.isfinite(file).all(), "values that are not finite")
    for value in np.unique(file):
        here = np.unique(ids[file == value])
        need(abs(value - round(float(value))) < 1e-3, f"the value {value}")
        differ(len(here) > 1, f"value {value} became {here}")
        if ignore is not None and int(float(ignore)) == round(float(value)):
            differ(int(here[0]) != unset, f"{value} is not drawn, and became {here}")
            continue
        if ignore is None and value == 255 and 255 not in values and here[0] == unset:
            continue  # by convention
        differ(here[0] == unset and ignore is not None, f"value {value} was dropped")
        if not values:  # nobody named them: they are told apart, and that is all
            continue
        name = values.get(round(float(value)))
        background = said.get("background") == round(float(value)) or (
            name is None and "background" not in said and value == 0)  # which 0 is where no other value is
        need(name is not None or background, f"value {value} has no name")
        differ(here[0] != unset and names[int(here[0])] != (name if name and not background else names[0]),
               f"{value} is {name}, and became {names[int(here[0])] if here[0] != unset else 'not drawn'}")


def json_of(path: Path) -> Any:
    "JSON as RFC 4627 has it: UTF-8, or what its mark or the zeros among its first bytes say."
    data = path.read_bytes()
    code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return json.loads(data.decode(code))
    except (ValueError, RecursionError) as error:
        raise Refuse(f"JSON: {error}") from None


def h5(path: Path) -> dict[str, np.ndarray]:
    "The arrays of a file, by h5py alone."
    try:
        with h5py.File(path) as file:
            need(all(isinstance(file[name], h5py.Dataset) for name in file), "a group")
            need(sum(file[name].size for name in file) < 10**7, "arrays far larger than the file")
            return {name: file[name][()] for name in file}
    except Refuse:
        raise
    except Exception as error:
        raise Refuse(f"h5py: {error}") from None


class _PixelsSeen:
    "Stops reading behind the pixels: what follows them is not looked at."

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, tag: int, vr: object, length: object) -> bool:
        before, self.seen = self.seen, self.seen or tag == 0x7FE00010
        return before


def dicom_slices(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    "Name, pixels after the rescale, and pixel (column, row) → mm, RAS, as 4×2 and an offset in one 4×3 matrix."
    found = []
    for path in sorted(folder.glob("*.dcm")):
        try:
            with path.open("rb") as file:
                header = read_partial(file, _PixelsSeen())
            pixels = header.pixel_array.astype(np.float64)
            slope, cut = (float(header.get(name)) if header.get(name) not in (None, "") else default
                          for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
            along, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            row, column = (float(mm) for mm in header.PixelSpacing)
            first = np.array(header.ImagePositionPatient, float)
        except Exception as error:
            raise Refuse(f"pydicom: {path.name}: {error}") from None
        need(header.get("SamplesPerPixel", 1) == 1 and pixels.ndim == 2, f"{path.name}: colours or a film")
        need(header.get("PhotometricInterpretation", "MONOCHROME2") == "MONOCHROME2", f"{path.name}: not MONOCHROME2")
        ras = np.array([-1, -1, 1])[:, None] * np.stack([along * column, down * row, first], 1)
        need(slope != 0, f"{path.name}: a slope of 0")
        need(np.isfinite(ras).all() and np.isfinite(pixels).all(), f"{path.name}: not finite")
        found.append((path.stem, pixels * slope + cut, ras))
    return found


def png(path: Path) -> np.ndarray:
    "A gray picture, by Pillow."
    try:
        with Image.open(path) as picture:
            values = np.array(picture)
            if picture.mode == "RGB":
                need((values == values[..., :1]).all(), "colours")
                return values[..., 0]
            need(picture.mode in ("L", "P", "I;16", "I"), f"mode {picture.mode}")
            return values
    except Refuse:
        raise
    except Exception as error:
        raise Refuse(f"Pillow: {error}") from None
