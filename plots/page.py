# SPDX-License-Identifier: Apache-2.0
"""A page that renders to self-contained HTML and to Markdown from one list of blocks."""

import base64
import html
import os

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse; margin: .6rem 0; font-size: 13px; display: block;
        overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left;
         vertical-align: top; overflow-wrap: anywhere }
th { background: #f4f4f4; white-space: nowrap }
td.pass { background: #d9efe6 } td.fail { background: #f6d5c3; font-weight: bold }
td.open { background: #f5eec2 }
img { max-width: 100%; height: auto } figure { margin: 1.2rem 0 }
figcaption, code { font-size: 12px } figcaption { color: #444 }
code { background: #f4f4f4; overflow-wrap: anywhere }
"""
# SVG of a surface is bigger than its picture; beyond this size the PNG goes into the page.
MAX_SVG_BYTES = 400_000
VERDICT_CLASS = {"pass": "pass", "FAIL": "fail", "not judged": "open"}


def read_bytes(path):
    with open(path, "rb") as stream:
        return stream.read()


def image_source(base):
    """data: address of a figure, vector where it is small."""
    svg = base + ".svg"
    if os.path.exists(svg) and os.path.getsize(svg) <= MAX_SVG_BYTES:
        kind, data = "svg+xml", read_bytes(svg)
    else:
        kind, data = "png", read_bytes(base + ".png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Page:
    def __init__(self, title):
        self.title = title
        self.blocks = []  # (html, function of the output folder -> markdown)

    def _add(self, as_html, as_markdown):
        self.blocks.append((as_html, as_markdown))

    def heading(self, text, level=2):
        self._add(f"<h{level}>{html.escape(text)}</h{level}>", lambda _: f"{'#' * level} {text}")

    def text(self, text):
        self._add(f"<p>{html.escape(text)}</p>", lambda _: text)

    def table(self, header, rows, verdict=False):
        """With `verdict` the first column is coloured by pass, FAIL, not judged."""
        def cell(value, column):
            style = VERDICT_CLASS.get(value) if verdict and column == 0 else None
            return f"<td{f' class={style}' if style else ''}>{html.escape(str(value))}</td>"

        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join("<tr>" + "".join(cell(v, i) for i, v in enumerate(row)) + "</tr>\n"
                       for row in rows)

        def markdown(_):
            lines = [header, ["---"] * len(header)] + rows
            return "\n".join("| " + " | ".join(str(v).replace("|", "\\|").replace("\n", " ")
                                               for v in line) + " |" for line in lines)

        self._add(f"<table><tr>{head}</tr>\n{body}</table>", markdown)

    def figure(self, base):
        """A figure saved by common.save(): BASE.{svg,png,txt}."""
        with open(base + ".txt", encoding="utf-8") as stream:
            caption, *rest = stream.read().rstrip("\n").split("\n")
        name = os.path.basename(base)
        self._add(f'<figure id="{name}"><img alt="{html.escape(name)}" src="{image_source(base)}">'
                  f"<figcaption>{html.escape(caption)}<br>" +
                  "<br>".join(f"<code>{html.escape(line)}</code>" for line in rest) +
                  "</figcaption></figure>",
                  lambda folder: f"![{name}]({os.path.relpath(base + '.png', folder or '.')})\n\n"
                                 f"*{caption}*\n\n" + "\n".join(f"`{line}`  " for line in rest))

    def write(self, out):
        """OUT.html and OUT.md, each complete or not at all."""
        folder = os.path.dirname(out)
        title = html.escape(self.title)
        whole = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}'
                 f"</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n" +
                 "\n".join(block for block, _ in self.blocks) + "\n</body></html>\n")
        markdown = f"# {self.title}\n\n" + "\n\n".join(f(folder) for _, f in self.blocks) + "\n"
        for suffix, text in ((".html", whole), (".md", markdown)):
            with open(out + suffix + ".part", "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(out + suffix + ".part", out + suffix)
