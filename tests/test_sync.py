"""Notebook, twin and module of a chapter come into step, and no edit is lost on the way: tools/sync.py."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nbformat
import pytest
from project_files import ROOT
from test_book import dirt, export, module_differences, modules, twin_differences

sys.path.insert(0, str(ROOT / "tools"))
import sync

NAME, OTHER = "method/32_mcrf", "data/10_scans"
HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

"""
TWIN = HEADER + '''# %% [markdown]
# # The masked CRF
#
# > Alike and near: agree.

# %%
#| default_exp method.mcrf

# %%
#| export
radius = 5

# %%
assert radius > 1

# %%
#| export
sigma = 6.0

# %% [markdown]
# ## Recap
#
# Two numbers.
'''
OTHER_TWIN = HEADER + "# %% [markdown]\n# # Scans\n\n# %%\n#| default_exp data.scans\n\n# %%\n#| export\nside = 4\n"
NOTEBOOK_FILE, TWIN_FILE, MODULE_FILE = f"nbs/{NAME}.ipynb", f"nbs_py/{NAME}.py", "attenscribble/method/mcrf.py"
PERSON = {f"GIT_{role}_{what}": f"ann{end}" for role in ("AUTHOR", "COMMITTER")
          for what, end in (("NAME", ""), ("EMAIL", "@example.org"))}


