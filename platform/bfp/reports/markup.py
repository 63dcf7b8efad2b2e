"""HTML made of elements, so that whatever is not markup is escaped: a subject may be called <script>.

tag("td", "<b>", class_="number")  ->  <td class="number">&lt;b&gt;</td>
"""

from __future__ import annotations

from html import escape

VOID = ("br", "img", "meta")  # elements that have no content and no end


class Markup(str):
    """Text that is HTML already; everything else is text and gets escaped."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str | int) -> Markup:
    """An element. An attribute's name loses a trailing underscore, others become hyphens: class_, aria_label."""
    names = [key.rstrip("_").replace("_", "-") for key in attributes]
    written = "".join(f' {key}="{escape(str(value))}"' for key, value in zip(names, attributes.values(), strict=True))
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: str) -> Markup:
    """Pieces one after the other, each escaped unless it is markup."""
    return Markup("".join(piece if isinstance(piece, Markup) else escape(piece) for piece in content))
