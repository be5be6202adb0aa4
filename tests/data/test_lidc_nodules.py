"""From readings to nodules: which voxels an outline encloses, and which readings mean the same nodule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import lidc_download as made
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from skimage.draw import polygon_perimeter

from diffcf.data.lidc_nodules import (
    Nodule,
    crop_scan,
    equivalent_diameter,
    group_readings,
    label_of,
    voxels_of,
)
from diffcf.data.lidc_xml import Outline, Reading
from diffcf.errors import ScanError
from diffcf.types import Scan

SHAPE = made.SHAPE
UIDS = [f"1.2.3.{z}" for z in range(SHAPE[0])]


def moved_to(z: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[2, 3] = z
    return matrix


PLACEMENT = {uid: moved_to(z) for z, uid in enumerate(UIDS)}


def volume_of(*outlines: tuple[int, Sequence[tuple[int, int]], bool]) -> np.ndarray:
    """Bool "z y x" of what one reading's outlines (slice, points, inclusion) enclose."""
    reading = Reading(0, "N", {}, tuple(Outline(UIDS[z], inside, tuple(points)) for z, points, inside in outlines))
    voxels = voxels_of(reading, PLACEMENT, SHAPE, "series")
    assert (np.diff(voxels) > 0).all()  # sorted, each once
    volume = np.zeros(SHAPE, dtype=bool)
    volume.flat[voxels] = True
    return volume