class Book:
    "A small project, and what is done to it."

    def __init__(self, root: Path) -> None:
        self.root = root

    def sync(self, *arguments: str) -> tuple[int, str]:
        "The exit status of tools/sync.py, and what it prints."
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = sync.main(list(arguments), self.root)
        return status, said.getvalue()

    def git(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--no-edit", "-m", "x")

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def edit(self, path: str, old: str, new: str) -> None:
        "What an editor does, or JupyterLab: a text that stands once in the file becomes another."
        text = self.text(path)
        assert text.count(old) == 1, text
        (self.root / path).write_text(text.replace(old, new))

    def files(self) -> dict[str, bytes]:
        "Every file but git's, those in .agreed/ included."
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in self.root.rglob("*")
                if path.is_file() and ".git" not in path.relative_to(self.root).parts}

    def refused(self, *arguments: str) -> str:
        "What is said when a call is refused. It has changed no file."
        before = self.files()
        status, said = self.sync(*arguments)
        assert status == 1 and "nothing was changed" in said, said
        assert self.files() == before
        return said

    def says(self, *expected: str, without: tuple[str, ...] = (), name: str = NAME) -> None:
        "Bring a chapter into step: then notebook, twin and module hold the same, and a second call changes nothing."
        status, said = self.sync(name)
        assert status == 0, said
        files = self.files()
        assert self.sync()[0] == 0 and not [path for path, data in self.files().items() if files.get(path) != data
                                            and not path.startswith(".agreed/")]
        notebook, twin = self.root / f"nbs/{name}.ipynb", self.root / f"nbs_py/{name}.py"
        assert twin_differences(notebook, twin) == [] and dirt(notebook) == []
        module = self.text(f"attenscribble/{name.split('/')[0]}/{name.split('_')[1]}.py")
        for text in expected:
            assert text in twin.read_text()
            assert text in module or " = " not in text, f"not exported: {text}"
        assert not [text for text in without if text in twin.read_text() or text in module]

    def ids(self) -> list[str]:
        return [cell["id"] for cell in json.loads(self.text(NOTEBOOK_FILE))["cells"]]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    "Two chapters, in step and committed on the branch main."
    book = Book(tmp_path_factory.mktemp("template"))
    for name in ("settings.ini", "pyproject.toml", ".gitignore", ".gitattributes"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, book.root)
    for path, text in {"attenscribble/__init__.py": (ROOT / "attenscribble/__init__.py").read_text(), TWIN_FILE: TWIN,
                       f"nbs_py/{OTHER}.py": OTHER_TWIN}.items():
        (book.root / path).parent.mkdir(parents=True, exist_ok=True)
        (book.root / path).write_text(text)
    assert book.sync()[0] == 0
    notebook = json.loads(book.text(NOTEBOOK_FILE))
    for number, cell in enumerate(notebook["cells"]):  # ids as JupyterLab gives them: no rule finds them again
        cell["id"] = f"cell-{number}"
    (book.root / NOTEBOOK_FILE).write_text(json.dumps(notebook))
    assert book.sync()[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        for name, value in PERSON.items():
            patch.setenv(name, value)
        book.git("init", "-q", "-b", "main")
        book.commit()
    assert book.sync()[0] == 0
    return book.root


@pytest.fixture
def book(template, tmp_path, monkeypatch) -> Book:
    for name, value in {**PERSON, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_EDITOR": "true"}.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(template, tmp_path / "book")
    return Book(tmp_path / "book")


EDITS = {NOTEBOOK_FILE: ("radius = 5", "radius = 7"), TWIN_FILE: ("sigma = 6.0", "sigma = 9.0")}


def edit_both(book: Book) -> None:
    for path, (old, new) in EDITS.items():
        book.edit(path, old, new)


# ---- one edit, two edits


def test_what_is_in_step_stays_and_exports_what_nbdev_exports(book, tmp_path):
    files = book.files()
    assert book.sync(NAME, NAME) == (0, f"{NAME}: in step\n")
    assert book.sync() == (0, "notebooks, twins and modules agree\n") and book.files() == files
    (tmp_path / "exported").mkdir()
    assert module_differences(modules(book.root / "attenscribble"), export(book.root, tmp_path / "exported")) == []


@pytest.mark.parametrize("edited", EDITS)
@pytest.mark.parametrize("newer", EDITS)
def test_the_edited_side_wins_whatever_the_file_times_are(book, edited, newer):
    ids = book.ids()
    book.edit(edited, *EDITS[edited])
    for path in EDITS:
        os.utime(book.root / path, (1e9, 1e9 + (path == newer)))
    book.says(EDITS[edited][1], without=(EDITS[edited][0],))
    assert book.ids() == ids


def test_edits_of_both_are_refused_and_named(book):
    edit_both(book)
    book.edit(f"nbs_py/{OTHER}.py", "side = 4", "side = 3")
    said = book.refused(NAME)
    assert book.refused() == said  # the other chapter, whose twin alone was edited, is left alone too
    assert f"{NAME}: found edits in notebook and twin since they last agreed, expected edits in one of them" in said
    assert f"{NOTEBOOK_FILE}, cell 2: radius = 7" in said and f"{TWIN_FILE}, cell 4: sigma = 9.0" in said
    assert all(f"make chapter NB={NAME} KEEP={side}" in said for side in ("twin", "notebook")) and OTHER not in said


@pytest.mark.parametrize("path", EDITS)
def test_edits_of_one_that_were_written_into_the_other_too(book, path):
    edit_both(book)
    book.refused(NAME)
    book.edit(path, *next(edit for other, edit in EDITS.items() if other != path))
    book.edit(path, "Two numbers", "Two")
    book.says("radius = 7", "sigma = 9.0", "Two.")


def test_a_changed_cell_is_shown_with_its_new_line(book):
    for path, new in {NOTEBOOK_FILE: "2.", TWIN_FILE: "II."}.items():
        book.edit(path, "Two numbers.", new)
    said = book.refused(NAME)
    assert f"{NOTEBOOK_FILE}, cell 5: ## Recap … 2." in said and f"{TWIN_FILE}, cell 5: ## Recap … II." in said


def test_of_many_edits_three_are_named_and_a_gone_cell_is(book):
    book.edit(TWIN_FILE, "# %%\nassert radius > 1\n\n", "")
    book.edit(TWIN_FILE, "Two numbers.", "Many.\n\n" + "\n\n".join(f"# %%\nx = {n}" for n in range(4)))
    book.edit(NOTEBOOK_FILE, *EDITS[NOTEBOOK_FILE])
    said = book.refused(NAME)
    assert f"{TWIN_FILE}, before cell 3, gone: assert radius > 1" in said and f"{TWIN_FILE}, and 3 more" in said


@pytest.mark.parametrize(("side", "kept", "other"), [("twin", TWIN_FILE, NOTEBOOK_FILE),
                                                     ("notebook", NOTEBOOK_FILE, TWIN_FILE)])
def test_keep_takes_one_side_and_saves_the_other(book, side, kept, other):
    for number in (1, 2):
        edit_both(book)
        lost = book.text(other)
        status, said = book.sync(NAME, "--keep", side)
        assert status == 0 and f"{other}: what it said is saved in .agreed/{other}.{number}" in said
        assert book.text(f".agreed/{other}.{number}") == lost
        book.says(EDITS[kept][1], without=(EDITS[other][1],))
        book.git("checkout", "-q", ".")
        book.says("radius = 5", "sigma = 6.0")


def test_the_same_edit_in_both_is_no_conflict(book):
    for path in EDITS:
        book.edit(path, "radius = 5", "radius = 7")
    book.says("radius = 7")


def test_outputs_metadata_and_blank_lines_are_no_edit(book):
    notebook = nbformat.read(book.root / NOTEBOOK_FILE, as_version=4)
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="1")]
    notebook.cells[3].execution_count = 4
    notebook.cells[3].metadata.collapsed = True
    notebook.cells[3].source += "\n"
    notebook.metadata.update(widgets={}, kernelspec={"name": "mine", "display_name": "Mine"})
    nbformat.write(notebook, book.root / NOTEBOOK_FILE)
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.says("sigma = 9.0")
    book.edit(TWIN_FILE, "radius = 5\n", "radius = 5\n\n\n\n")
    book.edit(NOTEBOOK_FILE, *EDITS[NOTEBOOK_FILE])
    book.says("radius = 7", "sigma = 9.0")


