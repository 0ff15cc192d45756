# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A notebook as a command
#
# > What a notebook was given, checked by name; and what it does, shown in the terminal.
#
# papermill runs a notebook from a terminal: it writes the given parameters into a copy, executes the copy and keeps it. But it takes a name
# that the notebook does not know, and what the notebook shows goes into the copy while the person at the terminal waits. This chapter reads
# the parameters back, refuses unknown names, and writes progress and results to the terminal as well.

# %%
#| default_exp basics.notebook

# %%
#| export
import json
import linecache
import locale
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from traceback import walk_tb
from typing import Any

# %%
#| export
from tqdm import tqdm

from attenscribble.basics.errors import unknown_setting


# %% [markdown]
# This module is imported before all others, so that a misspelt name is refused at once: it needs no PyTorch.
#
# ## What was given
#
# papermill adds a cell of plain assignments below the notebook's own parameters cell. What both have assigned is in the notebook's namespace,
# beside functions, objects and IPython's own `In` and `Out`. In JupyterLab the cell that reads it may run again; by then later cells have
# left lists and dictionaries of their own there. So what is read has a type of its own, which remembers where it came from.

# %%
#| export
class Parameters(dict[str, Any]):
    "What a notebook was given: parameter → value."

    def __init__(
        self,
        values: Mapping[str, Any],  # by parameter, entries of groups under flat names
        names: Iterable[str] = (),  # in the namespace, groups as they are
    ) -> None:
        super().__init__(values)
        self.names = frozenset(names)


# %%
#| export
def _assigned(
    namespace: Mapping[str, Any],  # of a notebook
    known: Sequence[str],  # the names in its parameters cell, and those of groups
) -> dict[str, Any]:
    "The plain values in a notebook's namespace that are neither IPython's, nor private, nor a later cell's."
    before = next((value.names for value in namespace.values() if isinstance(value, Parameters)), None)
    found = {name: value for name, value in namespace.items() if not (
        name.startswith("_") or name in ("In", "Out") or isinstance(value, Parameters))}
    single, several = (bool, int, float, str, type(None)), (list, tuple, dict)
    return {name: value for name, value in found.items() if isinstance(value, single) or (
        isinstance(value, several) and (before is None or name in before or name in known))}


# %% [markdown]
# Several settings may stand in one text, `lam_mcrf=0.3,data_patients=5`, or in JSON. Only a comma before the next `NAME=` separates; others
# belong to the value. Of two values for one setting neither is taken.

# %%
#| export
def each_once(
    start: str,  # what comes before a name in the message
    pairs: Iterable[Sequence[Any]],  # name, value
) -> dict[str, Any]:  # name → value
    "A dictionary of pairs. Raises ValueError for a name with two values."
    found: dict[str, Any] = {}
    for name, value in pairs:
        if str(found.setdefault(name, value)) != str(value):
            raise ValueError(f"{start}{name}: found {found[name]!r} and {value!r}, expected one of the two")
    return found


# %%
#| export
def _in_text(text: str, once: Callable[[Iterable[Sequence[Any]]], dict[str, Any]]) -> dict[str, Any] | None:
    "The settings in a text; None where it is neither JSON nor NAME=VALUE. Raises what `once` raises."
    if text.lstrip().startswith("{"):
        try:
            json.loads(text)
        except ValueError:
            return None
        return dict(json.loads(text, object_pairs_hook=once))
    pairs = [part.split("=", 1) for part in re.split(r",\s*(?=\w+=)", text.strip()) if part]
    return once((pair[0].strip(), pair[1]) for pair in pairs) if all(len(pair) == 2 for pair in pairs) else None


# %%
#| export
def settings_in(
    name: str,  # of the parameter, for the message
    value: Any,  # a dictionary, or a text of NAME=VALUE,NAME=VALUE or JSON; None: nothing
) -> dict[str, Any]:  # setting → value, as it stands there
    "The settings inside one parameter. Raises ValueError for what holds none, and for a setting with two values."
    once = partial(each_once, "" if name == "extra" else f"{name.removesuffix('_options')}_")
    found = _in_text(value, once) if isinstance(value, str) else {} if value is None else value
    if not isinstance(found, dict):
        raise ValueError(f"{name}: found {value!r}, expected NAME=VALUE,NAME=VALUE, or a dictionary as JSON or YAML")
    return found


# %%
assert settings_in("extra", "lam_mcrf=0.3, data_classes=a,b") == {"lam_mcrf": "0.3", "data_classes": "a,b"}
assert settings_in("extra", '{"lam_mcrf": 0.3}') == {"lam_mcrf": 0.3} and settings_in("extra", "") == {}


# %% [markdown]
# papermill's YAML can hold a group of settings as a dictionary: `crf: {mask: p}` is the setting `crf_mask`. Some groups have entries whose names
# depend on other settings, such as `lam` with a weight for each term of the method; the caller names these groups. Of two values for one setting
# neither is taken.

