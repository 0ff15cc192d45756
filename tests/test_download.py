"""Downloads from a server of this test, on this machine: cut lines, other files, wrong checksums, the command."""

import hashlib
import logging.handlers
import re
import shutil
import threading
import zipfile
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pooch
import pytest
from filelock import FileLock
from test_chaos import heart, write_patient

from attenscribble.basics.errors import DataError
from attenscribble.data.datasets import SOURCES, find_dataset, open_dataset, user_folder
from attenscribble.data.download import _BLOCK as BLOCK
from attenscribble.data.download import DOWNLOADS, Download, download, fetch
from attenscribble.entry.commands import main

__all__ = ["heart"]  # a fixture
CONTENT = np.random.default_rng(0).bytes(5 * BLOCK + 77)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"pause_s": 0.001, "progress": False}


class Server(ThreadingHTTPServer):
    "Serves `files`; what else it does is set by the test."

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/a.zip": CONTENT}
        self.cuts: list[int] = []  # bytes after which the line is cut, one a request; none left: it holds
        self.statuses: list[int] = []  # of the next answers; 0: the file
        self.ranges, self.length, self.shift = True, True, 0
        self.tags = {"ETag": '"1"'}
        self.asked: list[tuple[int, int]] = []  # first byte asked for and bytes sent
        self.encodings: set[str | None] = set()  # that clients would take

    def url(self, name="a.zip"):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.files.get(self.path)
        server.encodings.add(self.headers.get("Accept-Encoding"))
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = first = int(wanted[1]) if wanted else 0
        if status := (server.statuses.pop(0) if server.statuses else 0) or (404 if content is None else 0):
            server.asked.append((start, 0))
            self.send_error(status)
            return
        known = self.headers.get("If-Range")
        strong = [value for value in server.tags.values() if not value.startswith("W/")]
        if not server.ranges or (known and known not in strong):
            start = 0
        if start >= len(content):
            server.asked.append((start, 0))
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start + server.shift * bool(start):]
        self.send_response(206 if start else 200)
        for name, value in server.tags.items():
            self.send_header(name, value)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        sent = body[:server.cuts.pop(0)] if server.cuts else body
        server.asked.append((first, len(sent)))
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- going on
def test_a_whole_file_arrives_and_is_not_fetched_twice(server, tmp_path):
    target = fetch(server.url(), tmp_path / "new" / "a.zip", SHA256, **QUICK)
    assert target.read_bytes() == CONTENT and names(target.parent) == ["a.zip"]
    fetch(server.url(), target, SHA256, **QUICK)
    assert server.asked == [(0, len(CONTENT))]


def test_pooch_keeps_quiet_while_it_is_used(server, tmp_path, monkeypatch):
    logger, handler = pooch.get_logger(), logging.handlers.BufferingHandler(99)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK)
    assert not handler.buffer and logger.level == logging.INFO


def test_a_cut_line_is_gone_on_with(server, tmp_path):
    server.cuts = [2 * BLOCK, BLOCK]
    target = fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK)
    assert target.read_bytes() == CONTENT and names(tmp_path) == ["a.zip"]
    assert server.asked == [(0, 2 * BLOCK), (2 * BLOCK, BLOCK), (3 * BLOCK, len(CONTENT) - 3 * BLOCK)]


def cut(server, target, at=2 * BLOCK):
    "A try that is cut, at a server that is busy from then on: what a user gives up on."
    server.cuts, server.statuses = [at], [0] + [503] * 9
    with pytest.raises(DataError, match=rf"a.zip: found no more than {at:,} bytes \(HTTP status 503 .*\), expected"):
        fetch(server.url(), target, tries=1, **QUICK)
    server.statuses.clear()
    server.asked.clear()


def test_a_download_of_yesterday_is_gone_on_with(server, tmp_path):
    cut(server, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists() and {"a.zip.part", "a.zip.part.tag"} <= set(names(tmp_path))
    assert fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK).read_bytes() == CONTENT
    assert server.asked == [(2 * BLOCK, len(CONTENT) - 2 * BLOCK)] and names(tmp_path) == ["a.zip"]
    assert server.encodings == {"identity"}  # positions count stored bytes, not packed ones


def test_a_weak_tag_is_not_relied_on(server, tmp_path):
    server.tags = {"ETag": 'W/"1"', "Last-Modified": formatdate(9e8, usegmt=True)}
    cut(server, tmp_path / "a.zip")
    assert fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK).read_bytes() == CONTENT
    assert server.asked == [(2 * BLOCK, len(CONTENT) - 2 * BLOCK)]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cuts = False, [2 * BLOCK, 4 * BLOCK]
    target = fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK)
    assert target.read_bytes() == CONTENT
    assert [sent for _, sent in server.asked] == [2 * BLOCK, 4 * BLOCK, len(CONTENT)]


@pytest.mark.parametrize("tags", [{"ETag": '"2"'}, {"Last-Modified": formatdate(9e8, usegmt=True)},
                                  {"ETag": 'W/"2"', "Last-Modified": formatdate(9e8, usegmt=True)}])