@pytest.mark.parametrize("path", EDITS)
def test_a_tag_is_an_edit(book, path):
    cell = '"metadata": {},\n   "outputs": [],\n   "source": [\n    "assert'
    old, new = {TWIN_FILE: ("# %%\nassert", '# %% tags=["slow"]\nassert'),
                NOTEBOOK_FILE: (cell, cell.replace("{}", '{"tags": ["slow"]}'))}[path]
    book.edit(path, old, new)
    book.says('# %% tags=["slow"]\nassert')
    book.edit(path, *((new, old) if path == TWIN_FILE else ('"tags": [\n     "slow"\n    ]', "")))
    book.says(without=("slow",))


# ---- what was last agreed on


def test_after_a_sync_that_was_not_committed_the_next_edit_counts_from_there(book):
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.says("sigma = 9.0")
    book.edit(NOTEBOOK_FILE, *EDITS[NOTEBOOK_FILE])
    book.says("sigma = 9.0", "radius = 7")
    book.edit(NOTEBOOK_FILE, "radius = 7", "radius = 8")
    book.edit(TWIN_FILE, "sigma = 9.0", "sigma = 8.0")
    assert "radius = 8" in book.refused(NAME)


@pytest.mark.parametrize("path", EDITS)
def test_an_edit_taken_back_goes_back_everywhere(book, path):
    book.edit(path, *EDITS[path])
    book.says(EDITS[path][1])
    book.edit(path, *reversed(EDITS[path]))
    book.says(EDITS[path][0], without=(EDITS[path][1],))


def test_what_no_commit_holds_is_saved_when_git_restores_one_side(book):
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.says("sigma = 9.0")
    twin = book.text(TWIN_FILE)
    book.git("checkout", "-q", "nbs")
    assert f"saved in .agreed/{TWIN_FILE}.1" in book.sync(NAME)[1]
    assert book.text(f".agreed/{TWIN_FILE}.1") == twin


@pytest.mark.parametrize("path", EDITS)
def test_edits_thrown_away_with_git_are_not_missed(book, path):
    book.edit(TWIN_FILE, "Two numbers", "Two")
    book.says("Two.")
    book.git("checkout", "-q", ".")
    book.edit(path, *EDITS[path])
    book.says(EDITS[path][1], "Two numbers.")


@pytest.mark.parametrize("path", EDITS)
@pytest.mark.parametrize("stamped", [True, False])
def test_after_a_commit(book, path, stamped):
    book.edit(TWIN_FILE, "Two numbers", "Two")
    book.says("Two.")
    book.commit()
    if not stamped:
        shutil.rmtree(book.root / ".agreed")
    book.edit(path, *EDITS[path])
    book.says(EDITS[path][1], "Two.")


@pytest.mark.parametrize("path", EDITS)
def test_after_a_checkout_of_an_older_commit_or_another_branch(book, path):
    book.edit(TWIN_FILE, "radius = 5", "radius = 6")
    book.says("radius = 6")
    book.commit()
    book.git("checkout", "-q", "HEAD~")
    book.edit(path, *EDITS[path])
    book.says(EDITS[path][1], without=("radius = 6",))
    book.git("checkout", "-q", "-b", "side")
    book.commit()
    book.git("checkout", "-q", "main")
    book.edit(path, "Two numbers", "Two")
    book.says("radius = 6", "Two.", without=("radius = 7", "sigma = 9.0"))


