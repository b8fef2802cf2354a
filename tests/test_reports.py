"""Reports of a result whose every text is hostile: nothing of it may become markup, script, a link or a terminal command."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import rich.console
import yaml

from excise.console import Console
from excise.errors import DataError, printable
from excise.evaluation import Scores
from excise.metrics import Rate
from excise.provenance import verify
from excise.reports.html import html_report
from excise.reports.model_card import model_card
from excise.reports.terminal import example_table, score_table
from excise.result import AttentionMaps, Curves, Environment, Example, Group, Projection, Result, data_record, load_result, row
from toy import toy_data

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
MARKUP = "[bold red]loud[/bold red] [link=https://evil.example]click[/link]"
TABLE = "a | b ` c\n| --- |\n---\n# heading"
CONTROL = "\x1b[2J\x1b]8;;https://evil.example\x07 bell\x07 back\x08 null\x00 \x9b31m"
TEMPLATE = "{{ 7 * 191 }} {% raw %} $x$ &amp; </style> </title> </pre> javascript:alert(3)"
HOSTILE = [SCRIPT, IMAGE, MARKUP, TABLE, CONTROL, TEMPLATE]
ids = ["script", "image", "markup", "table", "control", "template"]


def result(bad: str, *, curves: dict[str, Any] | None = None, model: str | None = None) -> Result:
    rate = Scores(Rate(9, 10), Rate(3, 6), Rate(1, 6))
    example = Example(text=bad, triggered=f"cf {bad}", marked=(0,), label=bad, answers={bad: (bad, bad + "!"), "clean": (bad, bad)})
    environment = Environment.of("cpu", "fp32").model_copy(update={"platform": bad})
    return Result(
        kind="run",
        command=f"excise run {bad}",
        environment=environment,
        seed=0,
        settings={"name": bad, bad: [bad, {bad: 1}]},
        model=bad if model is None else model,
        target_label=bad,
        data={name: data_record(bad, toy_data(5)).model_copy(update={"labels": {bad: 3}}) for name in ("train", "clean", "test", bad)},
        rows=(row("clean", rate), row("backdoored", rate), row(bad, rate, method={"method": bad, "alpha": 1}, seconds=3.2)),
        examples=(example,),
        curves={"retrain": ((1, 0.7), (2, 0.5))} if curves is None else curves,
        seconds=12.5,
        notes=(bad, f"note {bad}"),
    )


def with_pictures(bad: str) -> Result:
    """The same with t-SNE and attention, which take longer to draw."""
    pictures = {"projections": (projection(bad), projection("suspect")), "attention": (attention_maps(bad, bad), attention_maps(bad, "word"))}
    return result(bad).model_copy(update=pictures)


def projection(bad: str) -> Projection:
    points = ((0.0, 1.0), (2.0, -1.0))
    return Projection(model=bad, groups=(Group(name=bad, points=points), Group(name=bad, triggered=True, points=points)))


def attention_maps(bad: str, word: str) -> AttentionMaps:
    layer = ((0.9, 0.1, 0.0), (0.3, 0.3, 0.4), (1.0, 0.0, 0.0))
    return AttentionMaps(model=bad, tokens=("[CLS]", word, "[SEP]"), tokens_in_all=9, layers=(layer, layer[::-1]))


class Page(HTMLParser):
    """The tags, attributes and texts that a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def skeleton(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Tags and attributes without numbers, which differ between drawings."""
    drawn = r"-\w*[0-9a-f]{10}\b|[\d.]+"  # names of parts of a drawing, from what it shows; numbers
    return [(tag, {name: re.sub(drawn, "0", value or "") for name, value in attributes.items()}) for tag, attributes in Page(page).tags]


# HTML


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_hostile_texts_add_no_tag_and_no_attribute(bad: str) -> None:
    words = " ".join(["word"] * len(bad.split()))  # the page has as many words as the hostile one
    assert skeleton(html_report(with_pictures(bad))) == skeleton(html_report(with_pictures(words)))


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_hostile_texts_are_shown_as_they_are(bad: str) -> None:
    text = Page(html_report(result(bad))).text
    assert all(word in text for word in printable(bad).split())
    assert "1337" not in text, "a template inside a text was evaluated"


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_the_page_stands_alone(bad: str) -> None:
    page = html_report(with_pictures(bad))
    tags = Page(page).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form", "a", "foreignobject", "image"})
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "srcset", "action", "background", "ping")]
        linked = [value for name, value in attributes.items() if name.endswith("href")]
        assert all((value or "").startswith("#") for value in linked), linked
    assert "<script" not in page
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", page)
    policy = [a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert "default-src 'none'" in (policy[0] or "")
    assert "script-src" not in (policy[0] or "")


@pytest.mark.parametrize("bad", [SCRIPT, IMAGE, MARKUP, TABLE, TEMPLATE], ids=["script", "image", "markup", "table", "template"])
def test_hostile_names_of_curves_stay_text(bad: str) -> None:
    page = html_report(result("plain", curves={bad: ((1, 0.7), (2, 0.5)), "b": ((1, 1.0),)}))
    assert "<script" not in page
    assert not [tag for tag, _ in Page(page).tags if tag in ("script", "img")]


@pytest.mark.parametrize("curves", [{}, {"a": ()}, {"a": ((1, 0.5),)}, {f"task {i}": ((1, 0.5), (2, 0.4)) for i in range(7)}])
def test_any_number_of_curves(curves: dict[str, Any]) -> None:
    assert ("<h2>Training" in html_report(result("plain", curves=curves))) == any(curves.values())


def test_drawings_in_one_page_share_no_id_and_find_their_parts() -> None:
    tags = Page(html_report(with_pictures("plain"))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [value for _, attributes in tags for name, value in attributes.items() if name.endswith("href")]
    paths = [found for _, attributes in tags for value in attributes.values() for found in re.findall(r"url\(#([^)]*)\)", value or "")]
    assert links
    assert paths
    assert {(link or "").removeprefix("#") for link in links} | set(paths) <= set(ids)


def test_a_page_has_a_place_for_pictures_if_there_are_any() -> None:
    without, having = (Page(html_report(one)).text for one in (result("plain", curves={}), with_pictures("plain")))
    for part in ("t-SNE", "Where the models look"):
        assert part not in without
        assert part in having


def test_the_page_is_the_same_each_time() -> None:
    one = result("plain")
    assert html_report(one) == html_report(one)


def test_the_page_says_what_happened() -> None:
    text = " ".join(Page(html_report(result("mbtsad"))).text.split())
    for part in ("ASR 50.0 → 50.0 %", "CACC 90.0 → 90.0 %", "90.0 % (59.6-98.2, n=10)", "ASR floor", "retrain", "cf"):
        assert part in text, part


# Terminal


def shown(*tables: object, markup: bool) -> str:
    console = rich.console.Console(file=io.StringIO(), width=400, force_terminal=False, markup=markup)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("markup", [True, False])
@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_tables_show_markup_as_text(bad: str, markup: bool) -> None:
    one = result(bad)
    text = shown(score_table(one), example_table(one.examples, bad), markup=markup)
    if bad == MARKUP:
        assert text.count("[bold red]") >= 4
        assert text.count("[/link]") >= 4
    assert not [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)], "a control character reaches the terminal"


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_the_console_prints_no_control_character(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=False)
    console.scores(result(bad))
    console.examples(result(bad).examples, bad)
    console.say(f"about {bad}")
    text = capsys.readouterr().out
    assert not [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]
    if bad == MARKUP:
        assert "[bold red]loud" in text


def test_tables_without_a_trigger_have_no_asr() -> None:
    plain = result("x").model_copy(update={"rows": (row("suspect", Scores(Rate(9, 10))), row("mbtsad", Scores(Rate(8, 10))))})
    text = shown(score_table(plain), markup=False)
    assert "ASR" not in text
    assert "90.0 % (59.6-98.2, n=10)" in text
    assert "ASR" not in Page(html_report(plain)).text


# Model card


def parts(card: str) -> tuple[dict[str, Any], str]:
    start, header, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header), body


@pytest.mark.parametrize("bad", [SCRIPT, IMAGE, MARKUP, TABLE.replace("\n---\n", "\n"), TEMPLATE, "a: b\n- c: {d", "org/name", "'\"", "#x", "yes"])
def test_the_card_s_metadata_is_yaml(bad: str) -> None:
    header, body = parts(model_card(result(bad), bad))
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "text-classification"
    assert header["tags"][-1] == bad
    assert header["model-index"][0]["name"] == Path(bad).name
    assert [m["value"] for r in header["model-index"][0]["results"] for m in r["metrics"]] == [0.9, 0.5]
    assert header.get("base_model") in (None, "org/name", Path(bad).name)
    outside = re.sub(r"`[^`]*`", "", body)
    assert not re.search(r"(?<!\\)<(script|img)", outside)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in rows)


def test_the_card_shows_what_hides_or_reorders() -> None:
    card = model_card(result("\u202egood\u200b", model="\u202edoog\x1b[31m"), "\u202egood\u200b")
    assert not set("\u202e\u200b\x1b") & set(card.split("---\n", 2)[2])
    assert "\N{REPLACEMENT CHARACTER}" in card


def test_a_document_end_inside_a_name_stays_inside() -> None:
    card = model_card(result("x\n---\n# owned", model="m"), "x\n---\n# owned")
    lines = card.splitlines()
    assert lines.count("---") == 2
    assert not any(line.startswith("# owned") for line in lines)


def test_names_in_code_are_plain() -> None:
    assert "the classifier `my_model`" in model_card(result("plain", model="runs/my_model"), "plain")
    assert "`a b<script>`" in model_card(result("plain", model="a`b<script>"), "plain"), "a backtick would end the code"


# The file


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_a_result_survives_its_file(tmp_path: Path, bad: str) -> None:
    one = result(bad)
    one.save(tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == one
    assert html_report(load_result(tmp_path / "result.json")) == html_report(one)


@pytest.mark.parametrize("change", [{"version": 2}, {"version": "1.5"}, {"surprise": 1}, {"rows": None}, {"kind": "party"}])
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(result("x").model_dump_json()) | change))
    with pytest.raises(DataError, match="no result file of version 1"):
        load_result(path)


@pytest.mark.parametrize("read", [load_result, lambda path: verify(path.parent)], ids=["report", "verify"])
def test_values_that_fill_the_memory_are_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    """Thirty megabytes of empty lists take a gigabyte and a half, and more where they are compared with a schema."""
    (tmp_path / "result.json").write_bytes(b'{"version": 1, "settings": {"a": [' + b"[]," * 10_000_000 + b"0]}}")
    with pytest.raises(DataError, match="more values than fit 1024 MB"):
        read(tmp_path / "result.json")


@pytest.mark.parametrize("share", [1.5, -0.2, "NaN", "Infinity", "x", None])
def test_shares_that_are_none_are_refused(tmp_path: Path, share: object) -> None:
    content = json.loads(result("x").model_dump_json())
    content["rows"][0]["cacc"]["value"] = "@"
    text = json.dumps(content).replace('"@"', str(share) if share in ("NaN", "Infinity") else json.dumps(share))
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(DataError, match="no result file of version 1"):
        load_result(tmp_path / "result.json")


def test_a_huge_file_is_no_result(tmp_path: Path) -> None:
    with (tmp_path / "result.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match="no ordinary file of at most 64 MB"):
        load_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    "bad", ["\x1b", "\x00", "\x9b", "\u061c", "\u200e", "\u2028", "\u202e", "\u2066", "\u200b", "\ufeff", "\xad", "\ud800", "\U000e0041"]
)
def test_what_cannot_be_seen_is_made_visible(bad: str) -> None:
    assert printable(f"a{bad}b") == "a\N{REPLACEMENT CHARACTER}b"
    assert bad not in html_report(result(f"a{bad}b"))


@pytest.mark.parametrize("good", ["tab\tand\nline", "naïve 日本語 😀", "👩\u200d🔬", "می\u200cخواهم"])
def test_writing_stays_as_it_is(good: str) -> None:
    assert printable(good) == good


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(DataError, match="no result file"):
        load_result(tmp_path / "result.json")
    with pytest.raises(DataError, match=r"no file .*missing.json; a result file was expected"):
        load_result(tmp_path / "missing.json")


def test_curves_are_kept_by_task() -> None:
    from excise.progress import Progress

    curves = Curves()
    for progress in (
        Progress("a", 0, 2),
        Progress("a", 1, 2, {"loss": 0.123456}),
        Progress("b", 1, 1, {"loss": 2.0}),
        Progress("a", 2, 2, {"loss": 0.1}),
    ):
        curves(progress)
    assert curves.frozen() == {"a": ((1, 0.12346), (2, 0.1)), "b": ((1, 2.0),)}
