"""The book holds together: notebooks, twins and modules agree, a chapter builds on earlier ones, and each one runs."""

import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from queue import Empty
from urllib.parse import unquote

import jupytext
import nbformat
import pytest
from book_rules import (
    LINES,
    MOST_LINES,
    SHARE,
    code_cells,
    exported,
    first_line,
    is_c,
    is_parameters,
    length,
    opening,
    undocumented,
)
from fastcore.nbio import nb2str
from jupytext.config import load_jupytext_config
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from notebook_client import Client, in_slices
from project_files import ROOT, WORKERS, copy_project, notebooks, project_files, texts

PACKAGE = "attenscribble"
NUMBERED = re.compile(r"(?:.*/)?(\d+)_")
NOTEBOOKS = notebooks()
RUNNABLE = [name for name in NOTEBOOKS if "/" not in name and name != "index" and not NUMBERED.match(name)]
CHAPTERS = [name for name in NOTEBOOKS if name not in RUNNABLE]
SECONDS = 120 if WORKERS == 1 else 240  # for one chapter, everything included; the second beside other tests
PORT_RACE = "Address already in use"  # two kernels started at once drew the same port


def source(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(cell: dict) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


# ---- notebooks, twins, modules


def twin_differences(notebook: Path, twin: Path) -> list[str]:
    "The first cell in which a notebook and its py:percent twin differ, or that only the twin's layout does."
    if not twin.is_file():
        return [f"{notebook} has no twin {twin}"]
    pairs = zip_longest(jupytext.read(notebook).cells, jupytext.read(twin).cells)
    for index, (ours, theirs) in enumerate(pairs):
        if ours is None or theirs is None:
            return [f"{notebook} and {twin}: cell {index} stands in one of them only:\n{(ours or theirs).source}"]
        said = [(cell.cell_type, cell.metadata.get("tags", []), cell.source) for cell in (ours, theirs)]
        if said[0] != said[1]:
            return [f"{notebook} and {twin} differ in cell {index}:\n{said[0]}\n{said[1]}"]
    config = load_jupytext_config(str(ROOT / "nbs"))
    if jupytext.writes(jupytext.read(notebook), "py:percent", config=config) != twin.read_text(encoding="utf-8"):
        return [f"{twin} is laid out unlike jupytext's (header or blank lines); JupyterLab may refuse to open the pair"]
    return []


def test_every_notebook_agrees_with_its_twin():
    wrong = [line for name in NOTEBOOKS
             for line in twin_differences(ROOT / f"nbs/{name}.ipynb", ROOT / f"nbs_py/{name}.py")]
    wrong += [f"{twin} has no notebook" for twin in sorted((ROOT / "nbs_py").rglob("*.py"))
              if not (ROOT / "nbs" / twin.relative_to(ROOT / "nbs_py")).with_suffix(".ipynb").is_file()]
    assert not wrong, "run make sync:\n" + "\n".join(wrong)


def test_a_changed_cell_is_named(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("a = 1\n\nb = 2")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "a.ipynb")
    twin = "# %% [markdown]\n# # A\n\n# %%\na = 1\n\nb = 2\n"
    for text, expected in {twin: "", twin.replace("b = 2", "b = 3"): "differ in cell 1", twin + "\n": "laid out unlike",
                           twin + "\n# %%\nc = 3\n": "cell 2 stands in one of them only"}.items():
        (tmp_path / "a.py").write_text(text)
        lines = twin_differences(tmp_path / "a.ipynb", tmp_path / "a.py")
        assert (expected in lines[0] and len(lines) == 1) if expected else lines == []


def modules(folder: Path) -> dict[str, str]:
    "The modules of a package; _modidx.py, which only nbdev's documentation pages need, is not kept."
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
            for path in folder.rglob("*.py") if path.name != "_modidx.py"}


