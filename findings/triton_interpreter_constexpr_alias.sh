#!/usr/bin/env bash
# Triton 3.6.0, TRITON_INTERPRET=1: a kernel's parameter is a compile-time constant only where its annotation is spelled
# `tl.constexpr` in the source. Under another name for the same class, `fixed = tl.constexpr`, the decorator still counts it as
# one (`KernelParam.is_constexpr`), but the interpreter compiles the source anew, with annotations as text, compares the text
# and hands the kernel a tensor. A kernel that a GPU runs can therefore stop in the interpreter that is to test it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install triton==3.6.0 numpy==2.2.6 2>/dev/null
cat > "$work/kernels.py" <<'PY'
from importlib.metadata import version

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

fixed = tl.constexpr
seen = []


def spelled(size: tl.constexpr):
    seen.append(type(size).__name__)
    tl.arange(0, size)


def aliased(size: fixed):
    seen.append(type(size).__name__)
    tl.arange(0, size)


def runs(kernel):
    try:
        triton.jit(kernel)[(1,)](4)
        return "runs"
    except Exception as error:
        return type(error).__name__


print("Triton", version("triton"))
found = []
for kernel in (spelled, aliased):
    found.append((JITFunction(kernel).params[0].is_constexpr, runs(kernel), seen[-1]))
    print(f"{kernel.__name__}: counted as constexpr {found[-1][0]}; in the interpreter it {found[-1][1]}, given a {seen[-1]}")
(spelled_counts, spelled_runs, spelled_kind), (alias_counts, alias_runs, alias_kind) = found
changed = not (spelled_counts and alias_counts and spelled_runs == "runs" and alias_runs != "runs" and alias_kind == "tensor")
raise SystemExit("this has changed" if changed else 0)
PY
TRITON_INTERPRET=1 "$work/venv/bin/python" "$work/kernels.py"
