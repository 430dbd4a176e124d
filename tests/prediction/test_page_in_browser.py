"""The page in headless Chromium: it draws the structure, asks no network, runs nothing foreign."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esmfold_peft.prediction.pages import page_html
from esmfold_peft.prediction.result import BANDS
from tests.prediction.pages import real_prediction

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")

WITH_WEBGL = ("--enable-unsafe-swiftshader", "--use-angle=swiftshader")
WITHOUT_WEBGL = ("--disable-gpu", "--disable-software-rasterizer", "--disable-3d-apis")
QUIET = (
    *("--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--disable-dev-shm-usage", "--enable-logging=stderr", "--hide-scrollbars"),
    # The browser's own calls, which no flag stops, find no host.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
OWN_HOSTS = (".google.com", ".googleapis.com")
FROM_A_PAGE = 101845102
"""Chromium's traffic annotation "blink_resource_loader": what the content of a page asks for."""
NOBODY = "http://127.0.0.1:9/"
VIEW = (40, 280, 750, 690)
"""Left, top, right and bottom of what surely lies in the 3D view, in a window of 800 x 900."""


@dataclass
class Seen:
    """What a browser showed, asked for and said."""

    pixels: np.ndarray
    requests: set[str]
    console: str


def browse(source: str, folder: Path, flags: tuple[str, ...]) -> Seen:
    folder.mkdir()
    page, log, picture = (folder / name for name in ("page.html", "net.json", "page.png"))
    page.write_text(source, encoding="utf-8")
    done = subprocess.run(
        [
            *(str(BROWSER), *QUIET, *flags, f"--user-data-dir={folder / 'profile'}"),
            *(f"--log-net-log={log}", f"--screenshot={picture}", "--window-size=800,900"),
            *("--virtual-time-budget=3000", page.as_uri()),
        ],
        env=os.environ | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    pixels = np.asarray(Image.open(picture).convert("RGB"), float)
    return Seen(pixels, requests_of_the_page(log), "\n".join(console))


def requests_of_the_page(log: Path) -> set[str]:
    """Addresses that the browser did not call for its own sake."""
    found = set()
    for event in json.loads(log.read_text())["events"]:
        parameters = event.get("params", {})
        url = parameters.get("url", "")
        if not url.startswith(("http:", "https:", "ws:", "wss:")):
            continue
        own = url.split("/")[2].split(":")[0].endswith(OWN_HOSTS)
        if not own or parameters.get("traffic_annotation") == FROM_A_PAGE:
            found.add(url)
    return found


def coloured(pixels: np.ndarray) -> list[int]:
    """Pixels of the 3D view that have the hue of each band of pLDDT, however they are lit."""
    left, top, right, bottom = VIEW
    shown = pixels[top:bottom, left:right].reshape(-1, 3)
    counts = []
    for _, colour, _ in BANDS:
        band = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], float)
        lengths = np.linalg.norm(shown, axis=1) * np.linalg.norm(band)
        same = shown @ band > 0.995 * np.maximum(lengths, 1)
        counts.append(int(same.sum()))
    return counts


def with_intruder(source: str) -> str:
    """The page as if text of a user had come through: a script that empties it, and a picture."""
    intruder = f"<script>document.body.remove()</script><img src='{NOBODY}picture.png'>"
    return source.replace("</header>", f"</header>{intruder}")


def without_policy(source: str) -> str:
    start = source.index('<meta http-equiv="Content-Security-Policy"')
    return source[:start] + source[source.index(">", start) + 1 :]


def test_the_page_shows_the_structure_and_asks_for_nothing(example: Path, tmp_path: Path):
    source = page_html(real_prediction(example))
    seen = browse(source, tmp_path / "page", WITH_WEBGL)
    assert min(coloured(seen.pixels)) > 300
    assert seen.requests == set()
    assert "Content Security Policy" not in seen.console
    assert "Error" not in seen.console


def test_what_came_through_unescaped_would_not_run(example: Path, tmp_path: Path):
    source = with_intruder(page_html(real_prediction(example)))
    seen = browse(source, tmp_path / "refused", WITHOUT_WEBGL)
    assert "Content Security Policy" in seen.console
    assert np.ptp(seen.pixels) > 100, "the page was not emptied"
    assert seen.requests == set()


def test_without_the_policy_it_would_run(example: Path, tmp_path: Path):
    source = without_policy(with_intruder(page_html(real_prediction(example))))
    seen = browse(source, tmp_path / "emptied", WITHOUT_WEBGL)
    assert np.ptp(seen.pixels) == 0


def test_without_webgl_no_colours_and_a_request_would_be_found(example: Path, tmp_path: Path):
    source = page_html(real_prediction(example))
    picture = f"</header><img src='{NOBODY}picture.png'>"
    source = without_policy(source).replace("</header>", picture)
    seen = browse(source, tmp_path / "bare", WITHOUT_WEBGL)
    assert coloured(seen.pixels) == [0, 0, 0, 0]
    assert np.ptp(seen.pixels[280:360, 40:750]) > 100, "a sentence stands in the view's place"
    assert seen.requests == {f"{NOBODY}picture.png"}
