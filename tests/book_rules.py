"""What a chapter's cells are measured by: their length, the docments of what is exported, and the opening.

`python tests/book_rules.py [data/10_grid …]` prints what breaks a rule; the tests of the book use the same functions.
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES, MOST_LINES = 15, 60  # of a code cell: as a rule; at most, texts of C apart
SHARE = 0.08  # of the book's code cells may break the rule


def code_cells(notebook: Path) -> list[str]:
    "The sources of a notebook's code cells."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def length(source: str) -> int:
    "Lines of a code cell without nbdev's directives."
    return sum(not line.startswith("#|") for line in source.splitlines())


def is_c(source: str) -> bool:
    "Whether a cell holds a text of C."
    return 'r"""' in source and re.search(r"static inline|void |double \w+\(", source) is not None


def is_parameters(source: str) -> bool:
    "Whether a cell holds nothing but the parameters of a notebook, a line each."
    return all(re.match(r"\w+: \w+ = .*  # ", line) for line in source.splitlines())


def exported(source: str) -> bool:
    "Whether a cell goes into the module."
    return re.match(r"#\|\s*export", source) is not None


def undocumented(source: str) -> list[str]:
    "Public functions and methods of an exported cell with a parameter or a result that no comment explains."
    lines, found = source.splitlines(), []

    def look(function: ast.FunctionDef, name: str) -> None:
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        asked = [a for a in named if a.arg not in ("self", "cls", "ctx")]
        bare = [a.arg for a in asked if "#" not in lines[a.end_lineno - 1]]
        result = function.returns
        plain = result is None or (isinstance(result, ast.Constant) and isinstance(result.value, (str, type(None))))
        if asked and not plain and "#" not in lines[result.end_lineno - 1]:
            bare.append("its result")
        if bare:
            found.append(f"{name}: {', '.join(bare)}")

    def visit(body: list[ast.stmt], prefix: str = "") -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
                decorators = {ast.unparse(d).split("(")[0] for d in node.decorator_list}
                if not decorators & {"field_validator", "model_validator", "property", "staticmethod"}:
                    look(node, prefix + node.name)

    visit(ast.parse(source).body)
    return found


def opening(notebook: Path) -> str | None:
    "What is wrong with a chapter's first cell: a title, a line that says what for, and three plain sentences."
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    text = "".join(first["source"])
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not (first["cell_type"] == "markdown" and parts[0].startswith("# ") and len(parts) > 2):
        return "opens without a title, a line that says what for, and a paragraph"
    if not parts[1].startswith("> "):
        return "has no line '> …' below its title"
    sentences = re.findall(r"[.?!](?:\*\*)?(?=\s|$)", " ".join(parts[2].split()))
    return None if len(sentences) == 3 else f"opens with {len(sentences)} sentences, expected 3"


def first_line(source: str) -> str:
    "What a cell begins with."
    return next((line for line in source.splitlines() if not line.startswith("#")), "")


def report(name: str) -> list[str]:
    "What breaks a rule in one chapter."
    notebook = ROOT / f"nbs/{name}.ipynb"
    cells = code_cells(notebook)
    long = [cell for cell in cells if length(cell) > LINES and not is_c(cell)]
    lines = [f"{name}: {len(long)} of {len(cells)} code cells are longer than {LINES} lines"]
    lines += [f"  {length(cell)} lines: {first_line(cell)}" for cell in long]
    lines += [f"  no docment: {line}" for cell in cells if exported(cell) for line in undocumented(cell)]
    return lines + ([f"  {wrong}"] if (wrong := opening(notebook)) else [])


if __name__ == "__main__":
    print("\n".join(line for name in sys.argv[1:] for line in report(name)))
