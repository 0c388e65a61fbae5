#!/usr/bin/env python3
"""A picture of a report page, for a README: `python scripts/screenshot.py PAGE.html PICTURE.png`."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.flags import check_least

EPILOG = """
Needs a Chromium (Debian: apt install chromium). The picture ends where the page does, or after --height; it has 256
colours, which keeps it small. Pictures in the READMEs are of pages that the commands beside them make.
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TALLEST = 8000  # pixels that are rendered; what is empty below the page is cut off
MARGIN = 24
SECONDS = 120


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="HTML file")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--width", type=int, default=1000, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--top", type=int, default=0, metavar="Y", help="leave out what is above (default: %(default)s)"
    )
    parser.add_argument("--height", type=int, help="pixels from there on (default: to the page's end)")
    parser.add_argument("--dark", action="store_true", help="as a reader sees it who prefers dark pages")
    return parser


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise UserError("no Chromium on PATH: install one (Debian: apt install chromium)")
    return found


def render(program: str, page: Path, picture: Path, width: int, dark: bool) -> None:
    """UserError if the browser leaves no picture."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-sync", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=3000",
            f"--user-data-dir={profile}", f"--window-size={width},{TALLEST}", f"--screenshot={picture}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # it refuses to start as root otherwise
            page.resolve().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise UserError(f"{program}: no picture within {SECONDS} seconds") from None
    if done.returncode or not picture.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{program}: exit status {done.returncode}: {last}")


def crop(rendered: Path, target: Path, top: int, height: int | None) -> tuple[int, int]:
    """Cut the background below the page off, and what --top and --height leave out; the size of the picture."""
    from PIL import Image, ImageChops

    with Image.open(rendered) as opened:
        image = opened.convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, background).getbbox()
    end = min(image.height, box[3] + MARGIN) if box else image.height
    if top >= end:
        raise UserError(f"--top {top}: the page ends at {end}")
    image = image.crop((0, top, image.width, min(end, top + height) if height else end))
    image.quantize(256).save(target, optimize=True)
    return image.size


def main() -> None:
    args = get_parser().parse_args()
    check_least(args, 200, "width")
    check_least(args, 0, "top")
    check_least(args, 1, "height")
    if not args.page.is_file():
        raise UserError(f"{args.page}: no such file")
    if args.picture.suffix.lower() != ".png":
        raise UserError(f"{args.picture}: the picture's name must end in .png")
    if not args.picture.parent.is_dir():
        raise UserError(f"{args.picture.parent}: no such folder")
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder) / "page.png"
        render(browser(), args.page, rendered, args.width, args.dark)
        width, height = crop(rendered, args.picture, args.top, args.height)
    print(f"wrote {args.picture}: {width} x {height}, {args.picture.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    run_main(main)