# %%
#| export
def _spread(
    given: Iterable[tuple[str, Any]],  # parameter, value
    known: Sequence[str],  # the names in the parameters cell
    groups: Sequence[str],  # groups with entries of any name
) -> dict[str, Any]:
    "Entries of groups under flat names, such as `crf_mask`. Raises ValueError for a setting with two values."
    closed, flat = {name.split("_")[0] for name in known if "_" in name}, dict[str, Any]()
    for name, value in given:
        grouped = name not in known and (name in groups or (name in closed and isinstance(value, dict)))
        entries = {f"{name}_{key}": entry for key, entry in settings_in(name, value).items()} if grouped else None
        for own, entry in ({name: value} if entries is None else entries).items():
            flat[own] = _one_value(own, flat.get(own), entry)
    return flat


# %%
#| export
def _one_value(name: str, before: Any, value: Any) -> Any:
    "What holds of two values of a setting, None being none. Raises ValueError for two that differ inside a group."
    if before is not None and value is not None and str(before) != str(value) and "_" in name:
        raise ValueError(f"{name}: found {before!r} and {value!r}, expected one of the two")
    return before if value is None else value


# %% [markdown]
# The parameters cell says the type of each parameter, as in `fold: int = 1`, and Python keeps these names in `__annotations__`. papermill's
# cell has no types. So a name that is not among the annotated ones was given to papermill and is unknown to the notebook.

# %%
#| export
def notebook_settings(
    namespace: Mapping[str, Any],  # `globals()` of a notebook, right after its parameters
    groups: Sequence[str] = (),  # groups whose entries, such as `lam_mcrf` of `lam`, are checked later by others
) -> Parameters:  # parameter → number, text, truth value, None, list or dictionary
    """What a notebook was given. The parameter `extra` holds further ones, `NAME=VALUE,NAME=VALUE`.

    Raises ValueError, with the nearest name, for a parameter that the parameters cell does not name."""
    known = [*namespace.get("__annotations__", ())]
    assigned = _assigned(namespace, [*known, *groups, *(name.split("_")[0] for name in known)])
    further = settings_in("extra", assigned.pop("extra", None))
    given = _spread([*assigned.items(), *further.items()], known, groups)
    open_names = tuple(f"{group}_" for group in groups)
    unknown = [name for name in given if name not in known and not name.startswith(open_names)]
    unknown += [name for name in namespace if name.startswith("_") and name.strip("_") in {*known, *groups}]
    if known and unknown:
        raise ValueError("\n".join(unknown_setting(name, [*known, *groups]) for name in unknown))
    return Parameters(given, assigned)


# %% [markdown]
# A name with an underscore before it, as IPython has many, is refused where it is a parameter's otherwise. A notebook with three parameters, and what
# papermill's cell may add to it.

# %%
def read(**added):
    "The parameters after papermill's cell, or the refusal."
    cell = {"__annotations__": dict.fromkeys(["fold", "crf_mask", "extra"]), "fold": 1, "crf_mask": None, "extra": ""}
    try:
        return notebook_settings(cell | {"In": ["fold: int = 1"], "json": json} | added, groups=["lam"])
    except ValueError as error:
        return str(error)


# %%
assert read() == {"fold": 1, "crf_mask": None}
assert read(fold=2, lam={"mcrf": 0.3}) == {"fold": 2, "crf_mask": None, "lam_mcrf": 0.3}
assert read(crf={"mask": "p"}, extra="lam_atn=1") == {"fold": 1, "crf_mask": "p", "lam_atn": "1"}
assert read(fol=2) == "fol: unknown setting; did you mean 'fold'?"
first = read(lam={"mcrf": 0.3})
assert read(lam={"mcrf": 0.4}, first=first, results=["of a later cell"])["lam_mcrf"] == 0.4, "the cell runs again"
assert read(lamb={}) == "lamb: unknown setting; did you mean 'lam'?"
assert read(_fold=3) == "_fold: unknown setting; did you mean 'fold'?"
assert read(crf={"mask": "p"}, extra="crf_mask=none") == "crf_mask: found 'p' and 'none', expected one of the two"
assert read(crf={"msk": 1}) == "crf_msk: unknown setting; did you mean 'crf_mask'?"
read(lam=0.3)


# %% [markdown]
# ## An error in one line
#
# A traceback helps whoever repairs code. Someone who misspelt a word needs the message only. An error is raised on purpose if the line that
# raised it, the last in the traceback, is a `raise` of this package; IPython then shows what the error's `_render_traceback_` returns.

# %%
#| export
def _on_purpose(error: Exception) -> bool:
    "Whether a line of this package raised it."
    frame, line = list(walk_tb(error.__traceback__))[-1]
    ours = frame.f_globals.get("__name__", "").startswith("attenscribble.")
    return ours and linecache.getline(frame.f_code.co_filename, line, frame.f_globals).lstrip().startswith("raise ")


