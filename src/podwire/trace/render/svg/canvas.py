"""Drawing: shapes and texts as SVG elements, how wide a text is, and the colours.

What lives here: all that knows SVG's syntax; escaping. What does not: where things are.

Nobody knows the reader's fonts, so widths are estimated from DejaVu Sans, the widest of those in
the font stack: a text that fits by this measure fits everywhere. Colours are classes, with the
dark ones in a media query; a viewer that ignores the query shows the light ones. Each selector
starts with the picture's own class, so that the style stays inside when a page embeds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from podwire.trace.render.ink import clean


class Font(NamedTuple):
    size: float
    mono: bool = False
    bold: bool = False


FONTS = {
    "title": Font(18, bold=True),
    "name": Font(13, bold=True),
    "text": Font(13),
    "small": Font(11.5),
    "smallb": Font(11.5, bold=True),
    "code": Font(11, mono=True),
    "codeb": Font(11, mono=True, bold=True),
    "num": Font(11, bold=True),
}

_LIGHT = {
    "bg": "fill:#ffffff",
    "node": "fill:#f6f8fa;stroke:#d0d7de",
    "ghost": "fill:none;stroke:#afb8c1;stroke-dasharray:5 4",
    "pod": "fill:#ddf4ff;stroke:#54aeff",
    "bridge": "fill:#dafbe1;stroke:#4ac26b",
    "tunnel": "fill:#fbefff;stroke:#c297ff",
    "nic": "fill:#ffffff;stroke:#8c959f",
    "under": "fill:#fff8c5;stroke:#d4a72c",
    "cloud": "fill:#f6f8fa;stroke:#8c959f",
    "panel": "fill:#fff1f0;stroke:#ffc1bc",
    "remark": "fill:#fff8f0;stroke:#f5d0a9",
    "idle": "fill:#f6f8fa;stroke:#d0d7de;stroke-dasharray:5 4",
    "t": "fill:#1f2328",
    "m": "fill:#59636e",
    "q": "fill:#b35900",
    "p": "fill:#0969da",
    "x": "fill:#cf222e",
    "g": "fill:#1a7f37",
    "n": "fill:#ffffff",
    "request": "stroke:#c4620a",
    "reply": "stroke:#0969da",
    "cross": "stroke:#cf222e",
    "qdot": "fill:#c4620a",
    "pdot": "fill:#0969da",
    "guide": "stroke:#afb8c1",
}
_DARK = {
    "bg": "fill:#0d1117",
    "node": "fill:#161b22;stroke:#3d444d",
    "ghost": "fill:none;stroke:#4d555f",
    "pod": "fill:#0d2d52;stroke:#388bfd",
    "bridge": "fill:#12311c;stroke:#3fb950",
    "tunnel": "fill:#2e1b47;stroke:#a371f7",
    "nic": "fill:#0d1117;stroke:#6e7681",
    "under": "fill:#3a2d08;stroke:#bb8009",
    "cloud": "fill:#161b22;stroke:#6e7681",
    "panel": "fill:#2d1214;stroke:#6b2327",
    "remark": "fill:#2b1d0e;stroke:#6b4a1e",
    "idle": "fill:#161b22;stroke:#3d444d",
    "t": "fill:#f0f6fc",
    "m": "fill:#9198a1",
    "q": "fill:#f5a35c",
    "p": "fill:#79b8ff",
    "x": "fill:#ff7b72",
    "g": "fill:#3fb950",
    "n": "fill:#0d1117",
    "request": "stroke:#f0883e",
    "reply": "stroke:#58a6ff",
    "cross": "stroke:#ff7b72",
    "qdot": "fill:#f0883e",
    "pdot": "fill:#58a6ff",
    "guide": "stroke:#4d555f",
}
_SHAPES = """\
.podwire text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}
.podwire .title{font-size:18px;font-weight:600}
.podwire .name{font-weight:600}
.podwire .small{font-size:11.5px}
.podwire .smallb{font-size:11.5px;font-weight:600}
.podwire .code,.podwire .codeb{font-family:ui-monospace,Menlo,'DejaVu Sans Mono',monospace;\
font-size:11px}
.podwire .codeb{font-weight:600}
.podwire .num{font-size:11px;font-weight:700}
.podwire .way{fill:none;stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}
.podwire .reply{stroke-dasharray:7 5}
.podwire .unseen{stroke-dasharray:1 6;opacity:.7}
.podwire .cross{fill:none;stroke-width:4;stroke-linecap:round}
.podwire .guide{fill:none;stroke-dasharray:3 4}
"""


def _sheet() -> str:
    def rules(colours: dict[str, str], indent: str) -> str:
        return "".join(f"{indent}.podwire .{name}{{{rule}}}\n" for name, rule in colours.items())

    dark = f"@media (prefers-color-scheme:dark){{\n{rules(_DARK, '  ')}}}\n"
    return _SHAPES + rules(_LIGHT, "") + dark


# Advance widths of DejaVu Sans, in thousandths of the size, for the groups that matter.
_WIDTHS = {
    **dict.fromkeys("ijl'|!", 300),
    **dict.fromkeys(" .,;:I()[]/f", 400),
    **dict.fromkeys('tr-"{}\\', 420),
    **dict.fromkeys("abcdeghknopqsuvxyzLFTJZ", 620),
    **dict.fromkeys("0123456789$?_*€", 640),
    **dict.fromkeys("mwMWQ%@&", 980),
}
_OTHER = 840
_BOLD = 1.11
_MONO = 0.603


def width(text: str, font: str) -> float:
    """How wide a clean text is at most, in the picture's units."""
    size, mono, bold = FONTS[font]
    if mono:
        wide = sum(1 if ord(char) < 0x1100 or 0x2000 <= ord(char) < 0x2E80 else 2 for char in text)
        return wide * size * _MONO
    thousandths = sum(_WIDTHS.get(char, _OTHER if ord(char) < 0x2E80 else 1050) for char in text)
    return thousandths / 1000 * size * (_BOLD if bold else 1)


