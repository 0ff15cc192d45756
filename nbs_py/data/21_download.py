# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Downloads
#
# > The published file, complete and verified, or none at all.
#
# How do you fetch a dataset of 890 MB over a connection that breaks now and then? Starting again after each break can
# cost many times the size of the file, and half a file under the final name looks like a complete one. This chapter
# goes on where the last try stopped, and gives a file its name only when its checksum is the published one.

# %%
#| default_exp data.download

# %%
#| export
import os
import re
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# %%
#| export
import pooch
import requests
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from attenscribble.basics.errors import DataError, one_of
from attenscribble.basics.files import write_atomic
from attenscribble.data.datasets import SOURCES, user_folder

# %%
import hashlib
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.request import urlretrieve

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import interact

from attenscribble.basics.checking import exercise
from attenscribble.basics.errors import refused

os.environ["NO_PROXY"] = "127.0.0.1"  # this chapter connects to its own server only

# %% [markdown]
# ## The answer, as a picture
#
# A file of $S$ megabytes, a connection that breaks $\lambda$ times a megabyte, at random. Starting again after each
# break needs one stretch without a break that is as long as the whole file; going on needs each byte once. The expected
# traffic is
#
# $$T_{again}=\frac{e^{\lambda S}-1}{\lambda},\qquad T_{on}=S$$
#
# | symbol | variable | unit |
# |---|---|---|
# | $S$ | `size_mb` | MB |
# | $\lambda$ | `1 / between_mb` | 1/MB |

# %%
SIZE_MB = 890.8

def again_mb(size_mb, between_mb):
    "Expected traffic when every break means to start again."
    return between_mb * np.expm1(size_mb / between_mb)


# %%
def plot_traffic(betweens_mb, size_mb=SIZE_MB):
    "Traffic until the file is there, for connections that break once every so many megabytes."
    _, axis = plt.subplots(figsize=(6.5, 0.5 + 0.45 * len(betweens_mb)), layout="constrained")
    for row, between in enumerate(betweens_mb):
        for shift, mb, colour, name in ((-0.18, again_mb(size_mb, between), "#D55E00", "again from the start"),
                                        (0.18, size_mb, "#0072B2", "on from the break")):
            axis.barh(row + shift, mb, 0.34, color=colour, label=name if row == 0 else None)
            axis.text(mb * 1.05, row + shift, f"{mb:,.0f} MB", va="center", fontsize=8)
    axis.set_yticks(range(len(betweens_mb)), [f"a break every {mb:,} MB" for mb in betweens_mb], fontsize=8)
    axis.set(xscale="log", xlim=(300, 3e6), xlabel=f"expected traffic for a file of {size_mb:,.0f} MB, in MB")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper right")

plot_traffic([3000, 1000, 300, 150])

# %%
interact(lambda between_mb=300: plot_traffic([between_mb]), between_mb=(120, 3000, 20));

# %% [markdown]
# **By hand.** One break for each file length, $\lambda S=1$: $e-1=1.72$ files have to be sent on average instead of
# one.

# %%
assert np.isclose(again_mb(100, 100), 171.828, atol=1e-3)
rng, sent = np.random.default_rng(0), []
for _ in range(4000):  # simulated: how much is sent until one stretch without a break is long enough
    stretches = rng.exponential(100, 40)
    success = int(np.argmax(stretches >= 100))
    sent.append(stretches[:success].sum() + 100)
print(f"simulated: {np.mean(sent):.0f} MB, computed: {again_mb(100, 100):.0f} MB")
assert abs(np.mean(sent) - again_mb(100, 100)) < 8


# %% [markdown]
# ## A server that breaks
#
# It runs inside this notebook. It can cut the connection after so many bytes, understand `Range` or not, and exchange
# its file for another one.

# %%
def first_byte(request):
    "From where the file is sent: what `Range` asks for, if ranges are understood and the file is still the same."
    asked = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
    same = request.headers.get("If-Range", request.tag) == request.tag
    return int(asked[1]) if asked and request.ranges and same else 0

