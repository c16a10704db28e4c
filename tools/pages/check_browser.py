"""python -m pages.check_browser FOLDER [PICTURES]: a built site in Chromium. Every page loads without an error or a request to elsewhere
and fits the width of a phone, and the search finds every op. Needs playwright and a chromium on the path."""

import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import TimeoutError, sync_playwright


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def visited(page, root, folder, pictures):
    """The faults of every page, at the widths of a screen and of a phone."""
    faults = []
    where = ""
    page.on("pageerror", lambda error: faults.append(f"{where}: {error}"))
    page.on("console", lambda line: faults.append(f"{where}: {line.text}") if line.type == "error" else None)
    page.on(
        "request", lambda call: None if call.url.startswith((root, "data:")) else faults.append(f"{where}: {call.url}")
    )
    page.on(
        "response",
        lambda answer: faults.append(f"{where}: {answer.status} {answer.url}") if answer.status >= 400 else None,
    )
    for path in sorted(folder.rglob("*.html")):
        where = str(path.relative_to(folder))
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(f"{root}/{where}", wait_until="networkidle")
            if not page.locator("h1").first.is_visible():
                faults.append(f"{where}: has no heading")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                faults.append(f"{where}: is wider than {width} pixels")
            if pictures:
                page.screenshot(path=pictures / f"{where.replace('/', '-')}-{width}.png")
    return faults


def searched(page, root, word, wanted):
    """Types a word into the search; None if the wanted page is among the results."""
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{root}/index.html", wait_until="networkidle")
    page.click("input.md-search__input")
    page.keyboard.type(word)
    try:
        page.wait_for_selector(".md-search-result__link", timeout=10_000)
    except TimeoutError:
        return f"search for {word}: nothing in 10 s"
    links = page.eval_on_selector_all(".md-search-result__link", "all => all.map(a => a.href.split(/[?#]/)[0])")
    return None if f"{root}/{wanted}" in links else f"search for {word}: {wanted} is not in {links}"


def main(folder, pictures=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        faults = visited(page, root, folder, pictures)
        ops = sorted(path.relative_to(folder) for path in folder.glob("ops/*_*.html"))
        faults += [searched(page, root, path.stem, str(path)) for path in ops]
        browser.close()
    server.shutdown()
    faults = [fault for fault in faults if fault]
    print("\n".join(faults) or f"every page loads and the search finds {len(ops)} ops")
    return bool(faults) or not ops


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