def clip(text: str, font: str, room: float) -> str:
    """`text` shortened to `room`, an ellipsis at its end; empty where not even that fits."""
    if width(text, font) <= room:
        return text
    while text and width(text + "…", font) > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def wrap(text: str, font: str, room: float, lines: int) -> list[str]:
    """`text` in at most so many lines of `room`; the last one is clipped."""
    found: list[str] = []
    rest = clean(text).split()
    while rest and len(found) < lines - 1:
        line = rest.pop(0)
        while rest and width(f"{line} {rest[0]}", font) <= room:
            line += f" {rest.pop(0)}"
        found.append(clip(line, font, room))
    return [*found, clip(" ".join(rest), font, room)] if rest else found


def number(value: float) -> str:
    """A coordinate: one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


class Canvas:
    """Collects elements. Texts are cleaned and escaped here, whatever they come from."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, look: str, rx: float = 8) -> None:
        size = f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}"'
        self._parts.append(f'<rect class="{look}" {size} rx="{number(rx)}"/>')

    def path(self, d: str, look: str) -> None:
        self._parts.append(f'<path class="{look}" d="{d}"/>')

    def circle(self, x: float, y: float, r: float, look: str) -> None:
        self._parts.append(
            f'<circle class="{look}" cx="{number(x)}" cy="{number(y)}" r="{number(r)}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        font: str = "text",
        ink: str = "t",
        *,
        anchor: str = "start",
        room: float | None = None,
        shorter: Sequence[str] = (),
    ) -> float:
        """Draws a text; where it does not fit into `room`, the first of `shorter` that does.

        Where none does, it is clipped. What is left out can be seen by pointing at it. Returns the
        width of what is drawn.
        """
        whole = clean(content)
        shown = whole
        if room is not None:
            fitting = (text for text in (whole, *map(clean, shorter)) if width(text, font) <= room)
            shown = next(fitting, None) or clip(whole, font, room)
        if not shown:
            return 0
        at = f'x="{number(x)}" y="{number(y)}"'
        if anchor != "start":
            at += f' text-anchor="{anchor}"'
        tip = f"<title>{escape(whole, quote=False)}</title>" if shown != whole else ""
        body = escape(shown, quote=False)
        self._parts.append(f'<text class="{font} {ink}" {at}>{tip}{body}</text>')
        return width(shown, font)

    def document(self, w: float, h: float, title: str, description: str) -> str:
        """The whole picture, on a background of its own."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="podwire" viewBox="0 0 {number(w)}'
            f' {number(h)}" role="img" aria-labelledby="title desc">\n'
            f'<title id="title">{escape(clean(title), quote=False)}</title>\n'
            f'<desc id="desc">{escape(clean(description), quote=False)}</desc>\n'
            f"<style>\n{_sheet()}</style>\n"
            f'<rect class="bg" width="{number(w)}" height="{number(h)}" rx="12"/>\n'
        )
        return head + "\n".join(self._parts) + "\n</svg>\n"
