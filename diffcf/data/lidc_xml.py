"""The radiologists' XML of LIDC-IDRI: who outlined what, on which slice, and how it was rated.

A file (`LidcReadMessage`) holds one reading session for each of up to four radiologists. Nodules of 3 mm and more have
characteristics and an outline on every slice; smaller ones have neither, only a point; non-nodules are marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from diffcf.errors import ScanError

# Characteristic -> highest rating of its scale, which starts at 1.
SCALES = {
    "subtlety": 5,
    "internalStructure": 4,
    "calcification": 6,
    "sphericity": 5,
    "margin": 5,
    "lobulation": 5,
    "spiculation": 5,
    "texture": 5,
    "malignancy": 5,
}


@dataclass(frozen=True)
class Outline:
    """A closed line of pixels on one slice: `points` are (x, y) = (column, row), (0, 0) the upper left pixel.

    Its pixels are the first ones outside the nodule. inclusion False: what it encloses is a hole in the nodule.
    """

    sop_uid: str
    inclusion: bool
    points: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Reading:
    """One nodule of 3 mm or more as one radiologist (`reader`, counted within the file) outlined and rated it."""

    reader: int
    name: str
    ratings: dict[str, int]
    outlines: tuple[Outline, ...]


@dataclass(frozen=True)
class Annotations:
    """All rated readings of one series; `unrated` counts the nodules without characteristics (below 3 mm)."""

    series_uid: str
    readings: tuple[Reading, ...]
    unrated: int


def read_annotations(path: str | Path) -> Annotations | None:
    """Read one XML file; None where it is no reading of a CT (the collection's X-rays have files of their own).

    A rating outside its scale (files hold some zeros) counts as not given; a nodule without a malignancy rating counts
    as unrated. Errors: ScanError for damaged XML and for a reading that lacks what places it.
    """
    path = Path(path)
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two: encodings
        raise ScanError(f"{path}: damaged XML ({error}). Fetch the file again.") from error
    if root.tag.rpartition("}")[2] != "LidcReadMessage":
        return None
    series_uid = _text(root, "{*}ResponseHeader/{*}SeriesInstanceUid", path)
    readings, unrated = [], 0
    for reader, session in enumerate(root.findall("{*}readingSession")):
        for nodule in session.findall("{*}unblindedReadNodule"):
            ratings = _ratings(nodule)
            if "malignancy" not in ratings:
                unrated += 1
                continue
            outlines = tuple(_outline(roi, path) for roi in nodule.findall("{*}roi"))
            if not outlines:
                raise ScanError(f"{path}: nodule {_text(nodule, '{*}noduleID', path)!r} is rated but has no <roi>.")
            readings.append(Reading(reader, _text(nodule, "{*}noduleID", path), ratings, outlines))
    return Annotations(series_uid, tuple(readings), unrated)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type: entities are declared there and nowhere else, and no reading has one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called before the first entity is read."""
        raise ValueError(f"it declares the document type {name!r}, and readings declare none")


def _ratings(nodule: ElementTree.Element) -> dict[str, int]:
    ratings = {}
    for name, highest in SCALES.items():
        text = (nodule.findtext(f"{{*}}characteristics/{{*}}{name}") or "").strip()
        if text.isdecimal() and 1 <= int(text) <= highest:
            ratings[name] = int(text)
    return ratings


def _outline(roi: ElementTree.Element, path: Path) -> Outline:
    inclusion = _text(roi, "{*}inclusion", path).upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ScanError(f"{path}: <inclusion> is {inclusion!r}; expected TRUE or FALSE.")
    try:
        points = tuple(
            (int(_text(edge, "{*}xCoord", path)), int(_text(edge, "{*}yCoord", path)))
            for edge in roi.findall("{*}edgeMap")
        )
    except ValueError as error:
        raise ScanError(f"{path}: a coordinate of an <edgeMap> is no whole number ({error}).") from error
    if not points:
        raise ScanError(f"{path}: a <roi> without <edgeMap>: the outline is missing.")
    return Outline(_text(roi, "{*}imageSOP_UID", path), inclusion == "TRUE", points)


def _text(element: ElementTree.Element, tag: str, path: Path) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ScanError(
            f"{path}: <{tag.replace('{*}', '')}> is missing or empty in <{element.tag.rpartition('}')[2]}>."
        )
    return text
