"""Page and report at the widths of phones, tablets and desks, in a real browser: nothing is cut off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ifedicl import federate, simulate
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.metrics import Evaluation
from ifedicl.report import Figures, Report, write_report
from ifedicl.runs import zero_shot_adapter
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.browsing import TEXTS, Watched, level
from tests.support.chromium import CHROMIUM

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine (Debian: apt install chromium)")
playwright.expect.set_options(timeout=20_000)  # on a busy machine

CUT_OFF = """
[...document.querySelectorAll("body *")].filter((own) => {
  const box = own.getBoundingClientRect(), style = getComputedStyle(own);
  if (!box.width || !box.height || own.closest("pre, textarea, .unseen, .skip, thead")) return false;
  const outside = box.right > innerWidth + 0.5 || box.left < -0.5;
  return outside || (style.overflowX !== "visible" && own.tagName !== "SELECT" && own.scrollWidth > own.clientWidth + 1);
}).map((own) => `${own.tagName}.${own.className} ${own.textContent.slice(0, 40)}`)
"""


def cut_off(page: playwright.Page) -> list[str]:
    """Elements that do not fit the width, or hold more than they show."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [*([f"the page scrolls sideways by {wide} pixels"] if wide > 0 else []), *page.evaluate(CUT_OFF)]


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_cut_off_on_a_phone(watched: Watched, width: int) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": 800})
    watched.at("")
    page.locator("#adapter").select_option("mood")
    page.get_by_label("Texts, one a line").fill("\n".join([*TEXTS, "a-word-without-an-end-" * 8]))
    page.get_by_role("button", name="Label", exact=True).click()
    playwright.expect(page.get_by_role("status").first).to_contain_text("4 texts labelled")
    assert cut_off(page) == []
    cell = page.locator("#table tbody td").nth(2)
    assert cell.locator(".choice span").last.is_visible()
    told = cell.evaluate("(own) => getComputedStyle(own, '::before').content")
    assert told == ('"mood"' if width < 600 else "none")  # cards name their columns
    watched.at("#adapters")
    page.locator("#shown-adapter").select_option("mood")
    playwright.expect(page.locator("#adapter-view")).to_contain_text("What each client sent")
    assert cut_off(page) == []
    letters = page.evaluate("[...document.querySelectorAll('#adapter-view svg')].map((own) => own.getScreenCTM().a * 11)")
    assert min(letters) > 8  # pixels of a letter in a picture
    watched.at("#runs")
    page.get_by_label("Run", exact=True).select_option("finished")
    playwright.expect(page.locator("#runs-status")).to_contain_text("Finished")
    assert cut_off(page) == []
    watched.at("docs")
    assert cut_off(page) == []


def test_pictures_are_drawn_again_for_another_width(watched: Watched) -> None:
    page = watched.at("#adapters")
    picture = page.locator("#adapter-view svg").first
    playwright.expect(picture).to_have_attribute("viewBox", re.compile("^0 0 920 "))
    page.set_viewport_size({"width": 390, "height": 800})
    playwright.expect(picture).to_have_attribute("viewBox", re.compile("^0 0 320 "))


def test_a_report_fits_a_phone_in_light_and_dark(watched: Watched, tmp_path: Path, backbone: Backbone) -> None:
    examples = {"a client with a long name": tiny.examples(12), "south": tiny.examples(12, seed=1)}
    model = ModelSettings(source="tiny", device="cpu", dtype="float32")
    done = federate(simulate(backbone, tiny.TASK, examples), model, tiny.TASK, tiny.method(rounds={"rounds": 1}))
    tested = runs_of_tests(backbone, model, done.adapter)
    rows = [Figures(name, found, {}, 1.0) for name, found in zip(("zero-shot", "the federation"), tested, strict=True)]
    report = Report("mood", done.adapter, done.outcome, examples, rows, ["It does NOT beat zero-shot."], [], 1.0)
    write_report(report, tmp_path / "report.html")
    page = watched.page
    for scheme, width in (("light", 390), ("dark", 390), ("light", 1440)):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.set_viewport_size({"width": width, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert cut_off(page) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert (level(paper) > 700 and level(ink) < 150) if scheme == "light" else (level(paper) < 120 and level(ink) > 600)
    watched.hosts.clear()
    watched.at("")


def runs_of_tests(backbone: Backbone, model: ModelSettings, adapter: Adapter) -> list[Evaluation]:
    """Zero-shot and an adapter on text that neither has seen."""
    both = zero_shot_adapter(backbone, model, tiny.TASK), adapter
    return [own.classifier(backbone).evaluate(tiny.examples(20, seed=3)) for own in both]
