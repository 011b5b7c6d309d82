"""The documents as a site: built strictly, whole, searchable, and silent towards other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlparse

import pytest

import ifedicl
from tests.support.browsing import Watched
from tests.support.chromium import CHROMIUM, FLAGS

if TYPE_CHECKING:
    from playwright import sync_api as playwright

ROOT = Path(__file__).parents[2]
ZENSICAL = [sys.executable, "-m", "zensical", "build", "--strict"]


@pytest.fixture(scope="module")
def site() -> Path:
    """The site as `make docs` builds it."""
    for command in ([sys.executable, "docs/site_pages.py", "build/pages"], ZENSICAL):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "site"


def test_every_link_of_every_page_leads_to_a_page_or_picture_and_to_a_heading_that_is_there(site: Path) -> None:
    pages = {"/" + str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 100
    anchors = {page: set(re.findall(r'\bid="?([^"\s>]+)', text)) for page, text in pages.items()}
    wrong = set()
    for page, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="?([^"\s>]+)', text):
            target = urlparse(urljoin(page, unquote(link)))
            if target.scheme:
                continue
            path = target.path + ("index.html" if target.path.endswith("/") else "")
            if not (site / path.lstrip("/")).is_file() or (target.fragment and target.fragment not in anchors.get(path, ())):
                wrong.add((page, link))
    assert wrong == set()


def test_pages_lead_to_the_source_files_that_they_name(site: Path) -> None:
    page = (site / "paper-to-code" / "index.html").read_text()
    link = re.search(r'href="?([^">]*core/injection\.py/?)', page)
    assert link is not None
    source = site / urljoin("/paper-to-code/", link[1]).lstrip("/") / "index.html"
    assert "activation_scale" in source.read_text()
    assert "P(label | prompt)" in page  # a table's cell, where a code host wants a backslash


def test_the_reference_has_every_public_name_and_plain_words(site: Path) -> None:
    page = (site / "api" / "index.html").read_text()
    missing = [name for name in ifedicl.__all__ if f'id="ifedicl.{name}"' not in page]
    assert missing == ["__version__"]
    assert ":meth:" not in page


def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: one page\n")
    page = tmp_path / "docs" / "index.md"
    for text, is_sound in (("# One\n\n[here](index.md)\n", True), ("# One\n\n[nowhere](nowhere.md)\n", False)):
        page.write_text(text)
        done = subprocess.run(ZENSICAL, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        assert (done.returncode == 0) is is_sound


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the overridden method's argument
        pass


@pytest.fixture
def reader(site: Path) -> Iterator[Watched]:
    """A browser on the site."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as tool:
            browser: playwright.Browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            yield Watched(browser.new_page(), f"http://127.0.0.1:{server.server_port}")
            browser.close()
        server.shutdown()


def test_a_reader_finds_a_page_by_its_words_and_nothing_is_loaded_from_another_host(reader: Watched) -> None:
    page = reader.at("/")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Control+k")
    page.locator("input:focus").wait_for(timeout=30_000)  # before it, letters are shortcuts, and n is the next page
    page.keyboard.type("Bonawitz")  # on some pages, not on this one
    page.locator("a[href*='secure-sum']").filter(has_text="Bonawitz").first.wait_for(timeout=30_000)
    for view in ("/results/", "/api/", "/notebook/"):
        reader.at(view)
    assert reader.hosts == {urlparse(reader.url).netloc}
    assert reader.complaints == []