# %%
#| export
@contextmanager
def short_errors() -> Iterator[None]:
    "What goes wrong inside is shown in a notebook by its message alone if this package raised it on purpose."
    try:
        yield
    except Exception as error:
        if _on_purpose(error):
            shown = [f"{type(error).__name__}: {error}"]
            error._render_traceback_ = lambda: shown  # type: ignore[attr-defined]
        raise


# %%
from attenscribble.basics.errors import one_of

for wrong, short in ((lambda: one_of("fruit", "aple", ["apple"]), True), (lambda: one_of("fruit", "aple", 7), False)):
    try:
        with short_errors():
            wrong()
    except (ValueError, TypeError) as error:
        assert hasattr(error, "_render_traceback_") == short
        print(type(error).__name__, error, sep=": ")


# %% [markdown]
# ## To the terminal
#
# The kernel inherits the error stream of the papermill that started it, and keeps it open under the number that `sys.stderr.fileno()` tells. So a
# notebook can write there. It does so only if papermill started it, and not if papermill itself repeats what the notebook shows
# (`--log-output`). JupyterLab's terminal, where its server writes, stays as it is.

# %%
#| export
def _shows_nothing(
    command: Sequence[str],  # of the process that started this one
) -> bool:
    "Whether this is a papermill that keeps what a notebook prints to itself."
    started = "papermill" in {Path(word).stem for word in command[:2]} or list(command[1:3]) == ["-m", "papermill"]
    return started and "--log-output" not in command


# %%
assert _shows_nothing(["/usr/bin/python3", "/usr/bin/papermill", "train.ipynb", "a.ipynb"])
assert _shows_nothing(["python", "-m", "papermill", "train.ipynb", "a.ipynb"])
assert not _shows_nothing(["papermill", "train.ipynb", "a.ipynb", "--log-output"])
assert not _shows_nothing(["python", "/usr/bin/jupyter-lab", "papermill"])


# %% [markdown]
# A run may outlive its terminal, and must not end with it.

# %%
#| export
class Terminal:
    "A text stream to an open file or terminal; what can no longer be written is dropped."

    def __init__(
        self,
        handle: int,  # of the open file
    ) -> None:
        self.handle, self.encoding = handle, locale.getpreferredencoding(False)

    def write(
        self,
        text: str,  # as it is, control characters included
    ) -> int:  # its length
        "Write at once."
        with suppress(OSError):
            os.write(self.handle, text.encode(self.encoding, errors="replace"))
        return len(text)

    def flush(self) -> None:
        "Nothing is kept back."

    def fileno(self) -> int:
        "The open file's number."
        return self.handle

    def isatty(self) -> bool:
        "Whether somebody may be looking."
        return os.isatty(self.handle)


# %%
#| export
@cache
def papermill_terminal() -> Terminal | None:
    "The error stream of the papermill that runs this notebook; None where no papermill does."
    import psutil

    try:
        parent = psutil.Process().parent()
        if parent is None or not _shows_nothing(parent.cmdline()):
            return None
        return Terminal(os.dup(sys.stderr.fileno()))
    except (psutil.Error, OSError, AttributeError):  # no such stream
        return None


# %% [markdown]
# The bar has the line below papermill's own, which stands still while a cell runs, and vanishes at its end. In a file a bar would be
# noise, so there is none.

# %%
#| export
def terminal_bar(
    **options: Any,  # of tqdm: total, initial, desc, …
) -> tqdm:  # one that shows nothing where there is no terminal
    "A progress bar in the terminal that papermill was started in."
    terminal = papermill_terminal()
    watched = terminal is not None and terminal.isatty()
    return tqdm(mininterval=0.5, file=terminal, position=1, leave=False, dynamic_ncols=True, disable=not watched,
                **options)


# %%
#| export
def announce(
    text: str,  # one line or several
) -> None:
    "Print a text in the notebook, and in the terminal that papermill was started in, in place of papermill's bar."
    print(text)
    if terminal := papermill_terminal():
        terminal.write(("\r\x1b[J" if terminal.isatty() else "\n") + text.rstrip("\n") + "\n")


# %% [markdown]
# This notebook was not started by papermill, so the bar shows nothing and the text appears here alone.

# %%
with terminal_bar(total=3, desc="nobody sees this") as bar:
    bar.update(3)
assert papermill_terminal() is None and bar.disable
announce("only here")

# %% [markdown]
# ## Exercise
#
# **Predict.** What is `lam_mcrf` after `papermill … -y "{crf: {mask: p}, lam: {mcrf: 0.4}}" -p extra lam_atn=1`? Return it.

# %%
from attenscribble.basics.checking import exercise

def check_last(answer):
    assert answer() == read(crf={"mask": "p"}, lam={"mcrf": 0.4}, extra="lam_atn=1")["lam_mcrf"]

def attempt_last():
    ...

exercise(check_last, attempt_last, solution=lambda: 0.4)

# %% [markdown]
# ## Recap
#
# `notebook_settings` reads and checks a notebook's parameters, `short_errors` cuts a traceback to its message, `terminal_bar` and `announce` show
# in the terminal what happens.