def test_what_was_agreed_on_another_branch_does_not_count_on_this_one(book):
    book.edit(TWIN_FILE, "radius = 5", "radius = 6")
    book.says("radius = 6")
    book.commit()
    book.says("radius = 6")
    book.git("checkout", "-q", "HEAD~")
    book.git("checkout", "-q", "main", "--", NOTEBOOK_FILE)  # wanted here, so it counts as an edit
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    said = book.refused(NAME)
    assert f"{NOTEBOOK_FILE}, cell 2: radius = 6" in said and f"{TWIN_FILE}, cell 4: sigma = 9.0" in said


@pytest.mark.parametrize("path", EDITS)
def test_in_a_fresh_clone(book, tmp_path, path):
    book.git("clone", "-q", ".", str(tmp_path / "clone"))
    clone = Book(tmp_path / "clone")
    clone.edit(path, *EDITS[path])
    clone.says(EDITS[path][1])
    edit_both(clone := Book(Path(shutil.copytree(book.root, tmp_path / "second"))))
    shutil.rmtree(clone.root / ".agreed")
    clone.refused(NAME)


@pytest.mark.parametrize("path", EDITS)
def test_a_commit_of_one_side_alone_is_caught_up(book, tmp_path, path):
    book.edit(path, *EDITS[path])
    book.commit()
    book.git("clone", "-q", ".", str(tmp_path / "clone"))
    for place in (book, Book(tmp_path / "clone")):
        place.says(EDITS[path][1])


def test_a_side_committed_on_top_of_what_was_agreed(book):
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.says("sigma = 9.0")
    book.edit(TWIN_FILE, "radius = 5", "radius = 7")
    book.commit()
    book.says("sigma = 9.0", "radius = 7")


def test_without_git(book):
    shutil.rmtree(book.root / ".git")
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.says("sigma = 9.0")
    book.edit(NOTEBOOK_FILE, *EDITS[NOTEBOOK_FILE])
    book.says("radius = 7", "sigma = 9.0")
    edit = ("Two numbers", "Two")
    book.edit(TWIN_FILE, *edit)
    book.edit(NOTEBOOK_FILE, "radius = 7", "radius = 8")
    book.refused(NAME)


def test_without_git_and_without_a_word_on_what_was_agreed(book):
    for folder in (".git", ".agreed"):
        shutil.rmtree(book.root / folder)
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    said = book.refused(NAME)
    assert "nothing that tells what they last agreed on" in said
    assert f"{NOTEBOOK_FILE}, cell 4: sigma = 6.0" in said and f"{TWIN_FILE}, cell 4: sigma = 9.0" in said
    assert book.sync(NAME, "--keep", "twin")[0] == 0
    book.says("sigma = 9.0")


# ---- merging


def diverge(book: Book, ours: dict[str, str], theirs: dict[str, str]) -> None:
    "Commit edits of the twin, in step, on main and on the branch side; main is checked out."
    for branch, edits in (("side", theirs), ("main", ours)):
        book.git("checkout", "-q", *(["-b"] if branch == "side" else []), branch)
        for old, new in edits.items():
            book.edit(TWIN_FILE, old, new)
        book.says(*edits.values())
        book.commit()


def resolve(book: Book, text: str, path: str = TWIN_FILE) -> None:
    "Replace what stands between a twin's first conflict markers."
    before, rest = book.text(path).split("<<<<<<<", 1)
    (book.root / path).write_text(before + text + rest.split(">>>>>>>", 1)[1].split("\n", 1)[1])


WAYS = {"merge": ["merge", "-q", "side"], "rebase": ["rebase", "-q", "side"], "cherry-pick": ["cherry-pick", "side"]}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_merge_without_a_conflict(book, way):
    diverge(book, {"radius = 5": "radius = 7"}, {"Two numbers": "Two"})
    book.git(*way)
    book.says("radius = 7", "Two.")
    book.edit(NOTEBOOK_FILE, "sigma = 6.0", "sigma = 9.0")
    book.says("radius = 7", "Two.", "sigma = 9.0")


