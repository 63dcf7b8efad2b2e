from __future__ import annotations

from bfp.reports.markup import Markup, join, tag


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    cell = tag("td", "<script>alert('1')</script>", tag("b", "ok"), class_='a" onclick="b')
    assert cell == (
        '<td class="a&quot; onclick=&quot;b">&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;<b>ok</b></td>'
    )


def test_what_is_joined_to_markup_by_plain_text_means_is_text_again() -> None:
    assert join(tag("b", "x") + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"
    assert join(Markup("<b>"), "<i>") == "<b>&lt;i&gt;"


def test_an_element_without_content_has_no_end() -> None:
    assert tag("img", alt="", aria_label="a") == '<img alt="" aria-label="a">'
