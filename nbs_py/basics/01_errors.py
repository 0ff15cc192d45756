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
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


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
# ## A misspelt name
#
# Methods, datasets and profiles are chosen by name. For a name that does not exist, the message lists the choices and suggests the nearest.

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
        near = get_close_matches(str(value).lower(), choices, n=1)
        raise ValueError(f"{field}: found {value!r}, expected one of {', '.join(choices)}"
                         + (f"; did you mean {near[0]!r}?" if near else ""))
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
    near = get_close_matches(name, known, n=1)
    return f"{name}: unknown setting" + (f"; did you mean {near[0]!r}?" if near else "")


# %%
assert unknown_setting("methd", ["method", "fold"]) == "methd: unknown setting; did you mean 'method'?"

# %% [markdown]
# ## Recap
#
# `DataError` for faults in files, `one_of` for names that are chosen from a list. [The next chapter](02_files.ipynb) writes files.
