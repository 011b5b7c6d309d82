"""Make the pictures of docs/serving.md: python benchmarks/screenshots.py RUNS, with the run of `ifedicl demo` in RUNS/demo.

Needs Debian's chromium. The sentences are our own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.chromium import CHROMIUM, FLAGS  # noqa: E402
from tests.support.serving import serving  # noqa: E402

SENTENCES = (
    "The nurse called me back within minutes and explained everything kindly.",
    "The form has four pages and is printed on both sides.",
    "After three weeks of waiting the machine arrived broken.",
    "What a lovely, quiet room, and the bread is baked next door!",
    "Nobody picked up the phone, and the desk was closed.",
    "The train leaves at ten past nine from platform four.",
)


def main(runs: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as driver,
        serving(Path(folder), str(runs / "demo" / "adapter"), "--runs", str(runs)) as server,
    ):
        for scheme in ("light", "dark"):
            context = driver.chromium.launch_persistent_context(
                f"{folder}/{scheme}",
                executable_path=CHROMIUM,
                args=FLAGS,
                color_scheme=scheme,
                viewport={"width": 1100, "height": 760},
            )
            _shoot(context.new_page(), server.url, scheme)
            context.close()


def _shoot(page: Page, url: str, scheme: str) -> None:
    page.goto(url)
    page.get_by_label("Texts, one a line").fill("\n".join(SENTENCES))
    page.get_by_role("button", name="Label", exact=True).click()
    page.get_by_text("texts labelled").wait_for()
    _save(page, f"page-labels-{scheme}")
    page.goto(f"{url}#adapters")
    page.get_by_text("What each client sent").wait_for()
    _save(page, f"page-adapter-{scheme}")
    page.goto(f"{url}#runs")
    page.get_by_text("Finished after").wait_for()
    _save(page, f"page-run-{scheme}")


def _save(page: Page, name: str) -> None:
    path = ROOT / "docs" / "images" / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