def test_another_file_on_the_server_is_not_mixed_with_the_first(server, tmp_path, tags):
    server.tags = {name: value.replace("2", "1").replace("1998", "1991") for name, value in tags.items()}
    cut(server, tmp_path / "a.zip")
    other = np.random.default_rng(1).bytes(len(CONTENT))
    server.files, server.tags = {"/a.zip": other}, tags
    assert fetch(server.url(), tmp_path / "a.zip", **QUICK).read_bytes() == other
    assert server.asked == [(2 * BLOCK, len(other))]  # asked to go on, and was sent all of it


def test_a_tag_goes_with_its_file(server, tmp_path):
    cut(server, tmp_path / "a.zip")
    server.files, server.tags = {"/a.zip": np.random.default_rng(1).bytes(len(CONTENT))}, {}
    cut(server, tmp_path / "a.zip", at=3 * BLOCK)
    assert "a.zip.part.tag" not in names(tmp_path)


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK).read_bytes() == CONTENT
    assert server.asked == [(len(CONTENT), 0)]
    server.asked.clear()
    (tmp_path / "b.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(server.url(), tmp_path / "b.zip", SHA256, **QUICK).read_bytes() == CONTENT
    assert server.asked == [(len(CONTENT) + 4, 0), (0, len(CONTENT))]


def test_a_server_that_goes_on_elsewhere_is_not_believed(server, tmp_path):
    server.shift, server.cuts = 5, [2 * BLOCK]
    target = fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK)
    assert target.read_bytes() == CONTENT and server.asked[-1] == (0, len(CONTENT))


def test_a_line_that_is_always_cut_at_a_server_that_cannot_go_on_ends(server, tmp_path):
    for server.ranges, server.shift in ((False, 0), (True, 5)):
        server.cuts = [2 * BLOCK, BLOCK] * 50
        with pytest.raises(DataError, match="expected the whole file"):
            fetch(server.url(), tmp_path / "a.zip", SHA256, tries=3, pause_s=0, progress=False)
        assert len(server.cuts) > 80


def test_a_server_that_does_not_say_how_long(server, tmp_path):
    server.length = False
    assert fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429, 500]
    assert fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK).read_bytes() == CONTENT
    server.statuses = [503] * 9
    with pytest.raises(DataError, match=r"b.zip: found no more than 0 bytes \(HTTP status 503 .*\), expected the"):
        fetch(server.url("b.zip"), tmp_path / "b.zip", tries=3, **QUICK)
    assert len(server.asked) == 3 + 1 + 3


def test_the_bar_counts_all_bytes(server, tmp_path, capsys):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:2 * BLOCK])
    fetch(server.url(), tmp_path / "a.zip", SHA256, pause_s=0)
    printed = capsys.readouterr().err
    assert "a.zip: 100%" in printed and f"{len(CONTENT) / 1000:.1f}k" in printed
    fetch(server.url(), tmp_path / "b.zip", SHA256, **QUICK)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- refusals
def test_another_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=rf"a.zip: found SHA-256 {SHA256}, expected {'0' * 64}; deleted, try again"):
        fetch(server.url(), tmp_path / "a.zip", "0" * 64, **QUICK)
    assert not [name for name in names(tmp_path) if not name.endswith(".lock")]


def test_an_older_file_stays_until_the_new_one_is_verified(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"older")
    with pytest.raises(DataError, match="found SHA-256"):
        fetch(server.url(), tmp_path / "a.zip", "0" * 64, **QUICK)
    assert (tmp_path / "a.zip").read_bytes() == b"older"
    assert fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK).read_bytes() == CONTENT
    fetch(server.url("gone.zip"), tmp_path / "a.zip", **QUICK)  # without a checksum what is there is kept
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_missing_file_is_named_at_once(server, tmp_path):
    with pytest.raises(DataError, match=r"/no.zip: found HTTP status 404 Not Found, expected 200, the file"):
        fetch(server.url("no.zip"), tmp_path / "no.zip", SHA256, **QUICK)
    assert len(server.asked) == 1 and not (tmp_path / "no.zip").exists()


def test_no_server(server, tmp_path):
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"a.zip: found no more than 0 bytes \(ConnectionError\), expected the whole"):
        fetch(url, tmp_path / "a.zip", SHA256, tries=2, **QUICK)


def test_two_processes_do_not_write_into_one_file(server, tmp_path):
    with FileLock(tmp_path / "a.zip.part.lock"), pytest.raises(RuntimeError, match="found another process"):
        fetch(server.url(), tmp_path / "a.zip", SHA256, **QUICK)
    assert not server.asked


# ---------------------------------------------------------------- by name
@pytest.fixture
def shop(server, monkeypatch, tmp_path):
    "The known downloads, served from here, into an empty user folder."
    for name, entry in DOWNLOADS.items():
        monkeypatch.setitem(DOWNLOADS, name, replace(entry, url=server.url(f"{name}.zip"), sha256=None))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("attenscribble.data.datasets.user_data_dir", lambda name: str(tmp_path / "home" / name))
    monkeypatch.delenv("ATTENSCRIBBLE_DATA", raising=False)
    return server