def reply_headers(content, start, tag):
    headers = {"Content-Length": str(len(content) - start), "ETag": tag}
    return headers | ({"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {})


# %%
class Shelf(BaseHTTPRequestHandler):
    "One file for every address; the class's fields say how it behaves."
    content, cut_after, ranges, tag, log = b"", 0, True, '"1"', []
    log_message = lambda *_: None

    def do_GET(self):
        start = first_byte(self)
        sent = self.content[start:start + (self.cut_after or len(self.content))]
        self.send_response(206 if start else 200)
        for name, value in reply_headers(self.content, start, self.tag).items():
            self.send_header(name, value)
        self.end_headers()
        self.log.append((start, len(sent)))
        self.wfile.write(sent)


# %%
server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/shelf.zip"
Shelf.content = np.random.default_rng(0).bytes(3 * 2**20)
SHA256 = hashlib.sha256(Shelf.content).hexdigest()

# %% [markdown]
# ## The obvious way, and how it fails
#
# Download straight to the final name. A break leaves half a file there, and the next program takes it for a complete
# one.

# %%
folder = Path(tempfile.mkdtemp())
Shelf.cut_after = 2**20
try:
    urlretrieve(url, folder / "naive.zip")
except OSError as error:
    print(error)
print((folder / "naive.zip").stat().st_size, "of", len(Shelf.content), "bytes lie under the final name")
assert 0 < (folder / "naive.zip").stat().st_size < len(Shelf.content)

# %% [markdown]
# ## Going on
#
# | header | from | meaning |
# |---|---|---|
# | `Range: bytes=n-` | us | we have $n$ bytes, send the rest |
# | `If-Range: "tag"` | us | but only if it is still that file, else all of it |
# | `206`, `Content-Range: bytes n-m/S` | server | here is the rest |
# | `200` | server | all of it: I cannot send a part, or the file has changed |
# | `416` | server | there is nothing from $n$ on |

# %% [markdown]
# The bytes received stay in `NAME.part` and the file's tag in `NAME.part.tag`, after a break and until another day. A
# try that brings more bytes than all before it does not count as a failure. Tries in a row that bring no more are
# counted, and after a number of them the download ends with an error.

# %%
#| export
_TIMEOUT_S = (10, 60)  # to connect; between two blocks
_BLOCK = 2**14  # bytes read at a time: a break costs at most the block that was under way
_CUT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)  # worth another try


class _Later(requests.ConnectionError):
    "The server cannot send the file now, or not from this byte on."


def _size(path: Path) -> int:
    "Bytes of a file; 0 if there is none."
    return path.stat().st_size if path.is_file() else 0


# %%
#| export
def _tag(part: Path) -> Path:
    "The file beside a part that tells which version of the server's file it is of."
    return part.with_name(f"{part.name}.tag")


# %% [markdown]
# **One try** asks for the rest, looks at what the server answers, and appends what comes.

# %%
#| export
def _stream(url: str, part: Path, progress: bool) -> None:
    "Append what is missing, or start anew where the server cannot go on or has another file by now."
    with requests.get(url, headers=_request_headers(part), stream=True, timeout=_TIMEOUT_S) as reply:
        have = _accepted(reply, url, part)
        if have is None:
            return
        total = have + int(reply.headers.get("Content-Length", 0)) or None
        with part.open("ab") as file, tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem,
                                           disable=not progress, mininterval=1.0) as bar:
            for block in reply.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))


# %%
#| export
def _request_headers(part: Path) -> dict[str, str]:
    "What to ask for: the rest, if there is a part."
    headers = {"Accept-Encoding": "identity"}  # bytes as they are stored, or positions would mean nothing
    if have := _size(part):
        headers["Range"] = f"bytes={have}-"
        if _tag(part).is_file():
            headers["If-Range"] = _tag(part).read_text()
    return headers


