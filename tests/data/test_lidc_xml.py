"""The radiologists' XML: what is read from it, and that nothing in it is trusted."""

from __future__ import annotations

from pathlib import Path

import lidc_download as made
import pytest

from diffcf.data.lidc_xml import Annotations, Outline, Reading, read_annotations
from diffcf.errors import ScanError

SQUARE = [(10, 20), (11, 20), (12, 21), (10, 20)]
RING = [(5, 5)]
BODY = made.nodule("Nodule 001", made.roi("1.2.3.1", SQUARE))


def read(folder: Path, text: str | bytes) -> Annotations | None:
    path = folder / "069.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(path)


def readings(folder: Path, *marks: str) -> tuple[Reading, ...]:
    found = read(folder, made.message("1.2.3", marks))
    assert found is not None
    return found.readings


def test_who_marked_what(tmp_path: Path) -> None:
    first = [
        made.small_nodule("0", "1.2.3.9", 177, 353),
        made.nodule("Nodule 001", made.roi("1.2.3.1", SQUARE), made.roi("1.2.3.1", RING, "FALSE"), malignancy=5),
        made.non_nodule("2", "1.2.3.9", 1, 2),
        made.nodule("3", made.roi("1.2.3.2", RING, "True"), calcification=2),
    ]
    third = [made.nodule("IL057_1", made.roi("1.2.3.2", SQUARE)), made.small_nodule("9", "1.2.3.9", 1, 1)]
    found = read(tmp_path, made.message("1.2.3", first, [], third))
    assert found == Annotations(
        series_uid="1.2.3",
        readings=(
            Reading(
                0,
                "Nodule 001",
                made.RATINGS | {"malignancy": 5},
                (Outline("1.2.3.1", True, tuple(SQUARE)), Outline("1.2.3.1", False, ((5, 5),))),
            ),
            Reading(0, "3", made.RATINGS | {"calcification": 2}, (Outline("1.2.3.2", True, ((5, 5),)),)),
            Reading(2, "IL057_1", made.RATINGS, (Outline("1.2.3.2", True, tuple(SQUARE)),)),
        ),
        unrated=2,
    )


def test_a_namespace_is_no_condition(tmp_path: Path) -> None:
    text = made.message("1.2.3", [BODY])
    bare = text.replace(' xmlns="http://www.nih.gov"', "")
    assert bare != text
    assert read(tmp_path, bare) == read(tmp_path, text) == read(tmp_path, text.replace("nih.gov", "other.org"))


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("subtlety", "0", None),
        ("subtlety", "1", 1),
        ("subtlety", "6", None),
        ("calcification", "6", 6),
        ("calcification", "7", None),
        ("internalStructure", "4", 4),
        ("internalStructure", "5", None),
        ("texture", " 3\n", 3),
        ("texture", "", None),
        ("margin", "3.5", None),
        ("margin", "-1", None),
        ("lobulation", "\u00b2", None),  # a superscript two is a digit, but no number
    ],
)
def test_a_rating_outside_its_scale_is_not_given(tmp_path: Path, name: str, given: str, kept: int | None) -> None:
    (reading,) = readings(tmp_path, made.nodule("1", made.roi("1.2.3.1", SQUARE), **{name: given}))
    assert reading.ratings.get(name) == kept
    assert set(reading.ratings) | {name} == set(made.RATINGS)


@pytest.mark.parametrize("malignancy", ["0", "6", "", "x"])
def test_a_nodule_without_malignancy_is_unrated(tmp_path: Path, malignancy: str) -> None:
    marks = [made.nodule("1", made.roi("1.2.3.1", SQUARE), malignancy=malignancy), BODY]
    marks.append("<unblindedReadNodule><noduleID>2</noduleID><characteristics/></unblindedReadNodule>")
    found = read(tmp_path, made.message("1.2.3", marks))
    assert found is not None
    assert (len(found.readings), found.unrated) == (1, 2)