def zipped(folder: Path) -> bytes:
    return Path(shutil.make_archive(str(folder), "zip", folder)).read_bytes()


def test_what_is_published_is_what_is_asked_for():
    assert DOWNLOADS["chaos"].url.startswith("https://zenodo.org/records/3431873/")
    assert re.fullmatch(r"[0-9a-f]{64}", DOWNLOADS["chaos"].sha256) and DOWNLOADS["chaos"].sha256.startswith("535f7d34")
    assert re.search(r"/[0-9a-f]{40}/", DOWNLOADS["acdc-scribbles"].url)  # no checksum, but one commit
    assert all(entry.licence and entry.url.startswith("https://") for entry in DOWNLOADS.values())


def test_chaos_is_found_after_its_download(shop, tmp_path, heart, capsys):
    for number in (1, 15):
        write_patient(tmp_path / "release" / "Train_Sets" / "MR" / str(number), *heart)
    content = shop.files["/chaos.zip"] = zipped(tmp_path / "release")
    DOWNLOADS["chaos"] = replace(DOWNLOADS["chaos"], sha256=hashlib.sha256(content).hexdigest())
    assert main(["download", "chaos"]) == 0
    place = user_folder() / "chaos" / "CHAOS_Train_Sets.zip"
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == str(place) and "CC BY-NC-SA 4.0" in printed
    assert f"papermill train.ipynb chaos.ipynb -p dataset chaos -p root {place}" in printed
    assert find_dataset("chaos") == place.parent and open_dataset("chaos").patients == ("chaos01", "chaos15")
    assert open_dataset("chaos", place).read("chaos15")[0].label.any()
    assert main(["download", "chaos"]) == 0 and len(shop.asked) == 1


def test_scribbles_are_unpacked_and_fit_their_images(shop, tmp_path, capsys):
    scan = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.5, 1.5, 10, 1]))
    drawn = nib.Nifti1Image(np.full((2, 3, 4), 4, np.uint8), scan.affine)
    for folder, image, name in ((tmp_path / "acdc", scan, "patient001_frame01.nii.gz"),
                                (tmp_path / "drawn" / "acdc_scribbles", drawn, "patient001_frame01_scribble.nii.gz")):
        (folder / "patient001").mkdir(parents=True)
        nib.save(image, folder / "patient001" / name)
    shop.files["/acdc-scribbles.zip"] = zipped(tmp_path / "drawn")
    assert main(["download", "acdc-scribbles", "--to", str(tmp_path / "data")]) == 0
    folder = tmp_path / "data" / "acdc_scribbles"
    assert f"-p dataset acdc -p extra data_scribbles={folder}" in capsys.readouterr().out
    assert names(tmp_path / "data") == ["acdc_scribbles"]
    assert (next(open_dataset("acdc", tmp_path / "acdc", scribbles=folder).cases()).scribble == 4).all()
    assert download("acdc-scribbles", tmp_path / "data") == folder and len(shop.asked) == 1


@pytest.mark.parametrize("spoil", [lambda zipped: zipped[:-30], lambda zipped: zipped.replace(b"strokes", b"str0kes")])
def test_a_broken_zip_leaves_nothing(shop, tmp_path, spoil):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("patient001_frame01_scribble.nii", "strokes")
    shop.files["/acdc-scribbles.zip"] = spoil((tmp_path / "a.zip").read_bytes())
    with pytest.raises(DataError, match=r"acdc_scribbles.zip: found a broken zip .*; deleted, expected a whole one"):
        download("acdc-scribbles", tmp_path / "data", **QUICK)
    assert names(tmp_path / "data") == []


@pytest.mark.parametrize("name, words", [("acdc", "register at https"), ("wsl4mis", "clone https")])
def test_what_only_its_owners_give_out_is_not_pretended(shop, capsys, name, words):
    assert main(["download", name]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err and SOURCES[name].licence in printed.err
    assert f"{name}: found a dataset that no program may download, expected one of chaos, acdc-scribbles" in printed.err
    assert not shop.asked


def test_the_command_says_what_went_wrong(shop, tmp_path, capsys):
    assert main(["download", "chaos", "--to", str(tmp_path)]) == 1
    assert "chaos.zip: found HTTP status 404" in capsys.readouterr().err
    assert main(["download", "phantom"]) == 0 and "nothing to get" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["download", "chaoss"])
    assert stopped.value.code == 2 and "acdc-scribbles" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"download: found 'chaoss', expected one of .*; did you mean 'chaos'"):
        download("chaoss")


def test_a_new_download_is_one_entry(shop, monkeypatch, tmp_path):
    shop.files["/own.bin"] = b"own"
    monkeypatch.setitem(DOWNLOADS, "own", Download(shop.url("own.bin"), "own/file.bin", None, "mine", "see {folder}"))
    assert download("own", tmp_path, **QUICK).read_bytes() == b"own"