@pytest.mark.parametrize(("way", "stamped", "style"), [
    ("merge", True, "merge"), ("merge", False, "merge"), ("merge", True, "diff3"),
    ("rebase", True, "merge"), ("rebase", False, "merge"), ("cherry-pick", True, "merge"),
])
def test_a_merge_with_a_conflict_follows_the_twin(book, way, stamped, style):
    book.git("config", "merge.conflictStyle", style)
    diverge(book, {"radius = 5": "radius = 7", "assert radius > 1": "assert radius > 2"},
            {"radius = 5": "radius = 8", "assert radius > 1": "assert radius > 3", "sigma = 6.0": "sigma = 9.0"})
    book.git(*WAYS[way], fails=True)
    if not stamped:
        shutil.rmtree(book.root / ".agreed")
    line = book.text(TWIN_FILE).split("<<<<<<<")[0].count("\n") + 1
    said = book.refused(NAME)
    assert f"{TWIN_FILE}: found git's conflict marker in line {line}" in said
    assert book.text(NOTEBOOK_FILE).count("<<<<<<<") == 2 and "<<<<<<<" in book.text(MODULE_FILE)
    lines = ["radius = 15\n", "assert radius > 5\n"]
    for text in lines if style == "diff3" else ["\n# %%\n".join(lines)]:  # one conflict where git joins neighbours
        resolve(book, text)
    book.says("radius = 15", "assert radius > 5", "sigma = 9.0")
    book.commit() if way == "merge" else book.git("add", "-A")
    book.says("radius = 15", "sigma = 9.0")


def test_one_commit_of_several_is_picked(book):
    diverge(book, {"radius = 5": "radius = 7"}, {"Two numbers": "Two"})
    book.git("checkout", "-q", "side")
    book.edit(TWIN_FILE, "radius = 5", "radius = 8")
    book.says("radius = 8")
    book.commit()
    book.git("checkout", "-q", "main")
    book.git("cherry-pick", "side", fails=True)
    resolve(book, "radius = 15\n")
    book.says("radius = 15", "Two numbers.")


def test_a_chapter_that_both_sides_began(book):
    name = "method/27_new"
    for branch, value in {"side": 8, "main": 7}.items():
        book.git("checkout", "-q", *(["-b"] if branch == "side" else []), branch)
        text = TWIN.replace("method.mcrf", "method.new").replace("radius = 5", f"radius = {value}")
        (book.root / f"nbs_py/{name}.py").write_text(text)
        book.says(f"radius = {value}", name=name)
        book.commit()
    book.git("merge", "side", fails=True)
    resolve(book, "radius = 15\n", f"nbs_py/{name}.py")
    book.says("radius = 15", name=name)


@pytest.mark.parametrize("committed", [True, False])
def test_where_only_the_twin_has_a_conflict_its_solution_counts(book, committed):
    diverge(book, {"assert radius > 1": "assert radius > 2"}, {"sigma = 6.0": "sigma = 9.0"})
    before = book.text(TWIN_FILE)
    book.git("merge", "-q", "--no-commit", "side")
    assert "sigma = 9.0" in book.text(NOTEBOOK_FILE)
    (book.root / TWIN_FILE).write_text(before)  # the user's solution: ours
    if committed:
        book.commit()
    book.says("sigma = 6.0", "assert radius > 2")


@pytest.mark.parametrize("sure", [True, False])
def test_an_edit_that_only_the_other_sides_notebook_holds_is_not_lost(book, sure):
    book.git("checkout", "-q", "-b", "side")
    book.edit(NOTEBOOK_FILE, "radius = 5", "radius = 8")
    if sure:
        book.says("radius = 8")
    book.commit()
    book.git("checkout", "-q", "main")
    book.edit(TWIN_FILE, "radius = 5", "radius = 7")
    book.says("radius = 7")
    book.commit()
    book.git("merge", "side", fails=True)
    if sure:
        resolve(book, "radius = 7\n")
        book.says("radius = 7")
    else:
        said = book.refused(NAME)
        assert f"{NOTEBOOK_FILE}: found no notebook" in said and f"make chapter NB={NAME} KEEP=twin" in said


