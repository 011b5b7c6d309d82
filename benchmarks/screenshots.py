"""Pictures of the page and the report at three widths, light and dark: python benchmarks/screenshots.py RUNS OUT.

RUNS/demo is the run of `ifedicl demo`. Those that the documents show lie in docs/images. Needs Debian's chromium. The sentences
are our own.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from _sentences import SENTENCES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.chromium import CHROMIUM, FLAGS  # noqa: E402
from tests.support.serving import serving  # noqa: E402

QUALITY, MOST = 60, 1400  # of WebP; pixels of height, from the top
WIDTHS = {"phone": 390, "tablet": 768, "desk": 1440}


def main(runs: Path, out: Path) -> None:
    """Every view and the report, at every width, light and dark."""
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as driver,
        serving(Path(folder), str(runs / "demo" / "adapter"), "--runs", str(runs)) as server,
    ):
        for scheme in ("light", "dark"):
            context = driver.chromium.launch_persistent_context(
                f"{folder}/{scheme}", executable_path=CHROMIUM, args=FLAGS, color_scheme=scheme
            )
            for name, width in WIDTHS.items():
                page = context.new_page()
                page.set_viewport_size({"width": width, "height": 760})
                _shoot(page, server.url, runs, partial(_save, page, out, f"{name}-{scheme}"))
                page.close()
            context.close()


def _shoot(page: Page, url: str, runs: Path, save: Callable[[str], None]) -> None:
    page.goto(url)
    page.locator("#labels", has_text="version").wait_for()
    save("page-first")
    page.get_by_label("Texts, one a line").fill("\n".join(SENTENCES))
    page.get_by_role("button", name="Label", exact=True).click()
    page.get_by_text("texts labelled").wait_for()
    save("page-labels")
    page.goto(f"{url}#adapters")
    page.get_by_text("What each client sent").wait_for()
    save("page-adapter")
    page.goto(f"{url}#runs")
    page.get_by_text("Finished after").wait_for()
    save("page-run")
    page.goto(f"{url}docs")
    save("page-api")
    page.goto((runs / "demo" / "report.html").absolute().as_uri())
    save("report")


def _save(page: Page, out: Path, size: str, view: str) -> None:
    path = out / f"{view}-{size}.webp"
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.crop((0, 0, image.width, min(image.height, MOST))).save(path, quality=QUALITY, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
