"""What all chapters stand on: equality and cost, messages, files that appear complete, figures, C compiled once."""

import ctypes
import os
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from attenscribble.basics import files, native
from attenscribble.basics.checking import assert_same, cost, exercise
from attenscribble.basics.drawing import class_legend, class_rgba, draw, panels, save_figure
from attenscribble.basics.errors import DataError, one_of
from attenscribble.basics.files import cache_folder, project_root, write_atomic, write_json

# ---- equality and cost


@pytest.mark.parametrize("wrong", [
    lambda x: x.square().sum() + 1,  # another value
    lambda x: x.detach().square().sum() + 0 * x.sum(),  # another gradient
    lambda x: x.square().sum().reshape(1),  # another shape
])
def test_forms_that_differ_in_value_or_gradient_are_told_apart(wrong):
    x = torch.arange(3.0)
    assert_same(lambda x: (x * x).sum(), lambda x: x.square().sum(), x)
    with pytest.raises(AssertionError):
        assert_same(wrong, lambda x: x.square().sum(), x)


def test_cost_measures_the_second_call():
    calls = []

    def call():
        calls.append(torch.ones(2**24))  # 64 MiB
        if len(calls) == 2:
            threading.Event().wait(0.1)

    found = cost(call)
    assert len(calls) == 2 and 0.1 <= found.seconds < 10 and 60 < found.peak_mib < 120
    assert str(found).startswith(f"{found.seconds:.3f} s, {found.peak_mib:.0f} MiB")


def test_cost_stops_watching_when_the_call_fails():
    calls = iter([None, ZeroDivisionError])

    def call():
        if error := next(calls):
            raise error

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        cost(call)
    assert threading.active_count() == before


def check_double(f):
    assert f(3) == 6, "not twice"


@pytest.mark.parametrize(("attempt", "printed"), [
    (lambda x: 2 * x, "correct"),
    (lambda x: x, "not yet: AssertionError: not twice"),
    (lambda: 0, "not yet: TypeError"),
])
def test_an_exercise_says_how_the_attempt_went(attempt, printed, capsys, monkeypatch):
    monkeypatch.delenv("ATTENSCRIBBLE_CHECK_BOOK", raising=False)
    exercise(check_double, attempt, lambda x: x + x)
    assert capsys.readouterr().out.startswith(printed)


def test_an_exercise_without_a_solution_or_without_a_question_is_an_error(monkeypatch):
    with pytest.raises(AssertionError, match="not twice"):
        exercise(check_double, lambda x: 2 * x, lambda x: x)
    monkeypatch.setenv("ATTENSCRIBBLE_CHECK_BOOK", "1")
    with pytest.raises(AssertionError, match="the untouched attempt of check_double passes"):
        exercise(check_double, lambda x: 2 * x, lambda x: 2 * x)


# ---- messages


@pytest.mark.parametrize(("facts", "message"), [
    (("scan.nii.gz", "2 dimensions", 3), "scan.nii.gz: found 2 dimensions, expected 3"),
    (("label", None, "class ids"), "label: found None, expected class ids"),
    (("a complete sentence",), "a complete sentence"),
])
def test_a_fault_in_the_data_says_where_what_and_what_else(facts, message):
    with pytest.raises(ValueError) as caught:
        raise DataError(*facts)
    assert str(caught.value) == message


@pytest.mark.parametrize(("value", "message"), [
    ("Peer", "fruit: found 'Peer', expected one of apple, pear; did you mean 'pear'?"),
    ("zzz", "fruit: found 'zzz', expected one of apple, pear"),
    (None, "fruit: found None, expected one of apple, pear"),
])
def test_a_wrong_name_is_answered_with_the_choices_and_the_nearest(value, message):
    assert one_of("fruit", "pear", iter(["apple", "pear"])) == "pear"
    with pytest.raises(ValueError) as caught:
        one_of("fruit", value, iter(["apple", "pear"]))
    assert str(caught.value) == message


