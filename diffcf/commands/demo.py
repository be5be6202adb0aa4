"""`diffcf demo`: make a CT-like scan, write it as DICOM, and explain it as a user would."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from diffcf.commands.explain import check_seed, explain, pick_device
from diffcf.options import DemoOptions, ExplainOptions

SIZE = 256  # pixels a side of the scan's slices
FIRST_SEED = 900_000_000  # beyond those of any set that models are trained on


def demo(options: DemoOptions) -> int:
    """Write OUT/scan (a DICOM series of a fibrotic lung that was never in a training set) and OUT/explanation.

    Returns the exit code of the explanation. Where there is none, a new scan does not stay, either. Errors: ConfigError
    of seed and device, and where either folder holds something else.
    """
    from diffcf.data.phantom import fibrosis_scene
    from diffcf.folders import check_free, whole_folder
    from diffcf.report import REPORT_FILES
    from diffcf.scans.write_dicom import write_dicom_series

    check_seed(options.seed)
    pick_device(options.device)
    out = Path(options.out)
    earlier = (out / "scan").exists()
    check_free(out / "explanation", REPORT_FILES, overwrite=options.overwrite)
    scene = fibrosis_scene(FIRST_SEED + options.seed, size=SIZE)
    with whole_folder(out / "scan", ["*.dcm"], overwrite=options.overwrite) as folder:
        write_dicom_series(scene.scan, folder, seed=options.seed)
    print(f"made a CT phantom, {scene.classes[scene.label]!r}, and wrote it to {out / 'scan'}")
    asked = ExplainOptions(
        scan=str(out / "scan"),
        classifier="phantom",
        out=str(out / "explanation"),
        seed=options.seed,
        device=options.device,
        overwrite=options.overwrite,
    )
    try:
        return explain(asked)
    except BaseException:
        if not earlier:
            shutil.rmtree(out / "scan", ignore_errors=True)
            with suppress(OSError):
                out.rmdir()
        raise