def export(project: Path, target: Path) -> dict[str, str]:
    "The modules that a project's notebooks export, made in `target`; only __init__.py files are taken over."
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(project / name, target)
    shutil.copytree(project / "nbs", target / "nbs", ignore=shutil.ignore_patterns(".*"))
    for path in (project / PACKAGE).rglob("__init__.py"):
        copy = target / path.relative_to(project)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    done = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"],
                          cwd=target, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return modules(target / PACKAGE)


def module_differences(kept: dict[str, str], exported: dict[str, str]) -> list[str]:
    lines = [f"{PACKAGE}/{name} is missing" for name in sorted(exported.keys() - kept.keys())]
    lines += [f"{PACKAGE}/{name} comes from no notebook" for name in sorted(kept.keys() - exported.keys())]
    for name in sorted(kept.keys() & exported.keys()):
        if kept[name] != exported[name]:
            pairs = enumerate(zip_longest(kept[name].splitlines(), exported[name].splitlines()), 1)
            line, (ours, theirs) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
            lines.append(f"{PACKAGE}/{name}, line {line}: {ours!r}; its notebook says {theirs!r}")
    return lines


def test_exporting_changes_nothing(tmp_path):
    wrong = module_differences(modules(ROOT / PACKAGE), export(ROOT, tmp_path))
    assert not wrong, "edit notebooks, not modules; then run make sync:\n" + "\n".join(wrong)


def test_an_edited_a_missing_and_a_stray_module_are_named():
    lines = module_differences({"a.py": "x = 1\ny = 2\n", "b.py": ""}, {"a.py": "x = 1\ny = 3\n", "c.py": ""})
    assert lines == [f"{PACKAGE}/c.py is missing", f"{PACKAGE}/b.py comes from no notebook",
                     f"{PACKAGE}/a.py, line 2: 'y = 2'; its notebook says 'y = 3'"]


def dirt(path: Path) -> list[str]:
    "What `make sync` would take out of a notebook."
    notebook = source(path)
    lines = [f"{path}: cell {index} holds outputs"
             for index, cell in enumerate(notebook["cells"]) if cell.get("outputs")]
    if stray := notebook["metadata"].keys() - {"kernelspec", "jupytext"}:
        lines.append(f"{path}: stray metadata {sorted(stray)}")
    if (kernel := notebook["metadata"].get("kernelspec", {}).get("name")) != "python3":
        lines.append(f"{path}: kernel {kernel!r}, expected 'python3'")
    clean_nb(notebook, allowed_cell_metadata_keys=get_config(ROOT).allowed_cell_metadata_keys)
    if not lines and nb2str(notebook) != path.read_text(encoding="utf-8"):
        lines.append(f"{path}: nbdev-clean changes it (execution counts, cell metadata or layout)")
    return lines


def test_notebooks_are_clean():
    wrong = [line for name in NOTEBOOKS for line in dirt(ROOT / f"nbs/{name}.ipynb")]
    assert not wrong, "run make sync:\n" + "\n".join(wrong)