# ---- files


def write_folder(text, fails=False):
    "Writes a folder with a file, an empty folder, and a file in a folder."
    def write(place):
        (place / "deep").mkdir(parents=True)
        (place / "empty").mkdir()
        (place / "a.txt").write_text(text)
        if fails:
            raise ZeroDivisionError
        (place / "deep/b.txt").write_text(text)

    return write


def write_file(text, fails=False):
    def write(place):
        place.write_text(text)
        if fails:
            raise ZeroDivisionError

    return write


@pytest.fixture
def events(monkeypatch):
    "What is forced to the disk, by inode, and what is renamed, in order."
    seen, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_ino) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda old, new: replace(old, new) or seen.append("renamed"))
    return seen


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folders")
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_all_that_is_written_is_on_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, events, write):
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour/large.bin").write_bytes(b"0")
    path = tmp_path / "kept.zip"
    write_atomic(path, write("all"))
    written = {place.stat().st_ino for place in [path, *path.rglob("*")]}
    before, after = events[: events.index("renamed")], events[events.index("renamed") + 1 :]
    assert sorted(before) == sorted(written) and len(written) == (1 if write is write_file else 5)
    assert after == [tmp_path.stat().st_ino]  # the folder that holds the name; nothing else in it


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_error_leaves_the_old_content_and_no_trace(tmp_path, monkeypatch, write, moment):
    path = tmp_path / "kept"
    write_atomic(path, write("old"))
    if moment == "before the rename":
        def refuse(handle):
            raise ZeroDivisionError

        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ZeroDivisionError):
        write_atomic(path, write("new", fails=moment == "while writing"))
    texts = [place.read_text() for place in [path, *path.rglob("*")] if place.is_file()]
    assert texts == ["old"] * (1 if write is write_file else 2) and list(tmp_path.iterdir()) == [path]


def test_a_folder_does_not_replace_one_that_holds_something(tmp_path):
    path = tmp_path / "kept"
    path.mkdir()
    write_atomic(path, write_folder("all"))  # an empty one may go
    with pytest.raises(OSError):
        write_atomic(path, write_folder("other"))
    assert (path / "a.txt").read_text() == "all" and list(tmp_path.iterdir()) == [path]


def test_what_is_written_has_the_ending_and_the_folder_of_its_place(tmp_path):
    seen = []
    write_atomic(tmp_path / "new/scan.nii.gz", lambda place: seen.append(place) or place.write_text(""))
    assert seen[0].parent == tmp_path / "new" and seen[0].name.endswith("scan.nii.gz") and not seen[0].exists()


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path):
    path, both, failed = tmp_path / "kept.txt", threading.Barrier(2, timeout=20), []

    def write(place, text):
        place.write_text(text)
        both.wait()  # both have written, neither has renamed

    def run(text):
        try:
            write_atomic(path, lambda place: write(place, text))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(text,)) for text in ("one" * 999, "other" * 999)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_text() in ("one" * 999, "other" * 999) and list(tmp_path.iterdir()) == [path]


def test_json_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "new/result.json"
    assert write_json({"name": "μ", "dsc": [0.5, None]}, path) == path
    kept = '{\n "name": "\\u03bc",\n "dsc": [\n  0.5,\n  null\n ]\n}\n'
    assert path.read_text() == kept
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json({"dsc": bad}, path)
    assert path.read_text() == kept and list(path.parent.iterdir()) == [path]


