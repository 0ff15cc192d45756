# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How this book checks itself
#
# > Two functions are equal when their values and their gradients are; and an exercise says whether you were right.
#
# **How do we know that fast code computes what its equation says?** Each chapter first writes the equation down as slow, obvious code and then
# checks that the fast form agrees with it. This chapter holds the three tools for that: a check of equality, a measurement of cost, and exercises
# that mark themselves.

# %%
#| default_exp basics.checking

# %%
#| export
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import torch


# %% [markdown]
# ## Equal means value *and* gradient
#
# A fast form is right when, in float64, it gives the reference's value and the reference's gradient in every input.
# All chapters check that with `assert_same`.

# %%
#| export
def assert_same(
    fast: Callable,  # the form to be checked: float tensors in, a scalar tensor out
    reference: Callable,  # the obviously correct form, same arguments
    *inputs: torch.Tensor,  # float tensors; compared in float64
    **tolerances: float,  # rtol and atol of `torch.testing.assert_close`
) -> None:
    "Check that two forms agree in value and in the gradient of every input. Raises AssertionError."
    def run(form: Callable) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().double().requires_grad_() for x in inputs]
        value = form(*leaves)
        return (value, *torch.autograd.grad(value, leaves))

    torch.testing.assert_close(run(fast), run(reference), **tolerances)  # type: ignore[arg-type]  # these two alone


# %%
x = torch.randn(5)
assert_same(lambda x: x.square().sum(), lambda x: sum(v * v for v in x), x)
try:  # same value at 0, another slope: the gradient gives it away
    assert_same(lambda x: x.sum(), lambda x: (2 * x).sum(), torch.zeros(3))
    raise RuntimeError("a wrong gradient passed")
except AssertionError:
    pass


# %% [markdown]
# ## What does it cost?
#
# `cost` measures one call and prints as one line: seconds, peak memory, threads. The numbers show orders of magnitude; no test depends on them.

# %%
#| export
@dataclass(frozen=True)
class Cost:
    "What one call took."

    seconds: float
    peak_mib: float  # growth of the process's resident memory above its start, sampled every millisecond
    threads: int

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s, {self.peak_mib:.0f} MiB, {self.threads} threads, {torch.get_num_threads()} used"


# %%
#| export
@contextmanager
def _memory_watched() -> Iterator[list[int]]:
    "Resident memory of the process in bytes, at the start and at its peak so far, while the context is open."
    import psutil  # only here: the losses and networks should not wait for it

    memory, done = psutil.Process().memory_info, Event()
    start_and_peak = [memory().rss] * 2

    def sample() -> None:
        while not done.wait(0.001):
            start_and_peak[1] = max(start_and_peak[1], memory().rss)

    sampler = Thread(target=sample)
    sampler.start()
    try:
        yield start_and_peak
    finally:
        done.set()
        sampler.join()


# %%
#| export
def cost(
    call: Callable[[], object],  # what to measure; called twice, the first time to warm up
) -> Cost:  # of the second call
    "Seconds and peak memory of a call on the CPU."
    call()
    with _memory_watched() as memory:
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
    return Cost(seconds, (memory[1] - memory[0]) / 2**20, os.cpu_count() or 1)


# %%
print(cost(lambda: torch.randn(1000, 1000) @ torch.randn(1000, 1000)))


# %% [markdown]
# ## Exercises that check themselves
#
# Each chapter ends with a few. You replace the body of the attempt and run the cell; `exercise` tells you whether the
# check passes. The solution stands below, and the check runs on it first, so that no exercise is impossible.

# %%
#| export
def exercise(
    check: Callable[[Callable], None],  # raises AssertionError unless the function it is given is right
    attempt: Callable,  # yours
    solution: Callable,  # ours
) -> None:
    "Run a check on the attempt and say how it went; the solution has to pass."
    check(solution)
    try:
        check(attempt)
    except Exception as error:
        print(f"not yet: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    else:
        if os.environ.get("ATTENSCRIBBLE_CHECK_BOOK"):
            raise AssertionError(f"the untouched attempt of {check.__name__} passes: the exercise asks nothing")
        print("correct")


# %%
def check_double(f):
    assert f(3) == 6

def attempt_double(x):
    ...  # your code here

exercise(check_double, attempt_double, solution=lambda x: 2 * x)

# %% [markdown]
# ## Recap
#
# `assert_same` and `cost` check code, `exercise` checks answers. [The next chapter](01_errors.ipynb): what an error message must say.
