"""Compiled C in the cache: only a library of our own, whole, in a folder that nobody else can write to, is loaded."""

import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from attenscribble.basics import native

SOURCE = "int answer(void) { return 42; }"
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    "A cache of the test's own, in which `SOURCE` was compiled."
    if native._compiler() is None:
        pytest.skip("needs a C compiler")
    monkeypatch.setenv("ATTENSCRIBBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTENSCRIBBLE_NATIVE", raising=False)
    forget()
    assert native.native(SOURCE).answer() == 42
    yield tmp_path / "cache"
    forget()


def forget():
    "What comes next is done as by a fresh process."
    native._library.cache_clear()
    native._temporary.cache_clear()


def library(cache: Path) -> Path:
    (path,) = (cache / "native").glob("*.so")
    return path


def put(path: Path, content: bytes) -> None:
    "A new file in place of the old one, which this process has loaded."
    path.unlink()
    path.write_bytes(content)


def planted(folder: Path) -> Path:
    "A valid library with another answer, as somebody else would plant it."
    text, place = folder / "evil.c", folder / "evil.so"
    text.write_text("int answer(void) { return 666; }")
    subprocess.run(["cc", "-shared", "-fPIC", text, "-o", place], check=True)
    return place


def answer_of_a_fresh_process(cache: Path) -> str:
    code = f"from attenscribble.basics.native import native; print(native({SOURCE!r}).answer())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True,
                          env={**os.environ, "ATTENSCRIBBLE_CACHE": str(cache)})
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@POSIX
def test_the_folder_is_for_its_owner_alone(cache):
    assert stat.S_IMODE((cache / "native").stat().st_mode) == 0o700
    (cache / "native").chmod(0o755)  # as an older version left it
    library(cache).unlink()
    forget()
    native.native(SOURCE)
    assert stat.S_IMODE((cache / "native").stat().st_mode) == 0o700


def test_a_truncated_library_ends_no_process(cache):
    path = library(cache)
    put(path, path.read_bytes()[:path.stat().st_size // 3])
    assert answer_of_a_fresh_process(cache) == "42" and native._is_whole(library(cache))


def flipped(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:100], lambda content: b"", bytes.lower,
                                    lambda content: content + b" "], ids=["bit", "cut", "empty", "lower", "longer"])
def test_a_damaged_library_is_compiled_anew(cache, damage):
    path = library(cache)
    put(path, damage(path.read_bytes()))
    assert not native._is_whole(library(cache))
    forget()
    assert native.native(SOURCE).answer() == 42 and native._is_whole(library(cache))


def test_a_library_under_a_right_name_with_other_content_is_not_loaded(cache, tmp_path):
    put(library(cache), planted(tmp_path).read_bytes())
    forget()
    assert native.native(SOURCE).answer() == 42


@POSIX
@pytest.mark.skipif(os.name != "nt" and os.geteuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize("whose", ["library", "folder", "folder above"])
def test_what_belongs_to_somebody_else_is_not_loaded(cache, tmp_path, whose):
    evil, path = planted(tmp_path), library(cache)
    path.unlink()
    path = path.with_name(f"{path.stem.split('-')[0]}-{native._digest(evil)}.so")  # even under the right name
    shutil.copyfile(evil, path)
    os.chown({"library": path, "folder": path.parent, "folder above": cache}[whose], 12345, 12345)
    forget()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert native.native(SOURCE).answer() == 42
        assert native.native(SOURCE + " ").answer() == 42
    told = [str(warning.message) for warning in said if "nobody else can write to" in str(warning.message)]
    assert len(told) == (whose != "library") and all("belongs to user 12345" in text for text in told)


@POSIX
@pytest.mark.parametrize("where", ["native", "."])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_refused_once_by_name(cache, monkeypatch, where, mode):
    path = library(cache)
    (cache / where).chmod(mode)
    monkeypatch.setattr(native.Path, "parents", property(lambda self: ()))  # as if pytest's own folder were open too
    forget()
    with pytest.warns(UserWarning, match="others can write") as said:
        assert native.native(SOURCE).answer() == 42
        assert native.native(SOURCE + " ").answer() == 42
    assert len(said) == 1 and str(cache / "native") in str(said[0].message) and "chmod 700" in str(said[0].message)
    assert list((cache / "native").iterdir()) == [path]


@POSIX
def test_a_shared_folder_with_the_sticky_bit_is_as_good_as_one_of_our_own(cache):
    cache.chmod(0o1777)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.native(SOURCE).answer() == 42


@POSIX
def test_a_link_in_place_of_the_folder_is_refused(cache, tmp_path):
    (cache / "native").rename(tmp_path / "elsewhere")
    (cache / "native").symlink_to(tmp_path / "elsewhere")
    forget()
    with pytest.warns(UserWarning, match="found no folder"):
        assert native.native(SOURCE).answer() == 42


def test_a_cache_that_cannot_be_written_costs_a_warning(monkeypatch, tmp_path):
    if native._compiler() is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTENSCRIBBLE_CACHE", str(tmp_path / "file" / "cache"))
    forget()
    with pytest.warns(UserWarning, match="none that can be written to"):
        assert native.native(SOURCE).answer() == 42
    forget()
