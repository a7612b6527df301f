"""The few pieces of HTML that products, queries and galleries are shown with. All text is escaped."""

from collections.abc import Iterable
from html import escape

FRAME = "font-family:system-ui,'Noto Sans','Noto Sans Thai',sans-serif;font-size:13px;line-height:1.45"
CARD = "width:{width}px;padding:8px;border:1px solid #8884;border-radius:8px;overflow-wrap:anywhere"
GREY = "color:#767676"
GREEN, RED = "#00795c", "#b3400f"
"""Met and not met: Okabe and Ito's colour-blind safe pair, darkened to be read on white."""


def picture(address: str | None, size: int, alt: str, inline: bool = False) -> str:
    """An `<img>` of `size` pixels, or a dashed box that says there is no picture."""
    style = f"width:{size}px;height:{size}px;object-fit:contain;border-radius:6px;"
    style += "vertical-align:middle;margin:2px" if inline else "display:block;margin:0 auto 6px"
    if address is None:
        style += ";display:inline-block;border:1px dashed #8886;text-align:center"
        return f'<span style="{style}">no picture</span>'
    return f'<img src="{address}" alt="{escape(alt, quote=True)}" style="{style}">'


def card(image: str, lines: Iterable[str], width: int = 132, accent: str | None = None) -> str:
    """A picture over lines of (already escaped) HTML; `accent` colours the frame."""
    style = CARD.format(width=width) + (f";border:2px solid {accent}" if accent else "")
    return f'<div style="{style}">{image}{"".join(f"<div>{line}</div>" for line in lines if line)}</div>'


def row(cards: Iterable[str]) -> str:
    """Cards beside one another, wrapping where the page ends."""
    return f'<div style="{FRAME};display:flex;flex-wrap:wrap;gap:10px;align-items:stretch">{"".join(cards)}</div>'


def block(content: str) -> str:
    """A paragraph in the workbench's font."""
    return f'<div style="{FRAME};max-width:860px;margin:6px 0">{content}</div>'


def grey(text: str) -> str:
    return f'<span style="{GREY}">{escape(text)}</span>'


def verdict(label: str, met: bool | None) -> str:
    """A tick, a cross or a question mark, and what it is about: never by colour alone."""
    sign, colour = {True: ("✓", GREEN), False: ("✗", RED), None: ("?", "#767676")}[met]
    return f'<span style="color:{colour};white-space:nowrap">{sign} {escape(label)}</span>'


def page(title: str, body: str) -> str:
    """A whole page that needs no network."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<body style="{FRAME};margin:24px auto;max-width:1080px;padding:0 16px"><h1>{escape(title)}</h1>{body}</body></html>'
    )
