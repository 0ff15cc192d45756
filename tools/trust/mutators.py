"""One random change of a file: any bytes, fields of its format, entries of its JSON. One generator draws them all."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
from PIL import Image

Random = np.random.Generator
ODD_NUMBERS = (0, 1, -1, 2, 3, 255, 256, 257, 32767, -32768, 65535, 2**31 - 1, -2**31, 2**40, 0.5, -0.0, 1e-30, 1e30,
               3.4e38, 1e308, float("nan"), float("inf"), float("-inf"))
ODD_VALUES = (None, True, False, "", "0", "1e400", "x" * 300, "ünï", "a/b", "..", "$_$", "<b>", "\u0000", [], {}, [[]],
              [1, 2, 3], {"a": 1}, [None], 10**25, *ODD_NUMBERS)


def pick(chance: Random, options: Any) -> Any:
    options = list(options)
    return options[int(chance.integers(len(options)))]


# ---- bytes of any file


def flip_bits(data: bytearray, chance: Random) -> str:
    places = chance.integers(0, len(data), int(chance.integers(1, 9)))
    for place in places:
        data[place] ^= 1 << int(chance.integers(8))
    return f"bits flipped at {places.tolist()}"


def truncate(data: bytearray, chance: Random) -> str:
    length = int(chance.integers(0, len(data)))
    del data[length:]
    return f"cut to {length} bytes"


def zeros(data: bytearray, chance: Random) -> str:
    start, length = int(chance.integers(0, len(data))), int(chance.integers(1, 600))
    data[start:start + length] = bytes(len(data[start:start + length]))
    return f"{length} zeros at {start}"


def swap_blocks(data: bytearray, chance: Random) -> str:
    size = min(int(chance.integers(1, 65)), len(data) // 2 or 1)
    first, second = sorted(int(place) for place in chance.integers(0, max(1, len(data) - size), 2))
    if second - first < size:
        second = min(first + size, len(data) - size)
    data[first:first + size], data[second:second + size] = data[second:second + size], data[first:first + size]
    return f"{size} bytes at {first} and {second} exchanged"


def lengthen(data: bytearray, chance: Random) -> str:
    extra = chance.bytes(int(chance.integers(1, 2000)))
    data += extra
    return f"{len(extra)} bytes more"


def insert(data: bytearray, chance: Random) -> str:
    place = int(chance.integers(0, len(data)))
    data[place:place] = chance.bytes(int(chance.integers(1, 9)))
    return f"bytes put in at {place}"


def of_bytes(path: Path, chance: Random) -> str:
    data = bytearray(path.read_bytes())
    said = pick(chance, (flip_bits, flip_bits, truncate, zeros, swap_blocks, lengthen, insert))(data, chance)
    path.write_bytes(data)
    return said


def swap_files(path: Path, chance: Random) -> str:
    "The content of another file under this name; both stay where they are."
    others = sorted(other for other in path.parent.parent.rglob("*") if other.is_file() and other != path)
    if not others:
        return of_bytes(path, chance)
    other = pick(chance, others)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    if chance.random() < 0.5:
        other.write_bytes(one)
    return f"content of {other.name}"


# ---- NIfTI

NIFTI_FIELDS = {  # name: offset, struct code, count
    "sizeof_hdr": (0, "i", 1), "dim": (40, "h", 8), "intent_code": (68, "h", 1), "datatype": (70, "h", 1),
    "bitpix": (72, "h", 1), "slice_start": (74, "h", 1), "pixdim": (76, "f", 8), "vox_offset": (108, "f", 1),
    "scl_slope": (112, "f", 1), "scl_inter": (116, "f", 1), "xyzt_units": (123, "B", 1), "cal_max": (124, "f", 1),
    "qform_code": (252, "h", 1), "sform_code": (254, "h", 1), "quatern": (256, "f", 6), "srow": (280, "f", 12),
    "magic": (344, "4s", 1)}


def of_nifti(path: Path, chance: Random) -> str:
    "A field of the header, or voxels; the file stays compressed as it is, with a checksum that is right."
    data = bytearray(_unpacked(path))
    name = pick(chance, [*NIFTI_FIELDS, "dim", "pixdim", "srow", "xyzt_units", "voxels", "voxels"])
    said = _voxels(data, chance) if name == "voxels" else _field(data, name, chance)
    path.write_bytes(gzip.compress(bytes(data), 1) if path.suffix == ".gz" else bytes(data))
    return said


def _unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _field(data: bytearray, name: str, chance: Random) -> str:
    offset, code, count = NIFTI_FIELDS[name]
    number = int(chance.integers(count))
    place = offset + number * struct.calcsize(code)
    old = struct.unpack_from(f"<{code}", data, place)[0]
    value = _odd(code, old, chance)
    struct.pack_into(f"<{code}", data, place, value)
    return f"{name}[{number}] {old} → {value}"


def _odd(code: str, old: Any, chance: Random) -> Any:
    "A value of a type, near the old one or far from it."
    if code == "4s":
        return pick(chance, (b"n+2\0", b"ni1\0", b"\0\0\0\0", b"n+1 "))
    if code == "f":
        return float(np.float32(pick(chance, (*ODD_NUMBERS[:9], *ODD_NUMBERS[14:19], *ODD_NUMBERS[20:], old * 1.01,
                                              old * 3, old / 1000, old * 1000, -old, old + 1))))
    if code == "B":
        return pick(chance, (0, 1, 2, 3, 8, 10, 18, 255))
    return pick(chance, (0, 1, -1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 32767, -32768, old + 1, old - 1,
                         -old if old > -32768 else 0))


def _voxels(data: bytearray, chance: Random) -> str:
    "Odd values in some voxels, in the type that the file has."
    kinds = {2: "B", 4: "h", 8: "i", 16: "f", 64: "d", 512: "H"}
    code = kinds.get(struct.unpack_from("<h", data, 70)[0], "B")
    voxels = np.frombuffer(data, f"<{code}", offset=352)
    share = pick(chance, (1, 3, len(voxels) // 3, len(voxels)))
    with np.errstate(all="ignore"):
        value = np.array(pick(chance, ODD_NUMBERS)).astype(f"<{code}") if code in "fd" else (
            chance.integers(np.iinfo(f"<{code}").min, np.iinfo(f"<{code}").max, endpoint=True))
    places = chance.permutation(len(voxels))[:share]
    array = voxels.copy()
    array[places] = value
    data[352:] = array.tobytes() + bytes(data[352 + array.nbytes:])
    return f"{len(places)} voxels of value {value}"


# ---- HDF5, DICOM, PNG


def of_h5(path: Path, chance: Random) -> str:
    "An array of the file is removed, renamed, or stored in another type, shape or with odd values."
    with h5py.File(path, "a") as file:
        name = pick(chance, sorted(file))
        array = file[name][()]
        act = pick(chance, sorted(H5_ACTS))
        del file[name]
        H5_ACTS[act](file, name, array, chance)
    return f"{name}: {act}"


def _store(change: Callable[[np.ndarray, Random], np.ndarray]) -> Callable[..., None]:
    def store(file: Any, name: str, array: np.ndarray, chance: Random) -> None:
        with np.errstate(all="ignore"):
            file[name] = change(array, chance)
    return store


def _h5_odd(array: np.ndarray, chance: Random) -> np.ndarray:
    array = array.astype(np.float64)
    array.ravel()[chance.permutation(array.size)[:int(pick(chance, (1, 5, array.size)))]] = pick(chance, ODD_NUMBERS)
    return array


H5_ACTS: dict[str, Callable[..., None]] = {
    "removed": lambda file, name, array, chance: None,
    "renamed": lambda file, name, array, chance: file.__setitem__(f"{name}s", array),
    "a group": lambda file, name, array, chance: file.create_group(name),
    "sparse and huge": lambda file, name, array, chance: file.create_dataset(
        name, (100_000,) * array.ndim, np.float64, chunks=(100,) * array.ndim),
    "scalar": _store(lambda array, chance: array.ravel()[0]),
    "empty": _store(lambda array, chance: array[:0]),
    "turned": _store(lambda array, chance: array.T.copy()),
    "one slice less": _store(lambda array, chance: array[1:]),
    "text": _store(lambda array, chance: np.array([b"x"])),
    "complex": _store(lambda array, chance: array.astype(np.complex64)),
    "float64": _store(lambda array, chance: array.astype(np.float64)),
    "int64": _store(lambda array, chance: array.astype(np.int64)),
    "uint8": _store(lambda array, chance: array.astype(np.uint8)),
    "negative": _store(lambda array, chance: -array.astype(np.float32) - 1),
    "odd values": _store(_h5_odd), "more odd values": _store(_h5_odd)}

DICOM_FIELDS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
                "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "PixelSpacing",
                "ImageOrientationPatient", "SliceThickness", "SeriesInstanceUID", "EchoTime", "PixelData")


def of_dicom(path: Path, chance: Random) -> str:
    "A field of the header is removed, or gets an odd value."
    header = pydicom.dcmread(path, force=True)
    name = pick(chance, DICOM_FIELDS)
    old = header.get(name)
    act = pick(chance, ("remove", "odd", "odd", "near"))
    try:
        if act == "remove" and name in header:
            delattr(header, name)
        else:
            setattr(header, name, _dicom_value(old, act, chance))
        header.save_as(path)
    except Exception:  # pydicom itself does not write such a value
        return f"{name} unwritable; {of_bytes(path, chance)}"
    return f"{name}: {act}, now {str(header.get(name))[:60]}"


def _dicom_value(old: Any, act: str, chance: Random) -> Any:
    if isinstance(old, bytes):
        return old[:int(chance.integers(len(old)))] if act == "near" else old + b"\0\0"
    if hasattr(old, "__len__") and not isinstance(old, str):
        values = [float(value) for value in old]
        values[int(chance.integers(len(values)))] = pick(chance, (0, 1, -1, 1e-30, 5, 100, 1e10))
        return values if act == "odd" else values[1:]
    if isinstance(old, (int, float)):
        return pick(chance, (0, 1, 2, 8, 15, 16, 32, 64, 3, 65535)) if act == "odd" else int(old) + 1
    return pick(chance, ("", "0", "1", "2", "-1", "0.5", "1e5", "RGB", "MONOCHROME1", "x"))


def of_png(path: Path, chance: Random) -> str:
    "Another size, another mode, other values."
    with Image.open(path) as picture:
        values = np.array(picture)
    act = pick(chance, ("RGB", "bilevel", "16 bits", "palette", "smaller", "turned", "value", "value"))
    if act == "value":
        values = values.copy()
        places = chance.permutation(values.size)[:int(pick(chance, (1, values.size)))]
        values.ravel()[places] = int(chance.integers(256))
    picture = {"RGB": lambda: Image.fromarray(np.stack([values] * 3, -1)),
               "bilevel": lambda: Image.fromarray(values > 0),
               "16 bits": lambda: Image.fromarray(values.astype(np.uint16) * 257),
               "palette": lambda: Image.fromarray(values).convert("P"),
               "smaller": lambda: Image.fromarray(values[1:]),
               "turned": lambda: Image.fromarray(np.rot90(values).copy())}.get(act, lambda: Image.fromarray(values))()
    picture.save(path)
    return act


# ---- JSON


def of_json(path: Path, chance: Random) -> str:
    "An entry anywhere is removed, doubled, exchanged with another, or gets an odd value; or the text is odd."
    content = json.loads(path.read_text())
    act = pick(chance, ("odd", "odd", "odd", "remove", "rename", "exchange", "double", "text"))
    if act == "text":
        text, said = _odd_text(json.dumps(content), chance)
        path.write_bytes(text)
        return said
    said = _edit(content, act, chance)
    path.write_text(json.dumps(content))
    return said


def _places(content: Any) -> list[tuple[Any, Any]]:
    "Every (container, key) inside nested lists and dictionaries."
    pairs = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    found = [(content, key) for key, _ in pairs]
    for _, entry in pairs:
        if isinstance(entry, (dict, list)) and entry:
            found += _places(entry)
    return found


def _edit(content: Any, act: str, chance: Random) -> str:
    depth = chance.random()
    places = _places(content)
    home, key = pick(chance, [place for place in places if place[0] is content] if depth < 0.5 else places)
    if act == "remove":
        old = home.pop(key)
    elif act == "rename" and isinstance(home, dict):
        old = home[f"{key}s"] = home.pop(key)
    elif act == "double" and isinstance(home, list):
        home.insert(key, old := home[key])
    elif act == "exchange":
        other = pick(chance, range(len(home)) if isinstance(home, list) else home)
        old = home[key]
        home[key], home[other] = home[other], home[key]
    else:
        old, home[key] = home[key], pick(chance, ODD_VALUES)
    return f"{act} {key}: {str(old)[:40]} → {str(home[key] if key in home else '')[:40]}" if isinstance(home, dict) \
        else f"{act} [{key}]: {str(old)[:40]}"


def _odd_text(text: str, chance: Random) -> tuple[bytes, str]:
    forms = {"byte-order mark": b"\xef\xbb\xbf" + text.encode(), "UTF-16": text.encode("utf-16"),
             "deep": b"[" * 200_000, "deep object": b'{"a":' * 100_000, "empty": b"", "null": b"null", "list": b"[]",
             "number": b"7", "NaN": text.replace("1", "NaN", 1).encode(), "twice": text.encode() * 2,
             "no text": b"\xff\xfe\xfd" + text.encode(), "half": text[:len(text) // 2].encode(),
             "zeros": text.encode() + b"\0" * 50, "long number": text.replace("1", "1" * 5000, 1).encode()}
    name = pick(chance, sorted(forms))
    return forms[name], f"text: {name}"


def of_gzip(path: Path, chance: Random) -> str:
    "A stream that unpacks to far more than the file says, or that ends early with a checksum that is right."
    data = _unpacked(path)
    if chance.random() < 0.3:
        path.write_bytes(gzip.compress(data + bytes(200 << 20), 1))
        return "200 MiB of zeros after the voxels"
    length = int(chance.integers(len(data)))
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    path.write_bytes(packer.compress(data[:length]) + packer.flush())
    return f"{length} of {len(data)} bytes, compressed"
