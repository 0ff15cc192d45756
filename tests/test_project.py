"""The project around the book: pins, versions, what ships, what is committed."""

import re
import subprocess
import sys
from configparser import ConfigParser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project_files import ROOT, project_files, texts

import attenscribble

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CONDA_PYTHON = "3.11"
PATIENT_DATA = (".nii", ".nii.gz", ".h5", ".hdf5", ".dcm", ".mha", ".nrrd")


def direct_dependencies() -> dict[str, Requirement]:
    "Every requirement of pyproject.toml, those of all extras included, by name."
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    requirements = [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]
    return {canonicalize_name(r.name): r for r in requirements if r.name != PROJECT["name"]}


def pins(python: str) -> dict[str, str]:
    "The versions that constraints.txt gives for a Python, such as '3.10'."
    found: dict[str, str] = {}
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"constraints.txt pins {name} twice for Python {python}"
                (specifier,) = requirement.specifier
                assert specifier.operator == "==", f"constraints.txt: {line!r} is no pin"
                found[name] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_bounds(python):
    pinned = pins(python)
    for name, requirement in direct_dependencies().items():
        assert name in pinned, f"constraints.txt has no {name} for Python {python}"
        assert pinned[name] in requirement.specifier, f"{name}=={pinned[name]} breaks pyproject's '{requirement}'"


def test_conda_installs_the_same_direct_dependencies():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python={CONDA_PYTHON}" in dependencies
    lines = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    named = dict(line.split("==") for line in lines if not line.startswith("-"))
    pinned = pins(CONDA_PYTHON)
    assert named == {name: pinned[name] for name in direct_dependencies()}
    assert [line for line in lines if line.startswith("-")] == ["-c constraints.txt", "-e ."]


def test_declared_pythons_are_the_pinned_ones():
    declared = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tuple(declared) == PYTHONS
    bounds = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(8, 17) if f"3.{minor}" in bounds] == list(PYTHONS)


def test_one_version():
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (newest, *_) = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert settings["DEFAULT"]["version"] == PROJECT["version"] == attenscribble.__version__
    assert cited["version"] == newest == PROJECT["version"]
    assert cited["url"] == cited["repository-code"] == PROJECT["urls"]["Source"] == settings["DEFAULT"]["git_url"]


def test_every_version_of_the_changelog_has_its_address():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    addresses = dict(re.findall(r"^\[(.+?)\]: (\S+)$", text, re.MULTILINE))
    assert list(addresses) == versions and len(versions) > 1
    for version, address in addresses.items():
        assert address.startswith(PROJECT["urls"]["Source"] + "/") and address.endswith(f"v{version}")


def test_continuous_integration_runs_the_project_s_script_on_the_declared_pythons():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == list(PYTHONS)
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]


def test_style():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("{}.{}".format(*sys.version_info) != CONDA_PYTHON,
                    reason="other Pythons have other versions of the libraries, and those other types")
def test_types():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_in_the_prose_are_make_targets():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
        used = set(re.findall(r"(?:^|[`&;|])\s*make ([a-z]+)", code, re.MULTILINE))
        assert used, f"{name} names no make target"
        assert used <= targets, f"{name}: no such target in the Makefile: {sorted(used - targets)}"


def test_nothing_heavy_is_committed():
    size = {path: (ROOT / path).stat().st_size for path in project_files()}
    figures = {str(path): bytes_ for path, bytes_ in size.items() if path.parts[0] == "figures"}
    assert not {name: bytes_ for name, bytes_ in figures.items() if bytes_ > 150_000}, "a figure has at most 150 kB"
    assert not {str(path): bytes_ for path, bytes_ in size.items() if bytes_ > 1_000_000}, "a file has at most 1 MB"


def test_no_scan_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    scans = [name for name in {*listed, *map(str, project_files())} if name.lower().endswith(PATIENT_DATA)]
    assert not scans, f"scans of patients stay outside the project: {scans}"


def test_every_text_file_ends_its_lines_the_same_way():
    wrong = [str(path) for path, text in texts().items() if "\r" in text or (text and not text.endswith("\n"))]
    assert not wrong, f"Unix line ends, and one after the last line: {wrong}"


def test_the_licence_is_the_declared_one():
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
