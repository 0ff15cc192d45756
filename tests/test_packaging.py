"""What is published: the source archive and the wheel, looked into, installed, and used away from the project."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project_files import ROOT, notebooks, project_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
NAME = f"attenscribble-{PROJECT['version']}"
RUNNABLE = [name for name in notebooks() if "/" not in name and name != "index" and not name[0].isdigit()]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    "What a command prints. It sees no modules but its own interpreter's and those of its folder."
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def base() -> str:
    "The address that all others begin with."
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    return settings["DEFAULT"]["git_url"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder with the source archive, and the wheel that was built from it."
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The folder that the source archive holds."
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob(f"{NAME}-*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    "What a package index shows."
    return HeaderParser().parsestr(zipfile.Path(wheel, f"{NAME}.dist-info/METADATA").read_text(encoding="utf-8"))


# ---- contents


def test_the_source_archive_holds_every_file_and_no_other(unpacked):
    expected = set(project_files()) | {Path("PKG-INFO")}
    there = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    assert there == expected, sorted(map(str, there ^ expected))
    changed = [str(path) for path in project_files() if (unpacked / path).read_bytes() != (ROOT / path).read_bytes()]
    assert not changed


def test_the_wheel_holds_modules_tables_notebooks_and_the_licence_and_nothing_else(wheel):
    expected = {path.as_posix(): path for path in project_files() if path.parts[0] == "attenscribble"}
    expected |= {f"attenscribble/notebooks/{name}.ipynb": Path("nbs", f"{name}.ipynb") for name in RUNNABLE}
    expected |= {f"{NAME}.dist-info/licenses/LICENSE": Path("LICENSE")}
    assert "attenscribble/py.typed" in expected and "attenscribble/notebooks/train.ipynb" in expected
    described = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
        assert shipped == expected.keys() | described, sorted(shipped ^ (expected.keys() | described))
        assert not [name for name, path in expected.items() if archive.read(name) != (ROOT / path).read_bytes()]


def test_an_editable_installation_is_a_path_and_copies_nothing(tmp_path):
    run(sys.executable, "-c", "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])",
        tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        (name,) = (name for name in archive.namelist() if ".dist-info/" not in name)
        assert name.endswith(".pth") and archive.read(name).decode().split() == [str(ROOT)]


# ---- metadata


def test_the_metadata_are_the_project_s(metadata):
    assert metadata["Version"] == PROJECT["version"] and metadata["License-Expression"] == "Apache-2.0"
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {str(r) for r in required if not r.marker} == {str(Requirement(line)) for line in PROJECT["dependencies"]}
    assert set(metadata.get_all("Provides-Extra")) == {"notebook", "grid", "book", "test"}
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_every_address_begins_with_the_one_in_settings_ini_and_its_file_exists(metadata):
    addresses = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert addresses.keys() == {"Homepage", "Book", "Source", "Issues", "Changelog"}
    for address in addresses.values():
        assert address == base() or address.startswith(f"{base()}/")
        path = address.partition("/blob/main/")[2]
        assert (ROOT / path).exists(), f"pyproject.toml: found {address}, expected a file of the project"


def tokens(markdown: str) -> list:
    "All tokens of a Markdown text, those within a paragraph or a table's cell included."
    blocks = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [token for block in blocks for token in (block, *(block.children or ()))]


def links(markdown: str) -> list[tuple[str, str]]:
    "Every target, with what it is reached by: raw for a picture, blob for a link."
    found = []
    for token in tokens(markdown):
        found += [(name, str(token.attrs[name])) for name in ("href", "src") if name in token.attrs]
        if token.type in ("html_block", "html_inline"):
            found += re.findall(r'\b(href|src)="([^"]+)"', token.content)
    return [("raw" if name == "src" else "blob", target) for name, target in found]


def test_every_link_of_the_long_description_is_absolute_and_its_file_exists(metadata):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ours, theirs = links(readme), links(metadata.get_payload())
    assert ours and len(ours) == len(theirs)
    for (kind, said), (_, shown) in zip(ours, theirs, strict=True):
        if urlsplit(said).scheme:
            assert shown == said
        else:
            path = f"README.md{said}" if said.startswith("#") else said
            assert shown == f"{base()}/{kind}/v{PROJECT['version']}/{path}"
            assert (ROOT / unquote(path.split("#")[0])).exists(), f"README.md: found {said}, expected a file"


def test_the_long_description_is_the_readme_but_for_its_links(metadata):
    def plain(markdown: str) -> list[str]:
        return [token.content for token in tokens(markdown) if not token.children and not token.type.startswith("html")]

    assert plain(metadata.get_payload()) == plain((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_rules_for_links_reach_each_kind():
    text = "[![a](b.png)](c.md#d) ![e](https://f.org/g.png) [h](#i) [j](mailto:k@l.org) [m](n/o.ipynb)"
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    raw, blob = (f"{base()}/{kind}/v$HFPR_VERSION" for kind in ("raw", "blob"))
    assert text == (f"[![a]({raw}/b.png)]({blob}/c.md#d) ![e](https://f.org/g.png) [h]({blob}/README.md#i) "
                    f"[j](mailto:k@l.org) [m]({blob}/n/o.ipynb)")


# ---- dependencies


def imported(nodes: list[ast.AST]) -> set[str]:
    "The libraries that import statements name, by their first word."
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    brought = {"triton"}  # by PyTorch for GPUs; a module that finds none goes on without it
    return {name.split(".")[0] for name in froms | plain} - sys.stdlib_module_names - {PROJECT["name"]} - brought


def test_the_core_installs_what_the_modules_import_and_no_more():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "attenscribble").rglob("*.py")]
    owners = packages_distributions()
    first, anywhere = ({canonicalize_name(owners[name][0]) for tree in trees for name in imported(nodes(tree))}
                       for nodes in (lambda tree: tree.body, lambda tree: list(ast.walk(tree))))
    declared = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    core, notebook, book = ({canonicalize_name(Requirement(line).name) for line in declared[name]}
                            for name in ("core", "notebook", "book"))
    assert first <= core, f"the core lacks {first - core}"
    assert core <= anywhere, f"nothing imports {core - anywhere}"
    assert anywhere <= core | notebook | book, f"no extra has {anywhere - core - notebook - book}"


# ---- in use


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The programs of an environment that has the wheel; the libraries are lent by the one that runs the tests."
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    own = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(own, "lent.pth").write_text(sysconfig.get_path("purelib"))  # a path only: no .pth file of there is read
    return programs


def test_the_installed_command_runs_in_any_folder(elsewhere, tmp_path):
    assert "usage: attenscribble" in run(elsewhere / "attenscribble", "--help", cwd=tmp_path)


def test_the_installed_package_finds_its_notebooks_and_tables(elsewhere, tmp_path):
    where = "from importlib.util import find_spec; print(find_spec('attenscribble').origin)"
    home = Path(run(elsewhere / "python", "-c", where, cwd=tmp_path).strip()).parent
    assert home.is_relative_to(elsewhere.parent)
    names = {path.name for folder in ("notebooks", "published") for path in (home / folder).iterdir()}
    assert names == {*(f"{name}.ipynb" for name in RUNNABLE), "table1.csv", "table2.csv"}
    listed = run(elsewhere / "attenscribble", "notebook", cwd=tmp_path).splitlines()[:-1]
    assert {line.split()[0] for line in listed} == {*RUNNABLE}
    for name in RUNNABLE:
        said = run(elsewhere / "attenscribble", "notebook", name, "my notebooks", cwd=tmp_path)
        assert f"Next: jupyter lab 'my notebooks/{name}.ipynb'" in said.splitlines()
        cells, written = (json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
                          for folder in (home / "notebooks", tmp_path / "my notebooks"))
        assert [cell["cell_type"] for cell in written] == [cell["cell_type"] for cell in cells] and len(cells) > 3


def test_the_source_archive_runs_its_tests(unpacked):
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_pce.py", cwd=unpacked)
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said