def test_edits_in_both_after_a_merge_are_refused(book):
    diverge(book, {"radius = 5": "radius = 7"}, {"sigma = 6.0": "sigma = 9.0"})
    book.git("merge", "-q", "--no-commit", "side")
    book.edit(NOTEBOOK_FILE, "radius = 7", "radius = 8")
    book.edit(TWIN_FILE, "Two numbers", "Two")
    book.refused(NAME)
    book.commit()
    book.refused(NAME)


def test_stashed_work_comes_back(book):
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.says("sigma = 9.0")
    book.git("stash", "-q")
    book.says("sigma = 6.0")
    book.git("stash", "pop", "-q")
    book.says("sigma = 9.0")


# ---- a file is missing, new, renamed, or broken


@pytest.mark.parametrize("missing", EDITS)
@pytest.mark.parametrize("stamped", [True, False])
def test_a_missing_half_is_made_from_the_other(book, missing, stamped):
    there = next(path for path in EDITS if path != missing)
    ids, module = book.ids(), book.text(MODULE_FILE)
    if not stamped:
        shutil.rmtree(book.root / ".agreed")
    (book.root / missing).unlink()
    book.says("radius = 5")
    assert book.ids() == ids and book.text(MODULE_FILE) == module and book.git("status", "--short") == ""
    book.edit(there, *EDITS[there])
    (book.root / missing).unlink()
    book.says(EDITS[there][1])


def test_a_module_may_get_new_ids_where_nothing_is_known_of_the_old_ones(book):
    ids = book.ids()
    for folder in (".git", ".agreed"):
        shutil.rmtree(book.root / folder)
    (book.root / NOTEBOOK_FILE).unlink()
    book.says("radius = 5")
    assert not set(ids) & set(book.ids())


@pytest.mark.parametrize("header", [HEADER, ""])
def test_a_new_chapter_from_a_twin(book, header):
    (book.root / "nbs_py/rivals").mkdir()
    text = header + "# %%\n#| default_exp rivals.new\n\n# %%\n#| export\nx = 1\n"
    (book.root / "nbs_py/rivals/30_new.py").write_text(text)
    book.says("x = 1", name="rivals/30_new")
    assert book.text("attenscribble/rivals/__init__.py") == ""
    notebook = book.text("nbs/rivals/30_new.ipynb")
    (book.root / "nbs/rivals/30_new.ipynb").unlink()
    book.says("x = 1", name="rivals/30_new")
    assert book.text("nbs/rivals/30_new.ipynb") == notebook  # new cells have the same ids in every clone


def test_a_new_chapter_from_a_notebook(book):
    cells = [nbformat.v4.new_code_cell("#| default_exp data.new"), nbformat.v4.new_code_cell("#| export\nx = 1"),
             nbformat.v4.new_code_cell(""), nbformat.v4.new_code_cell("")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), book.root / "nbs/data/30_new.ipynb")
    book.says("x = 1", name="data/30_new")


NEW = "method/34_mcrf"
MOVED = {f"nbs/{NAME}.ipynb": f"nbs/{NEW}.ipynb", f"nbs_py/{NAME}.py": f"nbs_py/{NEW}.py"}


@pytest.mark.parametrize("edited", [None, *EDITS])
@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("committed", [True, False])
def test_a_renamed_chapter(book, edited, stamped, committed):
    book.edit(TWIN_FILE, "Two numbers", "Two")
    book.says("Two.")
    if committed:
        book.commit()
    for old, new in MOVED.items():
        (book.root / old).rename(book.root / new)
    if not stamped and committed:
        shutil.rmtree(book.root / ".agreed")
    if edited:
        book.edit(MOVED[edited], *EDITS[edited])
    book.says("Two.", *([EDITS[edited][1]] if edited else []), name=NEW)
    assert f"nbs/{NEW}.ipynb" in book.text(MODULE_FILE)
    book.commit()
    book.edit(MOVED[TWIN_FILE], "Two.", "2.")
    book.says("2.", name=NEW)


def test_a_renamed_chapter_with_edits_in_both_is_refused(book):
    edit_both(book)
    for old, new in MOVED.items():
        (book.root / old).rename(book.root / new)
    book.refused(NEW)


def test_a_chapter_of_which_only_half_was_renamed_is_refused(book):
    (book.root / TWIN_FILE).rename(book.root / MOVED[TWIN_FILE])
    said = book.refused()
    assert f"{MODULE_FILE}: found two chapters that export it, {NAME} and {NEW}, expected one" in said


