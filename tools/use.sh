#!/usr/bin/env bash
# Use an installed package as a stranger would: train on the phantom, segment a scan, import it. First argument: the
# folder with its programs. Run it where nothing of the project lies.
set -euo pipefail
bin=$1
"$bin/attenscribble" --help >/dev/null
"$bin/attenscribble" methods
"$bin/attenscribble" train dataset=phantom method=pce size=32 batch=2 iterations=4 eval_every=2 log_every=2 \
  data_patients=5 data_side=32 data_slices=3 device=cpu output=runs
"$bin/python" - <<'PYTHON'
from pathlib import Path

import nibabel as nib
import numpy as np

import attenscribble

(checkpoint,) = Path("runs").glob("*/checkpoint.pt")
Path("scans").mkdir()
scan = np.random.default_rng(0).integers(0, 900, (40, 36, 4)).astype(np.int16)
nib.save(nib.Nifti1Image(scan, np.diag([1.5, 1.5, 8, 1])), "scans/a.nii.gz")
print(attenscribble.__version__, checkpoint)
PYTHON
"$bin/attenscribble" predict --checkpoint runs/*/checkpoint.pt scans masks
test -s masks/a.nii.gz