# %%
#| export
def _accepted(reply: requests.Response, url: str, part: Path) -> int | None:
    "How many bytes of the part stay; None if it is complete. Raises _Later for another try, DataError for none."
    have, status = _size(part), reply.status_code
    where = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", reply.headers.get("Content-Range", ""))
    if status == 416 and where and where[2] == str(have):
        return None
    if status == 416 or (status == 206 and not (where and where[1] == str(have))):
        part.unlink(missing_ok=True)
        raise _Later(f"status {status} for {have} bytes")
    if status == 429 or status >= 500:
        raise _Later(f"HTTP status {status} {reply.reason}")
    if status not in (200, 206):
        raise DataError(url, f"HTTP status {status} {reply.reason}", "200, the file")
    return have if status == 206 else _start_anew(reply, part)


# %%
#| export
def _start_anew(reply: requests.Response, part: Path) -> int:
    "Drop the part, keep what tells the server's file from another one (no weak tag, which `If-Range` forbids); 0."
    name = reply.headers.get("ETag", "")
    mark = reply.headers.get("Last-Modified", "") if name.startswith("W/") or not name else name
    for path in (part, _tag(part)):
        path.unlink(missing_ok=True)
    if mark:
        _tag(part).write_text(mark)
    return 0


# %% [markdown]
# **All tries** together are a downloader for pooch, which compares the checksum and gives the file its name.

# %%
#| export
def _resume(url: str, output: str, _pooch: object, *, part: Path, tries: int, pause_s: float, progress: bool) -> None:
    "Download to `output`, going on from `part`, also one of another day."
    failures, most = 0, _size(part)
    while True:
        try:
            _stream(url, part, progress)
            break
        except _CUT as error:
            failures = 0 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures >= tries:
                raise _given_up(url, part, error) from error
            time.sleep(pause_s * 2**failures)
    _tag(part).unlink(missing_ok=True)
    os.replace(part, output)


# %%
#| export
def _given_up(url: str, part: Path, error: Exception) -> DataError:
    "The error after too many tries that brought nothing more."
    why = error if isinstance(error, _Later) else type(error).__name__
    return DataError(url, f"no more than {_size(part):,} bytes ({why})",
                     "the whole file; the same command goes on from there")


