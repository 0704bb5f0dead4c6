"""XML as buckets answer it, from servers that we do not trust.

A document may have neither a DTD nor processing instructions: so no entities of its own, nothing
that grows, nothing outside of it. Depth and the number of elements are bounded; how long the text
is, whoever reads the answer bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

DEPTH_MAX = 16
ELEMENTS_MAX = 50_000
"""A page of 1,000 objects has about 8,000."""
TEXT_CHARS_MAX = 64 << 10


@dataclass(slots=True)
class Element:
    """An element without its name space, attributes and comments; `text` is its own text."""

    name: str
    text: str = ""
    children: list["Element"] = field(default_factory=list["Element"])

    def all(self, name: str) -> Iterator["Element"]:
        """The children of this name, in order."""
        return (child for child in self.children if child.name == name)

    def find(self, *names: str) -> str | None:
        """The text at the end of a path of names; None if there is no such element."""
        found: Element | None = self
        for name in names:
            assert found is not None
            found = next(found.all(name), None)
            if found is None:
                return None
        assert found is not None
        return found.text.strip()


def parse(data: bytes) -> Element:
    """Read a document and return its outermost element.

    Raises:
        ValueError: it is not XML, or not of the kind that is allowed here.
    """
    top = Element("")
    open_elements = [top]
    count = 0

    def start(name: str, attributes: object) -> None:
        nonlocal count
        del attributes
        count += 1
        if count > ELEMENTS_MAX or len(open_elements) > DEPTH_MAX:
            raise ValueError("it has too many elements, or too deep ones")
        element = Element(name.rpartition(" ")[2])
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(name: str) -> None:
        del name
        open_elements.pop()

    def text(data: str) -> None:
        element = open_elements[-1]
        if len(element.text) + len(data) > TEXT_CHARS_MAX:
            raise ValueError("it has an element with too much text")
        element.text += data

    def refuse(*_: object) -> NoReturn:
        raise ValueError("it declares types or entities")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ProcessingInstructionHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as exc:
        raise ValueError(f"it is not XML: {exc}") from None
    return top.children[0]
