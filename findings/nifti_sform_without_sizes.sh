#!/usr/bin/env bash
# nibabel 5.4.2 and SimpleITK 2.5.7 read two different voxel sizes from one valid NIfTI file: its sform gives directions of
# length 1, as users quote the headers of ACDC's release, and its qform and pixdim give the sizes. nibabel takes the sform for
# the affine, so its columns say 1 × 1 × 1 mm, while `header.get_zooms()` of the same image says 1.5 × 1.25 × 10; no warning.
# SimpleITK takes the qform: 1.5 × 1.25 × 10, with a warning of "unexpected scales in sform" on the stream of errors. With the
# sform alone (qform_code 0) SimpleITK drops it too, though the header then names no other coordinates. Distances such as
# HD95, computed from the affine, are wrong by these factors.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install nibabel==5.4.2 numpy==2.4.6 simpleitk==2.5.7 2>/dev/null
cat > "$work/sizes.py" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

print("nibabel", version("nibabel"), "and SimpleITK", version("simpleitk"))
found = []
for qform_code in (1, 0):
    scan = nib.Nifti1Image(np.zeros((4, 5, 3), np.int16), None)
    scan.header.set_xyzt_units("mm")
    scan.header.set_qform(np.diag([-1.5, -1.25, 10, 1]), qform_code)  # writes pixdim too
    scan.header.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
    path = Path(sys.argv[1]) / f"scan{qform_code}.nii"
    path.write_bytes(scan.to_bytes())
    read = nib.load(path)
    columns = [float(mm) for mm in np.linalg.norm(read.affine[:3, :3], axis=0)]
    zooms = [float(mm) for mm in read.header.get_zooms()]
    itk = list(sitk.ReadImage(str(path)).GetSpacing())
    print(f"qform_code {qform_code}: nibabel's affine {columns}, its zooms {zooms}, SimpleITK {itk}")
    found.append((columns, zooms, itk))
true = [1.5, 1.25, 10.0]
raise SystemExit("this has changed" if found != [([1.0, 1.0, 1.0], true, true)] * 2 else 0)
PY
"$work/venv/bin/python" "$work/sizes.py" "$work"