def slice_of(points: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bool "h w" of what one outline encloses."""
    volume = volume_of((3, points, True))
    assert not volume[[0, 1, 2, 4, 5]].any()
    return volume[3]


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    region = np.zeros(SHAPE[1:], dtype=bool)
    region[top : bottom + 1, left : right + 1] = True
    return region


@pytest.mark.parametrize(
    ("malignancy", "benign", "malignant", "blank"),
    [
        (1, 0, 0, 0),
        (2.75, 0, 0, 0),
        (math.nextafter(3, 0), 0, 0, 0),
        (3, 0, 1, None),
        (math.nextafter(3, 4), 1, 1, 1),
        (5, 1, 1, 1),
    ],
)
def test_labels(malignancy: float, benign: int, malignant: int, blank: int | None) -> None:
    assert label_of(malignancy) == label_of(malignancy, "benign") == benign
    assert label_of(malignancy, "malignant") == malignant
    assert label_of(malignancy, "blank") == blank


def test_diameter_of_a_disc() -> None:
    """A disc of 20 mm, drawn on pixels of two sizes, measures 20 mm."""
    for rows, columns in [(0.5, 0.5), (0.4, 0.8)]:
        y, x = np.indices((200, 200), dtype=float)
        pixels = int((((y - 100) * rows) ** 2 + ((x - 100) * columns) ** 2 <= 100).sum())
        assert equivalent_diameter(pixels, (rows, columns)) == pytest.approx(20, rel=0.005)
    assert equivalent_diameter(0, (1, 1)) == 0


@pytest.mark.parametrize("region", [block(5, 7, 9, 20), made.disc(20, 24, 7.3), made.disc(20.5, 23.5, 2.6)])
def test_an_outline_encloses_the_region_that_it_was_drawn_around(region: np.ndarray) -> None:
    points = made.around(region)
    for line in (points, points[:-1], points[::-1], points[5:] + points[1:6]):
        np.testing.assert_array_equal(slice_of(line), region)


def test_a_hollow_outline_given_by_its_corners() -> None:
    """The letter U: what lies between its legs is outside."""
    corners = [(10, 5), (16, 5), (16, 20), (24, 20), (24, 5), (30, 5), (30, 30), (10, 30)]
    expected = block(6, 11, 29, 15) | block(21, 11, 29, 29) | block(6, 25, 29, 29)
    np.testing.assert_array_equal(slice_of(corners), expected)
    np.testing.assert_array_equal(slice_of([*corners, corners[0]]), expected)


def test_outlines_are_filled_as_scipy_fills_them() -> None:
    """Closed lines of neighbouring pixels around dented shapes, against filling by morphology."""
    random = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for _ in range(40):
        wave = 1 + 0.3 * np.cos(2 * angles + random.uniform(0, 6)) + 0.2 * np.cos(3 * angles + random.uniform(0, 6))
        radius = random.uniform(2, 12) * wave
        y, x = polygon_perimeter(
            np.rint(20 + radius * np.sin(angles)).astype(int), np.rint(24 + radius * np.cos(angles)).astype(int)
        )
        line = np.zeros(SHAPE[1:], dtype=bool)
        line[y, x] = True
        inside = binary_fill_holes(line) & ~line
        np.testing.assert_array_equal(
            slice_of(list(zip(x.tolist(), y.tolist(), strict=True))), inside if inside.any() else line
        )


@pytest.mark.parametrize(
    "points", [[(8, 6)], [(8, 6), (8, 6)], [(8, 6), (9, 6)], [(8, 6), (9, 6), (9, 7), (8, 7), (8, 6)]]
)
def test_an_outline_that_encloses_nothing_is_the_nodule_itself(points: list[tuple[int, int]]) -> None:
    expected = np.zeros(SHAPE[1:], dtype=bool)
    for x, y in points:
        expected[y, x] = True
    np.testing.assert_array_equal(slice_of(points), expected)


@pytest.mark.parametrize("region", [block(0, 0, 4, 3), block(30, 40, 39, 47), block(0, 0, 39, 47)])
def test_a_nodule_at_the_edge_of_the_slice(region: np.ndarray) -> None:
    """The outline, one pixel outside the nodule, leaves the slice."""
    y, x = np.nonzero(region)
    np.testing.assert_array_equal(slice_of(made.box(y.min(), x.min(), y.max(), x.max())), region)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_holes_and_their_outlines_are_no_part_of_the_nodule(order: tuple[int, ...]) -> None:
    outlines = [
        (2, made.box(5, 5, 20, 25), True),
        (2, made.box(10, 10, 12, 14), False),
        (2, [(20, 8)], False),  # a hole of one pixel
    ]
    expected = block(5, 5, 20, 25) & ~block(9, 9, 13, 15)
    expected[8, 20] = False
    volume = volume_of(*(outlines[k] for k in order))
    np.testing.assert_array_equal(volume[2], expected)


def test_a_hole_counts_on_its_own_slice_only() -> None:
    volume = volume_of(
        (2, made.box(5, 5, 20, 25), True), (3, made.box(5, 5, 20, 25), True), (3, made.box(5, 5, 10, 25), False)
    )
    np.testing.assert_array_equal(volume[2], block(5, 5, 20, 25))
    np.testing.assert_array_equal(volume[3], block(12, 5, 20, 25))


def test_outlines_on_one_slice_and_on_several_are_joined() -> None:
    volume = volume_of(
        (4, made.box(3, 3, 6, 6), True), (1, made.box(8, 8, 9, 9), True), (4, made.box(5, 5, 9, 9), True)
    )
    expected = np.zeros(SHAPE, dtype=bool)
    expected[4] = block(3, 3, 6, 6) | block(5, 5, 9, 9)
    expected[1] = block(8, 8, 9, 9)
    np.testing.assert_array_equal(volume, expected)


def test_outlines_that_cannot_be_placed_are_refused() -> None:
    with pytest.raises(ScanError, match=r"series: nodule 'N' has an outline on slice 9\.9\.9, which the series lacks"):
        voxels_of(Reading(0, "N", {}, (Outline("9.9.9", True, ((1, 1),)),)), PLACEMENT, SHAPE, "series")
    with pytest.raises(ScanError, match="series: the outlines of nodule 'N' enclose nothing"):
        volume_of((2, made.box(5, 5, 9, 9), True), (2, made.box(4, 4, 10, 10), False))


def scan(spacing: tuple[float, float, float] = (2.0, 0.5, 0.8)) -> Scan:
    z, y, x = spacing
    return crop_scan(np.zeros(SHAPE), spacing, np.diag([-x, -y, z, 1.0]), "made")


def solid(region: np.ndarray, *slices: int) -> np.ndarray:
    volume = np.zeros(SHAPE, dtype=bool)
    volume[list(slices)] = region
    return volume


def group(marks: Sequence[tuple[int, np.ndarray]], on: Scan | None = None) -> list[Nodule]:
    """Nodules of (reader, bool "z y x"); readings are called by their place, "0", "1", ..."""
    readings = [Reading(reader, str(place), {}, ()) for place, (reader, _) in enumerate(marks)]
    return group_readings(readings, [np.flatnonzero(volume) for _, volume in marks], on or scan())


def names(nodules: Sequence[Nodule]) -> list[str]:
    return [" ".join(reading.name for reading in nodule.readings) for nodule in nodules]


@pytest.mark.parametrize(("readers", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_consensus_is_what_half_of_the_readers_included(readers: int, needed: int) -> None:
    marks = [(k, solid(block(5 + k, 5, 15 + 2 * k, 12), 2, 3)) for k in range(readers)]
    (nodule,) = group(marks)
    expected = np.sum([volume for _, volume in marks], axis=0) >= needed
    np.testing.assert_array_equal(nodule.voxels, np.flatnonzero(expected))
    assert len(nodule.readings) == readers


def test_where_no_half_agrees_the_consensus_is_everything() -> None:
    every = solid(block(5, 6, 13, 14), 2)
    x = np.indices(SHAPE)[2]
    (nodule,) = group([(k, every & (x % 3 == k)) for k in range(3)])
    np.testing.assert_array_equal(nodule.voxels, np.flatnonzero(every))


def test_two_nodules_of_one_reader_stay_two() -> None:
    """Whatever a colleague outlined across both, and however much they overlap."""
    left, right, across = solid(block(5, 5, 12, 12), 2), solid(block(5, 13, 12, 22), 2), solid(block(5, 5, 12, 22), 2)
    assert names(group([(0, left), (0, right)])) == ["0", "1"]
    assert names(group([(0, left), (0, left)])) == ["0", "1"]
    assert names(group([(0, left), (0, right), (1, across)])) == ["0", "1 2"]  # it shares most with the right one
    assert names(group([(0, left), (0, right), (1, across), (2, left)])) == ["0 3", "1 2"]
    assert names(group([(1, across), (0, left), (2, across), (0, right)])) == ["0 2 3", "1"]


def test_readings_apart_are_nodules_of_their_own() -> None:
    marks = [(0, solid(block(5, 5, 8, 8), 1)), (1, solid(block(20, 30, 24, 34), 1)), (2, solid(block(5, 5, 8, 8), 5))]
    assert names(group(marks)) == ["0", "1", "2"]


def test_readings_that_share_no_voxel_are_joined_by_their_distance_in_mm() -> None:
    """Discs of radius 6 pixels of 0.5 mm on slices 2 and 3: of 2 mm pitch they are one nodule, of 5 mm two.

    113 pixels of 0.25 mm2 and 2 mm are a ball of 2.38 mm radius; at 5 mm, of 3.23 mm.
    """
    disc = made.disc(20, 20, 6)
    assert int(disc.sum()) == 113
    marks = [(0, solid(disc, 2)), (1, solid(disc, 3))]
    assert names(group(marks, scan((2.0, 0.5, 0.5)))) == ["0 1"]
    assert names(group(marks, scan((5.0, 0.5, 0.5)))) == ["0", "1"]


def test_the_smaller_reading_sets_the_distance() -> None:
    """A hole in one reading, filled by another: centres that are nearer than the radius of the smaller ball."""
    shell = block(5, 5, 25, 25) & ~block(10, 10, 20, 20)
    assert names(group([(0, solid(shell, 2)), (1, solid(block(14, 14, 16, 16), 2))], scan((1.0, 1.0, 1.0)))) == ["0 1"]
    # 9 voxels: radius 1.29 mm, and now 4 mm off the centre
    assert names(group([(0, solid(shell, 2)), (1, solid(block(18, 14, 20, 16), 2))], scan((1.0, 1.0, 1.0)))) == [
        "0",
        "1",
    ]


def test_the_greatest_overlap_decides_and_then_the_nearest() -> None:
    middle = block(14, 14, 15, 15)  # 4 pixels in the very middle of the third reading
    shifted = block(10, 12, 19, 21) & ~middle
    marks = [(0, solid(middle, 2)), (0, solid(shifted, 2)), (1, solid(block(10, 10, 19, 19), 2))]
    assert names(group(marks)) == ["0", "1 2"]
    shell = solid(block(5, 5, 25, 25) & ~block(10, 10, 20, 20), 2)
    above, within = solid(block(14, 14, 16, 16), 3), solid(block(14, 14, 16, 16), 2)  # 1 mm and 0 mm from its centre
    assert names(group([(0, above), (1, shell)], scan((1.0, 1.0, 1.0)))) == ["0 1"]
    assert names(group([(0, above), (0, within), (1, shell)], scan((1.0, 1.0, 1.0)))) == ["0", "1 2"]


def test_the_order_of_the_readers_does_not_matter() -> None:
    marks = [
        (0, solid(block(5, 5, 12, 12), 2)),
        (0, solid(block(5, 14, 12, 22), 2)),
        (1, solid(block(5, 7, 12, 16), 2)),
        (2, solid(block(4, 15, 11, 22), 2)),
        (3, solid(block(25, 25, 30, 30), 3)),
    ]

    def parts(order: Sequence[int]) -> set[tuple[frozenset[int], bytes]]:
        nodules = group([marks[k] for k in order])
        assert sum(len(nodule.readings) for nodule in nodules) == len(marks)
        return {
            (frozenset(order[int(reading.name)] for reading in nodule.readings), nodule.voxels.tobytes())
            for nodule in nodules
        }

    first = parts(range(5))
    assert {members for members, _ in first} == {frozenset({0, 2}), frozenset({1, 3}), frozenset({4})}
    assert all(parts(order) == first for order in itertools.permutations(range(5)))


def test_ratings_are_means_over_those_who_rated() -> None:
    rated = [{"malignancy": 5, "margin": 2}, {"malignancy": 4}, {"malignancy": 1, "margin": 5}]
    nodule = Nodule(tuple(Reading(k, "", ratings, ()) for k, ratings in enumerate(rated)), np.arange(3))
    assert nodule.rating("malignancy") == pytest.approx(10 / 3)
    assert nodule.rating("margin") == 3.5
    assert nodule.rating("texture") is None