def test_a_broken_notebook_is_refused_and_kept(book):
    broken = book.text(NOTEBOOK_FILE)[:-30]
    (book.root / NOTEBOOK_FILE).write_text(broken)
    assert f"{NOTEBOOK_FILE}: found no notebook" in book.refused(NAME)
    assert "found no notebook" in book.refused(NAME, "--keep", "notebook")
    ids = book.git("show", f"HEAD:{NOTEBOOK_FILE}")
    assert book.sync(NAME, "--keep", "twin")[0] == 0
    assert book.text(f".agreed/{NOTEBOOK_FILE}.1") == broken and book.text(NOTEBOOK_FILE) == ids


def test_a_file_that_is_no_text_is_named(book):
    (book.root / TWIN_FILE).write_bytes(b"\xff")
    assert f"{TWIN_FILE}: found bytes that are no UTF-8" in book.refused()


def test_a_title_that_no_notebook_can_hold_is_refused(book):
    book.edit(TWIN_FILE, "# %%\nassert", "# %% check it\nassert")
    assert f"{TWIN_FILE}: found 'check it' behind the marker of cell 3" in book.refused(NAME)


def test_cells_keep_their_ids_when_others_come_and_go(book):
    ids = book.ids()
    book.edit(TWIN_FILE, "# %%\nassert radius > 1\n\n", "")
    book.edit(TWIN_FILE, "# %% [markdown]\n# ## Recap", "# %%\nnew = 1\n\n# %% [markdown]\n# ## Recap")
    book.sync(NAME)
    assert len(set(now := book.ids())) == 6 and [now[place] for place in (0, 1, 2, 3, 5)] == [*ids[:3], *ids[4:]]


def test_a_picture_pasted_into_a_cell_stays(book):
    notebook = nbformat.read(book.root / NOTEBOOK_FILE, as_version=4)
    notebook.cells[5].attachments = {"a.png": {"image/png": "AAAA"}}
    notebook.cells[5].source += "\n![a](attachment:a.png)"
    nbformat.write(notebook, book.root / NOTEBOOK_FILE)
    book.says("attachment:a.png")
    book.edit(TWIN_FILE, "Two numbers", "Two")
    book.says("Two.")
    assert json.loads(book.text(NOTEBOOK_FILE))["cells"][5]["attachments"] == {"a.png": {"image/png": "AAAA"}}


# ---- the module


HAND = ("sigma = 6.0", "sigma = 6.5")


@pytest.mark.parametrize("edited", [None, *EDITS])
@pytest.mark.parametrize("base", ["stamp", "commit", "stamp without git"])
@pytest.mark.parametrize("carried_over", [True, False])
def test_a_module_edited_by_hand_is_refused(book, edited, base, carried_over):
    gone = {"stamp": [], "commit": [".agreed"], "stamp without git": [".git"]}[base]
    for folder in gone:
        shutil.rmtree(book.root / folder)
    book.edit(MODULE_FILE, *HAND)
    if edited:
        book.edit(edited, "radius = 5", "radius = 7")
    line = book.text(MODULE_FILE).split(HAND[1])[0].count("\n") + 1
    said = book.refused()
    assert f"{MODULE_FILE}: found 'sigma = 6.5' in line {line}, expected 'sigma = 6.0'" in said
    assert TWIN_FILE in said and f"make chapter NB={NAME} KEEP=twin" in said
    hand = book.text(MODULE_FILE)
    if carried_over:
        book.edit(edited or TWIN_FILE, *HAND)
        book.says("sigma = 6.5", *(["radius = 7"] if edited else []))
    else:
        assert book.sync(NAME, "--keep", "notebook" if edited == NOTEBOOK_FILE else "twin")[0] == 0
        assert book.text(f".agreed/{MODULE_FILE}.1") == hand
        book.says("sigma = 6.0", *(["radius = 7"] if edited else []))


def test_a_module_edited_by_hand_and_added_is_refused_even_while_merging(book):
    diverge(book, {"radius = 5": "radius = 7"}, {"radius = 5": "radius = 8"})
    book.git("merge", "side", fails=True)
    resolve(book, "radius = 7\n")
    module = book.text(MODULE_FILE)
    (book.root / MODULE_FILE).write_text(module[: module.index("<<<<<<<")] + "radius = 9\n")
    book.git("add", "-A")
    assert "found 'radius = 9'" in book.refused(NAME)


