"""Pictures of pages: cut to the page, small; the browser is one of our own but in the last test."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts import screenshot
from tests.util import error_line, run_here

SCRIPT = "scripts/screenshot.py"
BROWSER = """#!{python}
import sys
from PIL import Image
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
if not sys.argv[-1].endswith("/page.html"):
    sys.exit("what page?")
width, height = map(int, words["--window-size"].split(","))
image = Image.new("RGB", (width, height), "black" if "--blink-settings" in words else "white")
image.paste((200, 0, 0), (10, 50, 90, 300))
image.save(words["--screenshot"])
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "chromium").write_text(BROWSER.format(python=sys.executable))
    (folder / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    (tmp_path / "page.html").write_text("<p>words</p>")
    return tmp_path / "page.html"


def take(*args: object) -> Image.Image:
    status, out = run_here(SCRIPT, list(map(str, args)))
    assert status == 0 and f"wrote {args[1]}: " in out, out
    with Image.open(str(args[1])) as image:
        return image.convert("RGB")


def test_a_picture_ends_with_the_page(page: Path) -> None:
    out = page.parent / "out.png"
    assert take(page, out).size == (1000, 300 + screenshot.MARGIN)
    found = take(page, out, "--width", 400, "--top", 60, "--height", 100, "--dark")
    assert found.size == (400, 100)
    assert found.getpixel((5, 0)) == (0, 0, 0) and found.getpixel((50, 0)) == (200, 0, 0)
    assert found.getpixel((50, 99)) == (200, 0, 0)


def told(*args: object) -> str:
    status, out = run_here(SCRIPT, list(map(str, args)))
    assert status == 2
    return error_line(out)


def test_mistakes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = page.parent / "out.png"
    for args, why in (
        ([page, page.parent / "out"], "the picture's name must end in .png"),
        ([page, out, "--width", "10"], "--width 10: must be at least 200"),
        ([page, out, "--top", "-1"], "--top -1: must be at least 0"),
        ([page, out, "--top", "500"], "--top 500: the page ends at 324"),
        ([page.parent / "no.html", out], "no.html: no such file"),
        ([page, page.parent / "no" / "out.png"], "no: no such folder"),
    ):
        assert why in told(*args)
    other = page.rename(page.with_name("other.html"))
    assert "exit status 1: what page?" in told(other, out)
    monkeypatch.setenv("PATH", str(page.parent))
    assert "no Chromium on PATH" in told(other, out)
    assert not out.exists()


def test_a_browser(tmp_path: Path) -> None:
    if not any(map(shutil.which, screenshot.BROWSERS)):
        pytest.skip("no Chromium on PATH")
    (tmp_path / "page.html").write_text("<body style='margin:0'><div style='background:#00f;width:99px;height:77px'>")
    found = take(tmp_path / "page.html", tmp_path / "out.png", "--width", 500)
    assert found.size == (500, 77 + screenshot.MARGIN) and found.getpixel((5, 70)) == (0, 0, 255)