# %%
#| export
def fetch(
    url: str,  # of the file
    target: Path | str,  # the file's final name
    sha256: str | None = None,  # of its content; None: nobody has published it
    *,
    tries: int = 5,  # in a row that get no further than those before; then it gives up
    pause_s: float = 1.0,  # after a break; doubled after each try in vain
    progress: bool = True,  # a bar with bytes, speed and time left
) -> Path:  # the file
    """Download a file, going on where an earlier try stopped, and verify it; a file that is there already is kept.

    The final name appears once all of it is there and verified. Raises DataError for a failing status, a connection
    that keeps breaking, or another checksum (what came is deleted); RuntimeError if another process downloads it."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    lock = FileLock(f"{part}.lock", timeout=0)
    try:
        with lock:
            _retrieve(url, sha256, target, partial(_resume, part=part, tries=tries, pause_s=pause_s, progress=progress))
            with suppress(OSError):  # Windows keeps a file that is open
                os.unlink(lock.lock_file)
    except Timeout:
        raise RuntimeError(f"{target}: found another process that is downloading it, expected none") from None
    return target


# %%
#| export
def _retrieve(url: str, sha256: str | None, target: Path, downloader: partial) -> None:
    "Let pooch download and verify, without its own messages. Raises DataError for another checksum."
    logger, level = pooch.get_logger(), pooch.get_logger().level
    try:
        logger.setLevel("WARNING")
        pooch.retrieve(url, sha256 and f"sha256:{sha256}", target.name, target.parent, downloader=downloader)
    except DataError:
        raise
    except ValueError as error:  # how pooch reports another checksum
        found = re.search(r"but got (\w+)", str(error))
        raise DataError(url, f"SHA-256 {found[1] if found else error}", f"{sha256}; deleted, try again") from error
    finally:
        logger.setLevel(level)


# %% [markdown]
# **Equal** to what was published, with each byte sent once, over two breaks.

# %%
Shelf.log.clear()
quick = {"pause_s": 0.01, "progress": False}
file = fetch(url, folder / "shelf.zip", SHA256, **quick)
assert file.read_bytes() == Shelf.content
assert Shelf.log == [(0, 2**20), (2**20, 2**20), (2 * 2**20, 2**20)]  # start and length of what was sent
assert sorted(path.name for path in folder.iterdir()) == ["naive.zip", "shelf.zip"]
Shelf.log.clear()
fetch(url, file, SHA256, **quick)
assert not Shelf.log  # it is there, and verified: nothing is asked for

# %% [markdown]
# Then each fault in turn: another checksum, and a server that always breaks and cannot go on, so that no try brings
# more than the one before it.

# %%
print(refused(lambda: fetch(url, folder / "other.zip", "0" * 64, **quick), "found SHA-256", SHA256))
assert not (folder / "other.zip").exists() and not (folder / "other.zip.part").exists()

# %%
Shelf.ranges = False
print(refused(lambda: fetch(url, folder / "hopeless.zip", SHA256, tries=2, **quick), "1,048,576 bytes"))
Shelf.ranges, Shelf.cut_after = True, 0
assert fetch(url, folder / "hopeless.zip", SHA256, **quick).read_bytes() == Shelf.content  # another day


# %% [markdown]
# ## What can be downloaded
#
# An entry names the address, the checksum, and where the file goes: below the folder in which [chapter
# 19](19_datasets.ipynb) looks. CHAOS stays zipped, since its loader reads the zip. ACDC wants a registration, which no
# program can do for you; its scribbles are free. Their checksum is not published, but the address names a commit, so
# the content cannot change unnoticed, and the checksums inside the zip are compared.

# %%
#| export
@dataclass(frozen=True)
class Download:
    "A file that anyone may fetch."

    url: str  # where it is published
    file: str  # where it goes below the data folder
    sha256: str | None  # None: not published; then the checksums inside the zip have to do
    licence: str  # of its content
    then: str  # what to run next; {folder} is where it lies
    unpack: bool = False  # lay the zip's content beside it, in a folder of its name


# %%
#| export
_SCRIBBLES = ("https://github.com/gvalvano/multiscale-adversarial-attention-gates/raw/"
              "4323c42fecbfff140bf5e95744e77c5bcb2afbd3/DATA/acdc_scribbles.zip")
DOWNLOADS = {
    "chaos": Download("https://zenodo.org/records/3431873/files/CHAOS_Train_Sets.zip", "chaos/CHAOS_Train_Sets.zip",
                      "535f7d3417a0e0f0d9133fb3d962423d2a9cf3f103e4f09a3d8a1daf87d5d2fc",
                      SOURCES["chaos"].licence,
                      "papermill train.ipynb chaos.ipynb -p dataset chaos -p root {folder}"),
    "acdc-scribbles": Download(_SCRIBBLES, "acdc_scribbles.zip", None, "Apache-2.0 (Valvano et al., IEEE TMI 2021)",
                               "papermill train.ipynb acdc.ipynb -p dataset acdc "
                               "-p extra data_scribbles={folder}", unpack=True),
}


# %%
#| export
def download(
    name: str,  # one of `DOWNLOADS`
    to: Path | str | None = None,  # data folder; None: the user's, in which `find_dataset` looks
    **options: Any,  # of `fetch`
) -> Path:  # the file, or the folder of its content
    """Get a dataset by its name, verified. What is there already is not fetched again.

    Raises what `fetch` raises; DataError for a broken zip and for a dataset that only its owners give out, with the way
    to it; ValueError for an unknown name."""
    entry = _entry(name)
    file = (user_folder() if to is None else Path(to).expanduser()) / entry.file
    if entry.unpack and file.with_suffix("").is_dir():
        return file.with_suffix("")
    fetch(entry.url, file, entry.sha256, **options)
    return _unpack(file) if entry.unpack else file


# %%
#| export
def _entry(name: str) -> Download:
    "The download of this name."
    one_of("download", name, DOWNLOADS | SOURCES)
    if name not in DOWNLOADS:
        raise DataError(name, "a dataset that no program may download", f"one of {', '.join(DOWNLOADS)}. "
                        f"To get it: {SOURCES[name].obtain}. Licence: {SOURCES[name].licence}.")
    return DOWNLOADS[name]


# %%
#| export
def _unpack(file: Path) -> Path:
    "The content of a zip in a folder of its name; the folder appears when all of it is there, and the zip goes."
    folder = file.with_suffix("")
    try:
        with zipfile.ZipFile(file) as archive:
            write_atomic(folder, archive.extractall)  # reads to the end of each member, and so checks it
    except zipfile.BadZipFile as error:
        file.unlink()
        raise DataError(file, f"a broken zip ({error}); deleted", "a whole one: try again") from error
    file.unlink()
    return folder


# %%
for name, entry in DOWNLOADS.items():
    print(f"{name}: {entry.url}\n  SHA-256 {entry.sha256 or 'not published'}; {entry.licence}")
print(refused(lambda: download("acdc"), "acdc: found a dataset that no program may download", "register at"))

# %% [markdown]
# In a terminal, one after the other:
#
# ```bash
# attenscribble download chaos
# mkdir -p ../runs
# papermill train.ipynb ../runs/chaos.ipynb -p dataset chaos
# ```
#
# ## What does verifying cost?
#
# The checksum reads the file once more, on one core:

# %%
data = bytes(2**26)
started = time.perf_counter()
hashlib.sha256(data).hexdigest()
rate = len(data) / 1e6 / (time.perf_counter() - started)
print(f"{rate:.0f} MB/s: {SIZE_MB / rate:.1f} s for the {SIZE_MB:.0f} MB of CHAOS")


# %% [markdown]
# ## Real data
#
# Skipped: a chapter fetches nothing from the network. The table of [chapter 19](19_datasets.ipynb) says which data this
# machine has.
#
# ## Exercises
#
# **1. Predict.** A file is published in two halves, fetched one after the other, each from its start after a break. By
# which factor is the expected traffic lower than for the file in one piece?

# %%
def check_halves(f):
    assert np.isclose(f(400, 200), np.expm1(2) / (2 * np.expm1(1)))

def my_factor(size_mb, between_mb):
    return 2.0  # improve this

exercise(check_halves, my_factor,
         solution=lambda size_mb, between_mb: again_mb(size_mb, between_mb) / (2 * again_mb(size_mb / 2, between_mb)))


# %% [markdown]
# It is always lower, though sometimes little: $e^{2x}-1=(e^x-1)(e^x+1)$, and the second factor is above 2.
#
# **2. Implement** the request's headers for a part of `have` bytes and the tag kept with it, or none.

# %%
def check_headers(f):
    assert f(0, None) == {} and f(5, None) == {"Range": "bytes=5-"}
    assert f(5, '"a"') == {"Range": "bytes=5-", "If-Range": '"a"'}

def my_headers(have, tag):
    return {"Range": f"bytes={have}-"}  # improve this

exercise(check_headers, my_headers,
         solution=lambda have, tag: ({"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})) if have else {})


# %% [markdown]
# **3. Break** the check by file size: return a content of the same length as the published one that the checksum
# refuses.

# %%
def check_forged(f):
    forged = f(Shelf.content)
    assert len(forged) == len(Shelf.content) and hashlib.sha256(forged).hexdigest() != SHA256

def my_forgery(content):
    return content  # improve this

exercise(check_forged, my_forgery, solution=lambda content: content[:-1] + bytes([content[-1] ^ 1]))

# %%
server.shutdown()

# %% [markdown]
# ## Recap
#
# Exported: `fetch`, which goes on after a break and verifies; `download` and `DOWNLOADS`, the same by name. What may
# surprise: with one break per file length, starting again costs not twice but 1.72 times the traffic; with three
# breaks, over six times. [Chapter 81](../entry/81_commands.ipynb) makes a command of it.
