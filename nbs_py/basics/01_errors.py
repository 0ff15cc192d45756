# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What an error says
#
# > Where it is, what was found there, what was expected: three facts, in this order, in every message.
#
# Data files have faults, and names typed by hand can be misspelt. A message that names the file or the field, what was found in it and
# what was expected lets the reader repair it without reading code. Every error of this package is written like that.

# %%
#| default_exp basics.errors

# %%
#| export
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


# %% [markdown]
# ## A fault in the data
#
# `DataError` is for the content of files: a scan that is cut off, a value without a meaning.

# %%
#| export
class DataError(ValueError):
    "A fault in the data: where it is, what was found there, what was expected."

    def __init__(
        self,
        where: object,  # file, folder or field; alone, it is the whole message
        found: object = None,  # what is there
        expected: object = None,  # what should be there
    ) -> None:
        super().__init__(str(where) if expected is None else f"{where}: found {found}, expected {expected}")


# %%
assert str(DataError("a.nii.gz", "2 dimensions", "3")) == "a.nii.gz: found 2 dimensions, expected 3"
assert str(DataError("a complete sentence")) == "a complete sentence" and issubclass(DataError, ValueError)


# %% [markdown]
# Later chapters make every fault once and look at what is said of it.

# %%
#| export
def refused(
    call: Callable[[], object],  # what has to be refused
    *words: str,  # that the message has to hold
    folder: Path | str = "",  # left out of what is returned, such as a temporary one
) -> str:  # the message
    "Run something that must raise DataError with these words in its message. Raises AssertionError where it does not."
    try:
        call()
    except DataError as error:
        assert all(word in str(error) for word in words), error
        return str(error).replace(str(folder), "…") if folder else str(error)
    raise AssertionError(f"accepted, but expected a DataError with {words}")


# %%
def no_scan():
    raise DataError("a.nii.gz", "2 dimensions", "3")


assert refused(no_scan, "a.nii.gz", "expected 3") == "a.nii.gz: found 2 dimensions, expected 3"


# %% [markdown]
# ## A misspelt name
#
# Methods, datasets and profiles are chosen by name. For a name that does not exist, the message lists the choices and suggests the nearest.

# %%
#| export
def did_you_mean(
    word: str,  # that is not known
    known: Iterable[str],  # the words there are
) -> str:  # "; did you mean 'method'?", or "" where none is near
    "The nearest known word, as the end of a message."
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# %%
#| export
def one_of(
    field: str,  # what is being chosen, for the message
    value: str,  # what was chosen
    choices: Iterable[str],  # what may be chosen
) -> str:  # the value
    "The value, if it is one of the choices. Raises ValueError with the choices and the nearest of them."
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{field}: found {value!r}, expected one of {', '.join(choices)}"
                         + did_you_mean(str(value).lower(), choices))
    return value


# %%
assert one_of("fruit", "pear", ("apple", "pear")) == "pear"
try:
    one_of("fruit", "aple", ("apple", "pear"))
    raise RuntimeError("a wrong name passed")
except ValueError as error:
    assert str(error) == "fruit: found 'aple', expected one of apple, pear; did you mean 'apple'?"


# %% [markdown]
# A setting that does not exist is answered alike, wherever it was given: in a notebook, on a command line, in Python. There are too many to list
# them all.

# %%
#| export
def unknown_setting(
    name: str,  # as it was given
    known: Sequence[str],  # the settings there are
) -> str:  # one line, for an error
    "What is said of a setting that nobody knows, with the nearest that is known."
    return f"{name}: unknown setting{did_you_mean(name, known)}"


# %%
assert unknown_setting("methd", ["method", "fold"]) == "methd: unknown setting; did you mean 'method'?"


# %% [markdown]
# ## A name that is missing
#
# In a terminal a variable that is not set is nothing, and the words behind it move up: `export-nnunet acdc $RAW fold=1` asks for a folder named
# `fold=1`. Quoted, it is an empty text, which Python takes for the current folder. Neither is what anybody meant.

# %%
#| export
def named_place(
    field: str,  # what it is the place of, for the message
    place: Path | str,  # a folder or file, as it was given
) -> Path | str:  # the same
    "A folder or file whose name was given. Raises DataError for an empty text, and for a word such as fold=1."
    if isinstance(place, str) and (not place.strip() or re.match(r"[^/\\]*=", place)):
        otherwise = f", or ./{place} where it is called so" if place.strip() else ""
        raise DataError(field, f"{place!r}: a folder's name is missing (an unset variable?)",
                        f"a folder or file{otherwise}")
    return place


# %%
assert named_place("OUT", "./fold=1") == "./fold=1" and named_place("OUT", Path("fold=1")) == Path("fold=1")
for word in ("", "fold=1", "root=data/my-scans"):
    print(refused(lambda word=word: named_place("OUT", word), "a folder's name is missing"))

# %% [markdown]
# ## Recap
#
# `DataError` for faults in files, `one_of` for names that are chosen from a list, `named_place` for folders. [The next chapter](02_files.ipynb) writes files.
