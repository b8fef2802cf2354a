"""A report full of hostile texts in a real browser: no script runs, whether by our escaping or, should that fail, by the page's own policy."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.reports.figures import projection_figure
from excise.reports.html import html_report, scan_report
from test_reports import projection, with_pictures
from test_scan import hostile

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")

RUN = "document.title='it ran'"
HOSTILE = " ".join(
    (
        f"<script>{RUN}</script>",
        f"</title></style></pre></svg><script>{RUN}</script>",
        f'"><img src=x onerror="{RUN}">',
        f'\'><svg onload="{RUN}"><a xlink:href="javascript:{RUN}">',
        f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
        f'<details open ontoggle="{RUN}"> <input autofocus onfocus="{RUN}"> <style onload="{RUN}">',
        f"]]><script>{RUN}</script><!-- --!><script>{RUN}</script>",
        f'<meta http-equiv=refresh content="0;url=javascript:{RUN}"> {{{{ 7 * 191 }}}}',
    )
)
Title = Callable[[str], str]


@pytest.fixture
def title(tmp_path: Path) -> Title:
    """What a browser calls a page after it has run what it runs."""

    def look(page: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        command = [str(BROWSER), *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", str(path)]
        with (tmp_path / "seen").open("wb") as file:  # no pipe: a browser that hangs leaves children behind, which would keep it open for ever
            subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, timeout=120, check=True)
        seen = (tmp_path / "seen").read_text(encoding="utf-8")
        found = re.search(r"<title>(.*?)</title>", seen, re.DOTALL)
        assert found, seen[:500]
        return found[1]

    return look


@pytest.mark.parametrize("make_page", [lambda: html_report(with_pictures(HOSTILE)), lambda: scan_report(hostile(HOSTILE))], ids=["report", "scan"])
def test_hostile_texts_run_nothing(make_page: Callable[[], str], title: Title) -> None:
    page = make_page()
    assert title(re.sub(r"<meta http-equiv=.Content-Security-Policy[^>]*>", "", page)).startswith("excise:"), "escaping alone is enough"
    assert title(page).startswith("excise:")


def test_the_policy_stops_what_escaping_would_let_through(title: Title) -> None:
    page = html_report(with_pictures("word"))
    broken = page.replace("</h1>", f"</h1>{HOSTILE}", 1)
    assert title(broken).startswith("excise:")
    assert title(re.sub(r"<meta http-equiv=.Content-Security-Policy[^>]*>", "", broken)) == "it ran", "this test could not fail"


def test_a_drawing_runs_nothing(title: Title) -> None:
    drawing = projection_figure((projection(HOSTILE),)).decode("utf-8")
    assert title(f"<!doctype html><title>drawing</title>{drawing[drawing.index('<svg') :]}") == "drawing"


def test_a_scan_can_be_read_on_a_narrow_screen(title: Title) -> None:
    """Tables may scroll by themselves; the page does not, and the evidence is no column of single words."""
    page = scan_report(hostile("a trigger of some words").model_copy(update={"model": "/models/" + "a" * 99}))
    evidence = "document.querySelector('.evidence')"
    measure = f"document.title = document.body.scrollWidth <= 400 && {evidence}.offsetWidth >= 200 ? 'fits' : 'too wide'"
    framed = re.sub(r"<meta http-equiv=.Content-Security-Policy[^>]*>", "", page).replace("<body>", '<body style="width: 400px">')
    assert title(framed.replace("</body>", f"<script>{measure}</script></body>")) == "fits"
