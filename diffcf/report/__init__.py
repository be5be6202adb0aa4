"""Reports: what an explanation leaves on disk."""

from pathlib import Path

from diffcf.report.case import Case, Verdict
from diffcf.report.document import document, write_document
from diffcf.report.panel import draw_panel, write_panel
from diffcf.report.path import write_animation, write_strip
from diffcf.report.volumes import counterfactual_volume, difference_volume, write_volumes

__all__ = [
    "REPORT_FILES",
    "Case",
    "Verdict",
    "counterfactual_volume",
    "difference_volume",
    "document",
    "draw_panel",
    "write_animation",
    "write_document",
    "write_panel",
    "write_report",
    "write_strip",
    "write_volumes",
]


# Of an explanation's folder; the first makes it one.
REPORT_FILES = (
    "explanation.json", "panel.png", "path.png", "path.gif", "counterfactual.nii.gz", "difference.nii.gz",
)  # fmt: skip


def write_report(case: Case, folder: Path) -> list[Path]:
    """Write every file of a report to an existing folder and return their paths, explanation.json first."""
    return [
        write_document(case, folder / "explanation.json"),
        write_panel(case, folder / "panel.png"),
        write_strip(case, folder / "path.png"),
        write_animation(case, folder / "path.gif"),
        *write_volumes(case, folder),
    ]
