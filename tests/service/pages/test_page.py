"""Pages are complete, safe to open, readable by everybody and fetch nothing."""

import re
from importlib.resources import files

import pytest

from peterrec.service.pages.charts import Line, bar_chart, histogram, line_chart
from peterrec.service.pages.page import Section, Table, Text, fragment, matrix, page, table
from tests.service.pages.reading_html import PageReader

HOSTILE = "<script>alert('x')</script>"

FIGURES = [
    bar_chart("Top items", [HOSTILE, "$\\frac$", "日本語", "n" * 90, "a\x00b"], [12, 3.5, 8, 1, 0]),
    bar_chart("Top items", ["only"], [1]),
    line_chart(
        "Loss", [Line("train", [1, 2], [3, 1]), Line(HOSTILE, [1, 2], [4, 2])], "epoch", "y"
    ),
    histogram("Lengths", [1, 1, 2, 90], "events", is_logarithmic=True),
    histogram("Values", [2.5, 2.5], "value"),
]
PAGE = page(
    f"Data of {HOSTILE}",
    [
        Section("Figures", FIGURES),
        Section(
            HOSTILE,
            [
                table("Classes", ("class", "users"), [(HOSTILE, 12000), ("m", None)], note=HOSTILE),
                matrix("Confusion", ["f", "m"], [[10, 2], [0, 0]]),
            ],
        ),
    ],
    lead=[Text(HOSTILE, is_notice=True)],
)


def test_no_text_of_the_data_becomes_an_element():
    read = PageReader(PAGE)
    assert "script" not in read.tags
    assert HOSTILE in "".join(read.texts["th"])
    assert HOSTILE in "".join(read.texts["title"])
    assert HOSTILE in "".join(read.texts["text"])


def test_a_page_fetches_nothing_and_links_only_to_itself():
    read = PageReader(PAGE)
    assert all(reference.startswith("#") for reference in read.references)
    assert not re.search(r"https?://|@import|url\((?!#)", PAGE)
    assert "default-src 'none'" in PAGE


def test_every_id_is_there_once_and_every_reference_has_its_id():
    read = PageReader(PAGE)
    named = {reference[1:] for reference in read.references}
    named |= set(re.findall(r"url\(#([\w-]+)\)", PAGE))
    named |= {name for names in re.findall(r'labelledby="([^"]*)"', PAGE) for name in names.split()}
    assert len(read.ids) == len(set(read.ids))
    assert named == set(read.ids)


def test_figures_have_a_title_and_words_and_tables_a_caption():
    read = PageReader(PAGE)
    assert read.tags.count("desc") == read.tags.count("svg") == len(FIGURES)
    assert read.tags.count("title") == len(FIGURES) + 1
    assert read.tags.count("caption") == read.tags.count("table") == 2
    assert "4 values of events, from 1 to 90, median 1.5." in "".join(read.texts["desc"])
    assert (read.tags.count("h1"), read.tags.count("h2"), read.tags.count("main")) == (1, 2, 1)


def test_numbers_are_written_for_people_and_nothing_as_an_empty_cell():
    cells = PageReader(fragment([Table("", ("a",), [("", 1234567, 0.123456, None)])])).texts["td"]
    assert cells == ["1,234,567", "0.1235"]


def test_a_confusion_matrix_is_shaded_by_the_share_of_its_row():
    assert re.findall(r"--shade: (\d+)%", PAGE) == ["29", "6", "0", "0"]


def test_control_characters_are_escaped():
    assert "a\\x00b" in PAGE
    assert "\x00" not in PAGE


def test_a_fragment_carries_its_style_and_is_one_element():
    read = PageReader(fragment([Text("a"), FIGURES[0]], title="A task"))
    assert read.tags[:2] == ["div", "style"]
    assert "html" not in read.tags


def test_equal_data_give_equal_pages():
    again = bar_chart("Top items", ["only"], [1])
    assert again == FIGURES[1]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(over: str, under: str, share: float) -> str:
    pairs = ((int(over[at : at + 2], 16), int(under[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in pairs)


STYLE = files("peterrec.service.pages").joinpath("style.css").read_text(encoding="utf-8")
THEMES = [
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r"--ground:.*?}", STYLE, flags=re.DOTALL)
]


@pytest.mark.parametrize("theme", THEMES, ids=("light", "dark", "print"))
def test_texts_and_drawings_stand_out_as_wcag_aa_asks(theme):
    texts = [contrast(theme[name], theme["ground"]) for name in ("ink", "muted")]
    texts += [contrast(theme["ink"], theme["notice"])]
    texts += [contrast(theme["ink"], mixed(theme["series-0"], theme["ground"], 0.35))]
    drawn = [contrast(theme[f"series-{place}"], theme["ground"]) for place in range(6)]
    assert min(texts) >= 4.5
    assert min(drawn) >= 3.0