@pytest.mark.parametrize("root", ["IdriReadMessage", "html", "lidcReadMessage"])
def test_other_xml_is_no_reading_of_a_ct(tmp_path: Path, root: str) -> None:
    text = made.message("1.2.3", [BODY]).replace("LidcReadMessage", root)
    assert read(tmp_path, text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (made.message("", [BODY]), "<ResponseHeader/SeriesInstanceUid> is missing or empty in <LidcReadMessage>"),
        (made.message("1.2", [made.nodule("7")]), "nodule '7' is rated but has no <roi>"),
        (made.message("1.2", [made.nodule("", made.roi("1.2.1", SQUARE))]), "<noduleID> is missing or empty"),
        (made.message("1.2", [made.nodule("7", made.roi("", SQUARE))]), "<imageSOP_UID> is missing or empty in <roi>"),
        (made.message("1.2", [made.nodule("7", made.roi("1.2.1", []))]), "<roi> without <edgeMap>"),
        (made.message("1.2", [made.nodule("7", made.roi("1.2.1", SQUARE, "maybe"))]), "'MAYBE'; expected TRUE or"),
        (made.message("1.2", [made.nodule("7", made.roi("1.2.1", SQUARE, ""))]), "<inclusion> is missing"),
        (made.message("1.2", [BODY]).replace(">11<", ">11.5<"), "no whole number"),
        (made.message("1.2", [BODY]).replace("<xCoord>11</xCoord>", ""), "<xCoord> is missing or empty in <edgeMap>"),
    ],
)
def test_a_reading_that_lacks_its_place_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ScanError) as error:
        read(tmp_path, text)
    assert str(tmp_path / "069.xml") in str(error.value)
    assert says in str(error.value)


WHOLE = made.message("1.2.3", [BODY]).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\0",
        b"\x89PNG\r\n\x1a\n",
        WHOLE[: len(WHOLE) // 2],
        WHOLE.replace(b"</LidcReadMessage>", b""),
        WHOLE.replace(b"<inclusion>", b"<inclusion"),
        WHOLE.replace(b"Nodule 001", b"Nodule \xff"),
        WHOLE.replace(b"UTF-8", b"UTF-16"),
        WHOLE.replace(b"UTF-8", b"nonsense"),
        WHOLE.replace(b"UTF-8", b"shift_jis"),
    ],
)
def test_damaged_xml_is_refused_by_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ScanError, match=r"damaged XML .*Fetch the file again") as error:
        read(tmp_path, content)
    assert str(tmp_path / "069.xml") in str(error.value)


LAUGHS = '<!ENTITY e0 "ha">' + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
QUADRATIC = f'<!ENTITY e9 "{"ha" * 50_000}">'


@pytest.mark.parametrize(
    ("declared", "used"),
    [
        (f"[{LAUGHS}]", "&e9;"),
        (f"[{QUADRATIC}]", "&e9;" * 100),
        ('[<!ENTITY e9 "5">]', "&e9;"),
        ('[<!ENTITY e9 SYSTEM "secret.txt">]', "&e9;"),
        ('[<!ENTITY e9 SYSTEM "file://{folder}/secret.txt">]', "&e9;"),
        ('[<!ENTITY % outer SYSTEM "file://{folder}/secret.dtd"> %outer;]', "&e9;"),
        ('SYSTEM "file://{folder}/secret.dtd"', "&e9;"),
        ('SYSTEM "http://192.0.2.1/message.dtd"', "5"),  # an address that exists nowhere
    ],
)
def test_entities_are_never_expanded(tmp_path: Path, declared: str, used: str) -> None:
    """Neither the bomb nor the file beside it is read: a document type is refused before its first entity."""
    (tmp_path / "secret.txt").write_text("5")
    (tmp_path / "secret.dtd").write_text('<!ENTITY e9 "5">')
    declared = declared.replace("{folder}", str(tmp_path))
    text = made.message("1.2.3", [made.nodule("1", made.roi("1.2.3.1", SQUARE), malignancy=used)])
    head, body = text.split("\n", 1)
    with pytest.raises(ScanError, match="document type 'LidcReadMessage'") as error:
        read(tmp_path, f"{head}\n<!DOCTYPE LidcReadMessage {declared}>\n{body}")
    assert str(tmp_path / "069.xml") in str(error.value)


def test_the_five_entities_of_xml_itself_are_text(tmp_path: Path) -> None:
    (reading,) = readings(tmp_path, made.nodule("a &amp; b &#65;", made.roi("1.2.3.1", SQUARE)))
    assert reading.name == "a & b A"