@pytest.mark.parametrize(("spoil", "expected"), [
    (lambda nb: nb.cells[0].outputs.append(nbformat.v4.new_output("stream", text="1")), "cell 0 holds outputs"),
    (lambda nb: nb.metadata.update(widgets={}), "stray metadata ['widgets']"),
    (lambda nb: nb.metadata.kernelspec.update(name="mine"), "kernel 'mine'"),
    (lambda nb: nb.cells[0].update(execution_count=3), "nbdev-clean changes it"),
    (lambda nb: nb.cells[0].metadata.update(collapsed=True), "nbdev-clean changes it"),
])
def test_dirt_is_named(tmp_path, spoil, expected):
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    cell = nbformat.v4.new_code_cell("1", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert dirt(tmp_path / "a.ipynb") == []
    spoil(notebook)
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert expected in dirt(tmp_path / "a.ipynb")[0]


# ---- order and size


def chapter_numbers(folder: Path) -> dict[str, int]:
    "Exported module, such as 'data.scans' → the number of its chapter. Raises AssertionError for a module without one."
    numbers: dict[str, int] = {}
    for name in notebooks(folder):
        for cell in source(folder / f"nbs/{name}.ipynb")["cells"]:
            if match := re.search(r"^#\|\s*default_exp\s+(\S+)", text_of(cell), re.MULTILINE):
                number = NUMBERED.match(name)
                assert number, f"nbs/{name}.ipynb exports {match[1]}, so its name has to start with a number"
                assert match[1] not in numbers, f"two notebooks export {match[1]}"
                numbers[match[1]] = int(number[1])
    return numbers


def imported(module: str, code: str, known: set[str]) -> set[str]:
    "The modules of the package that a module imports, relatively or absolutely, at its top or inside a function."
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = [PACKAGE, *module.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")} & known


def order_violations(folder: Path) -> list[str]:
    "Imports of a project's exported modules that do not point to an earlier chapter."
    numbers = chapter_numbers(folder)
    lines = []
    for module, number in numbers.items():
        code = (folder / PACKAGE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        lines += [f"{module} (chapter {number}) imports {other} (chapter {numbers[other]})"
                  for other in sorted(imported(module, code, set(numbers))) if numbers[other] >= number]
    return lines


def test_book_order_is_dependency_order():
    wrong = order_violations(ROOT)
    assert not wrong, "a module imports only from chapters with lower numbers than its own:\n" + "\n".join(wrong)
    numbers = [NUMBERED.match(name)[1] for name in CHAPTERS if NUMBERED.match(name)]
    assert len(numbers) == len(set(numbers)), f"two chapters share a number: {sorted(numbers)}"


@pytest.mark.parametrize("line", [
    "from ..method.late import f",
    "from ..method import late",
    "from attenscribble.method.late import f",
    "import attenscribble.method.late as late",
    "def f():\n    from ..method.late import f",
])
def test_an_import_from_a_later_chapter_is_found(tmp_path, line):
    codes = {("data", "10_early", "early"): line, ("method", "20_late", "late"): "from ..data.early import g"}
    for (folder, notebook, module), code in codes.items():
        cell = nbformat.v4.new_code_cell(f"#| default_exp {folder}.{module}")
        (tmp_path / "nbs" / folder).mkdir(parents=True)
        (tmp_path / PACKAGE / folder).mkdir(parents=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"nbs/{folder}/{notebook}.ipynb")
        (tmp_path / PACKAGE / folder / f"{module}.py").write_text(code)
    assert order_violations(tmp_path) == ["data.early (chapter 10) imports method.late (chapter 20)"]


def test_cells_are_short():
    cells = {name: code_cells(ROOT / f"nbs/{name}.ipynb") for name in NOTEBOOKS}
    everything = [source for sources in cells.values() for source in sources if not is_c(source)]
    long = [source for source in everything if length(source) > LINES]
    assert len(long) < SHARE * len(everything), f"{len(long)} of {len(everything)} cells have more than {LINES} lines"
    wrong = [f"{name}: {length(source)} lines: {first_line(source)}" for name, sources in cells.items()
             for source in sources if length(source) > MOST_LINES and not is_c(source) and not is_parameters(source)]
    assert not wrong, f"no cell has more than {MOST_LINES} lines, texts of C and parameters apart:\n" + "\n".join(wrong)


def test_what_is_exported_is_explained():
    wrong = [f"{name}: {line}" for name in NOTEBOOKS for source in code_cells(ROOT / f"nbs/{name}.ipynb")
             if exported(source) for line in undocumented(source)]
    assert not wrong, "a comment for each parameter and for the result:\n" + "\n".join(wrong)


def test_a_chapter_opens_with_what_it_is_for_and_three_sentences():
    wrong = [f"{name} {problem}" for name in CHAPTERS if NUMBERED.match(name)
             if (problem := opening(ROOT / f"nbs/{name}.ipynb"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("code", "expected"), [
    ("#| export\ndef f(\n    a: int,  # a number\n) -> int:  # another\n    return a", []),
    ("#| export\ndef f(a: int) -> int:\n    return a", ["f: a, its result"]),
    ("#| export\ndef f(\n    a: int,  # a number\n) -> int:\n    return a", ["f: its result"]),
    ("#| export\nclass A:\n    def g(self, b):\n        ...", ["A.g: b"]),
    ("#| export\ndef _f(a):\n    ...", []),
    ("#| export\ndef f() -> int:\n    return 1", []),
])
def test_a_bare_parameter_is_found(code, expected):
    assert undocumented(code) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("# A\n\n> What for.\n\nOne. Two? Three.", None),
    ("# A\n\n> What for.\n\nOne. Two.", "opens with 2 sentences, expected 3"),
    ("# A\n\nOne. Two. Three.", "opens without a title, a line that says what for, and a paragraph"),
])
def test_a_wrong_opening_is_found(tmp_path, text, expected):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), tmp_path / "a.ipynb")
    assert opening(tmp_path / "a.ipynb") == expected


# ---- what a reader clicks on, and what does not belong


def links(text: str) -> list[str]:
    "Targets of a Markdown text's relative links; code and formulas hold none."
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", text, flags=re.DOTALL)
    targets = [first or second for first, second in re.findall(r'\]\(<?([^)\s>]+)|(?:src|href)="([^"]+)"', text)]
    return [unquote(target.split("#")[0]) for target in targets if not re.match(r"[a-z]+:|#", target)]


def broken_links(root: Path) -> list[str]:
    files = project_files(root)
    there = {root / path for path in files} | {root / folder for path in files for folder in path.parents}
    lines = []
    for path in files:
        if path.suffix == ".ipynb":
            cells = [cell for cell in source(root / path)["cells"] if cell["cell_type"] == "markdown"]
            text = "\n\n".join(text_of(cell) for cell in cells)
        elif path.suffix == ".md":
            text = (root / path).read_text(encoding="utf-8")
        else:
            continue
        lines += [f"{path} → {target}" for target in links(text)
                  if Path(os.path.normpath(root / path.parent / target)) not in there]
    return lines


def test_relative_links_lead_to_files_of_the_project():
    wrong = broken_links(ROOT)
    assert not wrong, "no such file, or one that git ignores:\n" + "\n".join(wrong)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("[`x`](../b.md#top) [![p](gone.png)](https://x.org) `[i](j)` $f[1](x)$ [d](..)")
    (tmp_path / "b.md").write_text('<img src="docs/a.md"> [mail](mailto:a@b.org) [here](#there) [no](docs/c%20d.md)')
    assert broken_links(tmp_path) == ["b.md → docs/c d.md", "docs/a.md → gone.png"]


MACHINE_PATH = re.compile(r"(?<![\w.\-<)}\]/])/(?:(?:work|root|tmp)(?![\w-])|(?:home|Users)/\w)")
REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|anaconda\.(?:org|com)|download\.pytorch\.org|/opt/(?:pypi|wheels)")


def misplaced(text: str) -> list[str]:
    "Lines that only make sense on the machine they were written on, or name a package registry's host."
    return [line.strip()[:120] for line in text.splitlines() if MACHINE_PATH.search(line) or REGISTRY.search(line)]


def test_no_path_of_a_machine_and_no_registry_host():
    wrong = [f"{path}: {line}" for path, text in texts().items() for line in misplaced(text)]
    assert not wrong, "\n".join(wrong)


def test_misplaced_words_are_found():
    slash = "/"
    bad = [f"open('{slash}work/a')", f"{slash}root", f"cd {slash}home/ann", f"{slash}tmp/out",
           "https://pypi" + ".org/simple"]
    good = ["shared/work/a", "tests/root", "</root>", "{base}/work", "/workshop", "../root/x"]
    assert misplaced("\n".join(bad + good)) == bad


# ---- running


def test_runnable_notebooks_have_one_parameters_cell():
    assert "train" in RUNNABLE
    for name in RUNNABLE:
        cells = source(ROOT / f"nbs/{name}.ipynb")["cells"]
        tagged = [index for index, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1, f"nbs/{name}.ipynb: cells tagged parameters: {tagged}, papermill needs exactly one"


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run_notebook(path: Path, env: dict[str, str], seconds: float = SECONDS) -> None:
    "Run a notebook in a fresh kernel, in its own folder. Raises AssertionError: the failing cell and its traceback."
    reached = 0
    ends = time.monotonic() + seconds

    def note(cell: dict, cell_index: int) -> None:
        nonlocal reached
        reached = cell_index

    client = Client(nbformat.read(path, as_version=4), kernel_name="python3", on_cell_execute=note,
                    resources={"metadata": {"path": str(path.parent)}},
                    timeout_func=lambda cell: max(1, round(ends - time.monotonic())))
    for attempt in (1, 2):
        with tempfile.TemporaryFile("w+") as errors:
            try:
                client.execute(env=env, stderr=errors)
                return
            except CellTimeoutError:
                problem = f"{client.nb.cells[reached].source}\nthe notebook takes more than {seconds:g} s"
            except CellExecutionError as error:  # the traceback holds the cell
                problem = plain(error.traceback)
            except RuntimeError as error:  # the kernel died, or did not start
                errors.seek(0)
                problem = f"{client.nb.cells[reached].source}\n{error}\n{errors.read()}"
        if attempt == 2 or PORT_RACE not in problem:
            raise AssertionError(f"{path.name}, cell {reached}:\n{problem}") from None


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "A copy of the project: a chapter may write its figures without changing the clone."
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def book_env(request, tmp_path) -> dict[str, str]:
    "The environment of a chapter: untouched exercises have to fail; the real data, where they are."
    env = {name: value for name, value in os.environ.items() if name not in ("ATTENSCRIBBLE_DATA", "MPLBACKEND")}
    env |= {"ATTENSCRIBBLE_CHECK_BOOK": "1", "IPYTHONDIR": str(tmp_path), "ATTENSCRIBBLE_CACHE": str(tmp_path)}
    try:
        return env | {"ATTENSCRIBBLE_DATA": str(request.getfixturevalue("data_root"))}
    except pytest.skip.Exception:
        return env


@pytest.mark.chapter
@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_runs(name, copy, book_env):
    run_notebook(copy / f"nbs/{name}.ipynb", book_env)


@pytest.mark.parametrize(("code", "expected"), [
    ("value = 1\nassert value == 2, 'not two'", ["a.ipynb, cell 1", "assert value == 2", "AssertionError: not two"]),
    ("while True:\n    pass", ["a.ipynb, cell 1", "while True", "more than 4 s"]),
    ("import os, sys\nprint('the end', file=sys.__stderr__)\nos._exit(1)", ["a.ipynb, cell 1", "died"]),
])
def test_a_chapter_that_fails_says_where(tmp_path, code, expected):
    cells = [nbformat.v4.new_code_cell("import os\nassert os.path.exists('a.ipynb')"), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    with pytest.raises(AssertionError) as caught:
        run_notebook(tmp_path / "a.ipynb", dict(os.environ), seconds=4)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


@pytest.mark.parametrize("timeout", [60, None])
def test_an_answer_is_not_slept_through(timeout):
    asked = []

    async def wait(timeout):
        asked.append(timeout)
        if len(asked) < 4:
            raise Empty
        return {"answer": 1}

    assert asyncio.run(in_slices(wait)(timeout=timeout)) == {"answer": 1}
    assert len(asked) == 4 and max(asked) <= 0.5


def test_a_wait_that_is_over_ends():
    asked = []

    async def wait(timeout):
        asked.append(timeout)
        time.sleep(timeout)
        raise Empty

    with pytest.raises(Empty):
        asyncio.run(in_slices(wait, seconds=0.02)(timeout=0.05))
    assert asked[0] == 0.02 and sum(asked) < 0.06
