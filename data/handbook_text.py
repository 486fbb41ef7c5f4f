#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the HTML of the Debian Administrator's Handbook into plain text.

Follows the "next" links from index.html, so the order is the book's. A page whose parent is the
index opens a chapter. Chapters are dealt in turn to the two parts: odd ones to calibration, even
ones to evaluation. The parts therefore share an author and a style but no sentence.

Kept: headings, prose, lists, tables, program listings. Left out: navigation, contents, footers.
Only the standard library is used, and equal HTML gives equal bytes.

Usage: handbook_text.py HTML_FOLDER OUT_FOLDER
Writes OUT_FOLDER/handbook-{calibration,evaluation}.txt and OUT_FOLDER/chapters/NN-NAME.txt.
"""

import os
import re
import sys
from html.parser import HTMLParser

SKIPPED_TAGS = {"head", "script", "style"}
SKIPPED_CLASSES = {"docnav", "toc", "footnote", "mediaobject"}
SKIPPED_IDS = {"banner", "title"}
VOID_TAGS = {"br", "col", "hr", "img", "input", "link", "meta"}
BLOCK_TAGS = {"blockquote", "body", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6",
              "li", "ol", "p", "pre", "table", "tbody", "thead", "tr", "ul"}


class PageText(HTMLParser):
    """Text blocks of one page, with the links that give its place in the book."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.links = {}
        self.blocks = []
        self._run = []
        self._stack = []      # (tag, opens a skipped region)
        self._skipping = 0
        self._pre = 0
        self._prefix = ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "link" and "rel" in attrs and "href" in attrs:
            self.links[attrs["rel"]] = attrs["href"]
        if tag == "br" and not self._skipping:
            self._run.append("\n" if self._pre else " ")
        if tag in VOID_TAGS:
            return
        classes = set((attrs.get("class") or "").split())
        skipped = (tag in SKIPPED_TAGS or bool(classes & SKIPPED_CLASSES)
                   or attrs.get("id") in SKIPPED_IDS)
        self._stack.append((tag, skipped))
        self._skipping += skipped
        if self._skipping:
            return
        if tag in BLOCK_TAGS:
            self._flush()
        if tag == "li":
            self._prefix = "- "
        elif tag == "pre":
            self._pre += 1
        elif tag in ("td", "th"):
            self._run.append("  ")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not any(open_tag == tag for open_tag, _ in self._stack):
            return
        while self._stack:
            open_tag, skipped = self._stack.pop()
            if not self._skipping and open_tag in BLOCK_TAGS:
                self._flush()
            if not self._skipping and open_tag == "pre":
                self._pre -= 1
            self._skipping -= skipped
            if open_tag == tag:
                break

    def handle_data(self, data):
        if not self._skipping:
            self._run.append(data)

    def _flush(self):
        text = "".join(self._run).replace("\u00a0", " ").replace("\u200b", "")
        self._run = []
        if self._pre:
            text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        else:
            text = re.sub(r"\s+", " ", text).strip()
        if text:
            self.blocks.append(self._prefix + text)
            self._prefix = ""


def read_book(folder):
    """[(chapter file stem, [page text, ...]), ...] in the order of the book."""
    chapters = []
    seen = set()
    name = "index.html"
    while name and name not in seen:
        seen.add(name)
        page = PageText()
        with open(os.path.join(folder, name), encoding="utf-8") as stream:
            page.feed(stream.read())
        page.close()
        if page.links.get("up") == "index.html":
            chapters.append((name[: -len(".html")], []))
        if chapters:
            chapters[-1][1].append("\n\n".join(page.blocks))
        name = page.links.get("next")
    return chapters


def write_whole(path, text):
    """The file appears complete or not at all."""
    part = path + ".part"
    with open(part, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
    os.replace(part, path)


def main():
    if len(sys.argv) != 3:
        print(__doc__.strip().split("\n\n")[-1], file=sys.stderr)
        return 2
    source, out = sys.argv[1:]
    chapters = read_book(source)
    if len(chapters) < 10:
        print(f"handbook_text: {source} holds {len(chapters)} chapters, expected at least 10: "
              "is this the HTML of the handbook?", file=sys.stderr)
        return 3
    os.makedirs(os.path.join(out, "chapters"), exist_ok=True)
    parts = {"calibration": [], "evaluation": []}
    for number, (stem, pages) in enumerate(chapters, start=1):
        text = "\n\n".join(pages) + "\n"
        write_whole(os.path.join(out, "chapters", f"{number:02d}-{stem}.txt"), text)
        parts["calibration" if number % 2 else "evaluation"].append(text)
    for part, texts in parts.items():
        path = os.path.join(out, f"handbook-{part}.txt")
        write_whole(path, "\n".join(texts))
        print(f"{path}: {len(texts)} chapters, {os.path.getsize(path)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
