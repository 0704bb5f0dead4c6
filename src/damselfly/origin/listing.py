"""Directory listings: what a web server's page says is in a directory.

Known are the pages of nginx (autoindex), Apache (mod_autoindex), `python -m http.server` and
aiohttp; all of them say "Index of" or "Directory listing for" in their title. Any other page is not
a listing, whatever links it has: a company's home page must not become a model.

Pages come from strangers, and `html.parser` takes minutes for a megabyte of `<a `. So tags are read
here, by expressions that never go back: what was looked at and is no tag is not looked at again,
but for one window at most. A page costs what its length says.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from html import unescape
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from damselfly.errors import ManifestError
from damselfly.model.paths import check_path
from damselfly.model.plan import FILES_MAX

TAG_CHARS_MAX = 8 << 10
"""What is longer is no tag: a name of 255 bytes, escaped, has 765."""
TAGS_MAX = 600_000
"""As a table of 30,000 files with 20 tags in every row, which nearly fills a page."""
LINKS_MAX = 2 * FILES_MAX
"""Apache links each file twice, by its icon and by its name."""
_TEXT_CHARS_MAX = 2000

_TITLE = re.compile(r"\s*(index of|directory listing for)\b", re.IGNORECASE)
_HEADINGS = frozenset({"title", "h1"})
_NAME = re.compile(r"</?+([a-z][a-z0-9]{0,15})(?=[\s/>])", re.IGNORECASE)
_INSIDE = re.compile(r"""(?:[^<>"']++|"[^"]*+"|'[^']*+')*+""")
_ATTRIBUTE = re.compile(
    r"""[\s/]*+([^\s/>="']++)(?:\s*+=\s*+("[^"]*+"|'[^']*+'|[^\s>"']++))?+""",
)
_RAW_END = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style")}
"""What is inside of these is no HTML."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One line of a listing."""

    name: str
    is_directory: bool


def parse_listing(page: str, url: str) -> list[Entry] | None:
    """Read the page that was found at `url`; None if it is not a listing.

    Links to elsewhere are no entries: the parent directory, other ways to sort, other hosts.

    Raises:
        ManifestError: an entry is called what no file of an artifact may be called, or there are
            more links or tags than a listing has.
    """
    if page.count("<") > TAGS_MAX:
        raise ManifestError(f"the page {url.partition('?')[0]} has more than {TAGS_MAX} tags")
    links = _Links(url)
    links.read(page)
    if not links.is_listing:
        return None
    base = url.partition("#")[0].partition("?")[0]
    if not base.endswith("/"):
        base += "/"
    place = urlsplit(base)
    above = _names(place.path)[:-1]
    entries: dict[str, Entry] = {}
    for href, is_marked in links.found:
        try:
            target = urlsplit(urljoin(base, unescape(href).strip()))
        except ValueError:
            continue  # An address that is none leads nowhere, so not to a file of ours.
        if (target.scheme, target.netloc) != (place.scheme, place.netloc) or target.query:
            continue
        names = _names(target.path)
        if names[: len(above)] != above:
            continue
        match names[len(above) :]:
            case [name] if name:
                is_directory = is_marked
            case [name, ""] if name:
                is_directory = True
            case _:
                continue
        if "/" in check_path(name):
            raise ManifestError(f"the listing of {base} has an entry {name!r}")
        known = entries.get(name)
        if known is None or is_directory:
            entries[name] = Entry(name, is_directory)
    return sorted(entries.values())


def _names(path: str) -> list[str]:
    # Split before decoding: %2F is part of a name, and then refused as one.
    return [unquote(name, errors="surrogateescape") for name in path.split("/")]


class _Tag(NamedTuple):
    name: str
    start: int
    stop: int
    is_end: bool


def _tags(page: str) -> Generator[_Tag]:
    """Every tag of a page in its order, without what is inside of comments and scripts."""
    at = 0
    while (at := page.find("<", at)) >= 0:
        if page.startswith(("<!", "<?"), at):
            end = "-->" if page.startswith("<!--", at) else ">"
            at = page.find(end, at + 2)
            if at < 0:
                return
            continue
        named = _NAME.match(page, at)
        if named is None:
            at += 1
            continue
        inside = _INSIDE.match(page, named.end(), min(len(page), at + TAG_CHARS_MAX))
        stop = named.end() if inside is None else inside.end()
        if not page.startswith(">", stop):
            # Here is another tag, the end of the page, or a quote that is not closed in reach.
            at = stop
            continue
        tag = _Tag(named[1].lower(), at, stop + 1, page.startswith("</", at))
        yield tag
        at = tag.stop
        if not tag.is_end and (raw_end := _RAW_END.get(tag.name)):
            found = raw_end.search(page, at)
            if found is None:
                return
            at = found.start()


class _Links:
    """Collects links and whether their text ends with a slash; notices the title of a listing."""

    def __init__(self, url: str) -> None:
        self.found: dict[tuple[str, bool], None] = {}
        self.is_listing = False
        self._place = url.partition("?")[0]
        self._heading = ""
        self._inside = ""
        self._href: str | None = None
        self._text = ""
        self._link_count = 0

    def read(self, page: str) -> None:
        at = 0
        for tag in _tags(page):
            self._hear(page, at, tag.start)
            if tag.is_end:
                self._end(tag.name)
            else:
                self._begin(page, tag)
            at = tag.stop
        self._hear(page, at, len(page))
        self._end_link()

    def _begin(self, page: str, tag: _Tag) -> None:
        self._end_link()
        self._inside = tag.name
        if tag.name in _HEADINGS:
            self._heading = ""
        if tag.name == "a":
            self._link_count += 1
            if self._link_count > LINKS_MAX:
                raise ManifestError(f"the page {self._place} has more than {LINKS_MAX} links")
            self._href = _href(page, tag)
            self._text = ""

    def _end(self, name: str) -> None:
        if name == "a":
            self._end_link()
        if name in _HEADINGS and _TITLE.match(unescape(self._heading)):
            self.is_listing = True
        self._inside = ""

    def _hear(self, page: str, start: int, stop: int) -> None:
        if self._inside in _HEADINGS and len(self._heading) < 200:
            self._heading += page[start : min(stop, start + 200)]
        if self._href is not None and len(self._text) < _TEXT_CHARS_MAX:
            self._text += page[start : min(stop, start + _TEXT_CHARS_MAX)]

    def _end_link(self) -> None:
        if self._href is not None:
            # As a character reference a slash says the same, and nobody writes one.
            self.found[self._href, self._text.rstrip().endswith("/")] = None
        self._href = None


def _href(page: str, tag: _Tag) -> str | None:
    """Where a link leads, as it is written."""
    at, stop = tag.start + 2, tag.stop - 1
    while at < stop:
        attribute = _ATTRIBUTE.match(page, at, stop)
        if attribute is None:
            at += 1
            continue
        name, value = attribute.groups()
        if name.lower() == "href":
            return _unquoted(value or "")
        at = attribute.end()
    return None


def _unquoted(value: str) -> str:
    return value[1:-1] if value[:1] in {'"', "'"} else value
