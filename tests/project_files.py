"""What the tests know of the project: its files, those that git tracks or would track; and of their own processes."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))  # processes that run the tests
LEFT_OUT = {".git", ".venv", ".agreed", "__pycache__"}  # where there is no git to ask
LEFT_OUT_ON_TOP = {"runs", "build", "dist"}


def project_files(root: Path = ROOT) -> list[Path]:
    "Paths relative to `root`, sorted: tracked files and new ones that .gitignore lets through."
    asked = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root,
                           capture_output=True, text=True)
    if asked.returncode == 0:
        listed = {Path(name) for name in asked.stdout.split("\0") if name}
        return sorted(path for path in listed if (root / path).is_file())
    found = []
    for folder, folders, names in os.walk(root):
        out = LEFT_OUT | (LEFT_OUT_ON_TOP if Path(folder) == root else set())
        folders[:] = [name for name in folders if name not in out and not name.endswith((".egg-info", "_cache"))]
        found += [Path(folder, name).relative_to(root) for name in names]
    return sorted(found)


def copy_project(target: Path) -> Path:
    "Copy every file of the project into a folder: what runs there may write without changing the clone."
    for path in project_files():
        (target / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target / path)
    return target


def notebooks(root: Path = ROOT) -> list[str]:
    "Every notebook of the book, such as 'method/22_mcrf'."
    found = (path.relative_to(root / "nbs").with_suffix("") for path in (root / "nbs").rglob("*.ipynb"))
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def texts(root: Path = ROOT) -> dict[Path, str]:
    "The content of every text file of the project."
    contents = {}
    for path in project_files(root):
        try:
            contents[path] = (root / path).read_bytes().decode()  # line ends as they are
        except UnicodeDecodeError:  # a picture
            continue
    return contents