def test_a_deleted_module_is_exported_again(book):
    module = book.text(MODULE_FILE)
    (book.root / MODULE_FILE).unlink()
    assert f"{MODULE_FILE}: exported" in book.sync(NAME)[1] and book.text(MODULE_FILE) == module


def test_a_module_that_git_merged_and_a_chapter_edited_before_the_commit(book):
    diverge(book, {"radius = 5": "radius = 7"}, {"sigma = 6.0": "sigma = 9.0"})
    book.git("merge", "-q", "--no-commit", "side")
    book.edit(TWIN_FILE, "sigma = 9.0", "sigma = 8.0")
    book.says("radius = 7", "sigma = 8.0")


# ---- writing


def test_wherever_it_is_cut_off_the_next_call_finishes(book, monkeypatch):
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    replace, left = os.replace, 0

    def stop(source, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("disk full")
        replace(source, target)

    for steps in range(4):  # notebook, module, and the two stamps; the twin is laid out already
        place = Book(Path(shutil.copytree(book.root, book.root.parent / str(steps))))
        left = steps
        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(OSError, match="disk full"):
            place.sync(NAME)
        monkeypatch.setattr(os, "replace", replace)
        assert not [name for name in place.files() if Path(name).name.startswith(".") and Path(name).name[-1].isdigit()]
        place.says("sigma = 9.0")


def test_a_file_keeps_its_permissions(book):
    (book.root / NOTEBOOK_FILE).chmod(0o640)
    book.edit(TWIN_FILE, *EDITS[TWIN_FILE])
    book.sync(NAME)
    assert (book.root / NOTEBOOK_FILE).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("arguments", "expected"), [
    (["method/99_none"], "NAME: found 'method/99_none', expected a chapter"),
    (["--keep", "twin"], "--keep: found no NAME"),
    ([NAME, "--keep", "module"], "invalid choice"),
])
def test_a_wrong_call_is_named(book, capsys, arguments, expected):
    with pytest.raises(SystemExit) as caught:
        sync.main(arguments, book.root)
    assert caught.value.code == 2 and expected in capsys.readouterr().err


# ---- make


@pytest.fixture
def make(book):
    "Calls make in the small project, with the programs of this environment; nothing is installed."
    for path in ("Makefile", "tools/sync.py"):
        (book.root / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, book.root / path)
    (book.root / "tests").mkdir()
    test = f'import pytest\n@pytest.mark.parametrize("name", ["{NAME}"])\ndef test_chapter_runs(name):\n    pass\n'
    (book.root / "tests/test_book.py").write_text(test)

    def call(*arguments: str) -> subprocess.CompletedProcess:
        bin_ = f"BIN={Path(sys.executable).parent}"
        return subprocess.run(["make", "-o", ".venv/test-installed", bin_, *arguments], cwd=book.root,
                              capture_output=True, text=True)

    return call


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_chapter_refuses_and_goes_on_with_keep(book, make):
    edit_both(book)
    before = book.files()
    done = make("chapter", f"NB={NAME}")
    assert done.returncode != 0 and "cell 2: radius = 7" in done.stderr and "cell 4: sigma = 9.0" in done.stderr
    assert book.files() == before
    done = make("chapter", f"NB={NAME}", "KEEP=notebook")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert "radius = 7" in book.text(TWIN_FILE) and "sigma = 9.0" in book.text(f".agreed/{TWIN_FILE}.1")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_jupyterlab_does_not_write_twins(book, make):
    extensions = pytest.importorskip("jupyter_server.extension.config")
    folder = book.root / ".venv/etc/jupyter"
    (folder / "jupyter_server_config.d").mkdir(parents=True)
    on = {"ServerApp": {"jpserver_extensions": {"jupyterlab_jupytext": True}}}
    (folder / "jupyter_server_config.d/jupytext.json").write_text(json.dumps(on))  # as jupytext installs it
    done = make("-o", ".venv/pyvenv.cfg", ".venv/etc/jupyter/jupyter_server_config.json")
    assert done.returncode == 0, done.stderr
    found = extensions.ExtensionConfigManager(read_config_path=[str(folder)]).get_jpserver_extensions()
    assert found == {"jupyterlab_jupytext": False}
