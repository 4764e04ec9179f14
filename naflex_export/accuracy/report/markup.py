"""Elements of HTML, SVG and XML from text that anyone may have written: escaped, and free of what XML cannot hold."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document may hold, such as the escapes by which a backend colours its messages."""


def tag(name: str, /, *children: Element | str, **attributes: object) -> Element:
    """Return an element with its children, elements or text.

    Attributes are named as in Python: `class_` is class, and `stroke_width` is stroke-width.

    Args:
        name: of the element.
        children: elements, or text.
        attributes: of the element.
    """
    named = {key.rstrip("_").replace("_", "-"): clean(str(value)) for key, value in attributes.items()}
    element = ElementTree.Element(name, named)
    for child in children:
        if not isinstance(child, str):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + clean(child)
        else:
            element.text = (element.text or "") + clean(child)
    return element


def clean(text: str) -> str:
    """Return the text with a replacement character for each that XML cannot hold."""
    return NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def html_of(element: Element) -> str:
    """Return an element and all within it as HTML."""
    return ElementTree.tostring(element, encoding="unicode", method="html")


def document(title: str, style: str, main: Element) -> str:
    """Return a page of one file without scripts, which fits a narrow screen too.

    Args:
        title: of the page.
        style: its style sheet.
        main: all that is on it.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    return f"<!doctype html>\n{html_of(tag('html', head, tag('body', main), lang='en'))}\n"