def test_the_cache_is_where_the_environment_says_else_the_user_s(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENSCRIBBLE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("ATTENSCRIBBLE_CACHE", "")
    monkeypatch.setattr(files, "user_cache_dir", lambda name: f"/somewhere/{name}")
    assert cache_folder().as_posix() == "/somewhere/attenscribble"


def test_the_clone_is_found_from_inside_and_nowhere_else(tmp_path, monkeypatch, root):
    assert project_root(root / "nbs/basics") == root
    deep = tmp_path / "other/deep"
    deep.mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = attenscribble\n")
    (tmp_path / "other/settings.ini").write_text("[DEFAULT]\nlib_name = something\n")
    monkeypatch.chdir(deep)
    assert project_root() == tmp_path
    (tmp_path / "settings.ini").unlink()
    assert project_root() is None


# ---- figures


def test_a_scribble_has_a_rim_and_the_background_s_strokes_are_white():
    scribble = np.full((5, 5), 4)
    scribble[2, 2], scribble[0, 0] = 1, 0
    axis = draw(Figure().subplots(), scribble=scribble, ignore=4)
    rim, strokes = (picture.get_array() for picture in axis.images)
    assert rim[..., 3].nonzero()[0].size == 6 and set(rim[..., 3].ravel()) == {0, 0.6} and not rim[..., :3].any()
    np.testing.assert_allclose(strokes[2, 2], [0x56 / 255, 0xB4 / 255, 0xE9 / 255, 1])
    assert strokes[0, 0].tolist() == [1, 1, 1, 1] and (strokes[..., 3] == (scribble != 4)).all()
    assert class_rgba(scribble, 4)[0, 0, 3] == 0  # a label map leaves the background transparent


def test_an_outline_is_drawn_for_every_class_but_the_background():
    outline = np.zeros((9, 9), int)
    outline[1:4, 1:4], outline[5:8, 5:8], outline[8, 0] = 1, 3, 9
    axis = draw(Figure().subplots(), outline=outline, ignore=9)
    assert len(axis.collections) == 2


def test_a_figure_is_written_the_same_twice_and_completely(tmp_path, monkeypatch):
    def picture():
        figure, axes = panels(3, columns=2)
        assert len(figure.axes) == 4 and len(axes) == 3
        class_legend(figure, ["background", "heart"])
        return figure

    one, two = (save_figure(picture(), tmp_path / name).read_bytes() for name in ("one", "two.png"))
    assert one == two and {place.name for place in tmp_path.iterdir()} == {"one.png", "two.png"}

    def fail(self, place, **options):
        place.write_bytes(b"half")
        raise ZeroDivisionError

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(ZeroDivisionError):
        save_figure(picture(), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == one


# ---- C


@pytest.fixture
def builds(monkeypatch, tmp_path):
    "Sources given to the compiler, in a cache of the test's own, by a process that has compiled nothing yet."
    if native._compiler() is None:
        pytest.skip("needs a C compiler")
    seen, build = [], native._build
    monkeypatch.setenv("ATTENSCRIBBLE_CACHE", str(tmp_path))
    monkeypatch.delenv("ATTENSCRIBBLE_NATIVE", raising=False)
    monkeypatch.setattr(native, "_build", lambda source, *rest: seen.append(source) or build(source, *rest))
    native._library.cache_clear()
    yield seen
    native._library.cache_clear()


def kept(folder):
    return sorted(place.name for place in (folder / "native").iterdir())


def test_a_library_is_compiled_once_for_each_text_and_size(builds, tmp_path):
    source = "int sum(int a) { return a + N; }"
    assert native.native(source, N=2).sum(1) == 3
    assert native.native(source, N=2) is native.native(source, N=2) and len(builds) == 1
    native._library.cache_clear()  # as in another process: found in the cache
    assert native.native(source, N=2).sum(1) == 3 and len(builds) == 1
    assert native.native(source, N=5).sum(1) == 6 and native.native(source + " ", N=2).sum(1) == 3
    assert len(builds) == 3 and len(kept(tmp_path)) == 3 and all(name.endswith(".so") for name in kept(tmp_path))


def test_another_processor_or_compiler_has_libraries_of_its_own(builds, monkeypatch):
    compiler, flags, description = native._compiler()
    source = "int one(void) { return 1; }"
    native.native(source)
    for more_flags, more in ((), b"#define __NEWER__ 1"), (("-DOTHER",), b""):
        found = compiler, (*flags, *more_flags), description + more
        monkeypatch.setattr(native, "_compiler", lambda found=found: found)
        native._library.cache_clear()
        native.native(source)
    assert len(builds) == 3


@pytest.mark.parametrize("lanes", [16, 8])
def test_the_width_of_a_vector_comes_from_python_alone(builds, monkeypatch, lanes):
    monkeypatch.setattr(native, "LANES", lanes)
    library = native.native("int lanes(void) { return LANES; } int bytes(void) { return sizeof(vec) + sizeof(ivec); }")
    assert (library.lanes(), library.bytes()) == (lanes, 8 * lanes)


def test_no_c_text_of_the_package_sets_the_width_itself(root):
    texts = {path.name: path.read_text(encoding="utf-8") for path in (root / "attenscribble").rglob("*.py")}
    assert sum("LANES" in text for text in texts.values()) > 1
    assert not [name for name, text in texts.items() if "define LANES" in text]
    assert [name for name, text in texts.items() if "vector_size" in text] == ["native.py"]


@contextmanager
def warned_of(message):
    with pytest.warns(UserWarning, match=f"C code does not run here, PyTorch takes over: .*{message}"):
        yield


def test_a_text_that_does_not_compile_is_answered_with_none_and_leaves_no_file(builds, tmp_path):
    with warned_of("failed: "):
        assert native.native("int broken(") is None
    assert native.native("int broken(") is None and len(builds) == 1  # tried once a process
    assert not (tmp_path / "native").exists()


def test_a_library_that_does_not_load_is_answered_with_none(builds, monkeypatch, tmp_path):
    damaged = lambda source, place, *how: write_atomic(place, lambda part: part.write_bytes(b"?"))
    monkeypatch.setattr(native, "_build", damaged)
    with warned_of(str(tmp_path)):
        assert native.native("int two(void) { return 2; }") is None


def test_without_a_compiler_or_the_wish_there_is_no_library(builds, monkeypatch):
    monkeypatch.setenv("ATTENSCRIBBLE_NATIVE", "0")
    assert native.native("int one(void) { return 1; }") is None
    monkeypatch.delenv("ATTENSCRIBBLE_NATIVE")
    monkeypatch.setattr(native, "_compiler", lambda: None)
    assert native.native("int one(void) { return 1; }") is None and not builds


def test_a_tensor_is_handed_over_as_address_and_strides(builds):
    numbers = torch.arange(24.0).view(2, 3, 4).transpose(0, 2)
    library = native.native("float at(const float *p, const int64_t *s)"
                            "{ return p ? p[3 * s[0] + 2 * s[1] + s[2]] : -1; }")
    library.at.restype = ctypes.c_float
    assert library.at(native.address(numbers), native.strides(numbers)) == numbers[3, 2, 1]
    assert library.at(native.address(None), native.strides(numbers)) == -1
    assert list(native.strides(numbers)) == [1, 4, 12]


@pytest.mark.parametrize("lanes", [16, 8])
def test_the_exponential_is_exact_to_three_units_and_ends_at_minus_87(builds, monkeypatch, lanes):
    monkeypatch.setattr(native, "LANES", lanes)
    library = native.native("void e(const float *x, float *y, int n) {"
                            " for (int i = 0; i < n; i += LANES) store(y + i, exp_negative(load(x + i))); }")
    x = -torch.cat((torch.zeros(16), torch.logspace(-30, 1.939, 4080)))
    y = torch.empty_like(x)
    library.e(native.address(x), native.address(y), len(x))
    assert (y.double() / x.double().exp() - 1).abs().max() < 3 * 2**-23 and (y[:16] == 1).all()
    x[:] = torch.tensor([-87.5, -1e3, -3e38, -torch.inf]).repeat(1024)
    library.e(native.address(x), native.address(y), len(x))
    assert ((y > 0) & (y < 2e-38)).all()
