"""Directory listings: what a web server's page says is in a directory.

Known are the pages of nginx (autoindex), Apache (mod_autoindex), `python -m http.server` and
aiohttp; all of them say "Index of" or "Directory listing for" in their title. Any other page is not
a listing, whatever links it has: a company's home page must not become a model.
"""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from damselfly.errors import ManifestError
from damselfly.model.paths import check_path

_TITLE = re.compile(r"\s*(index of|directory listing for)\b", re.IGNORECASE)
_HEADINGS = frozenset({"title", "h1"})


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One line of a listing."""

    name: str
    is_directory: bool


def parse_listing(page: str, url: str) -> list[Entry] | None:
    """Read the page that was found at `url`; None if it is not a listing.

    Links to elsewhere are no entries: the parent directory, other ways to sort, other hosts.

    Raises:
        ManifestError: an entry is called what no file of an artifact may be called.
    """
    links = _Links()
    links.feed(page)
    links.close()
    if not links.is_listing:
        return None
    base = url.partition("#")[0].partition("?")[0]
    if not base.endswith("/"):
        base += "/"
    place = urlsplit(base)
    above = _names(place.path)[:-1]
    entries: dict[str, Entry] = {}
    for href, text in links.found:
        try:
            target = urlsplit(urljoin(base, href.strip()))
        except ValueError:
            continue  # An address that is none leads nowhere, so not to a file of ours.
        if (target.scheme, target.netloc) != (place.scheme, place.netloc) or target.query:
            continue
        names = _names(target.path)
        if names[: len(above)] != above:
            continue
        match names[len(above) :]:
            case [name] if name:
                is_directory = text.rstrip().endswith("/")
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


class _Links(HTMLParser):
    """Collects links with their text, and notices the title of a listing."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str]] = []
        self.is_listing = False
        self._heading = ""
        self._inside = ""
        self._href: str | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_link()
        self._inside = tag
        if tag in _HEADINGS:
            self._heading = ""
        if tag == "a":
            self._href = dict(attrs).get("href")
            self._text = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._end_link()
        if tag in _HEADINGS and _TITLE.match(self._heading):
            self.is_listing = True
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in _HEADINGS and len(self._heading) < 200:
            self._heading += data
        if self._href is not None and len(self._text) < 2000:
            self._text += data

    def close(self) -> None:
        super().close()
        self._end_link()

    def _end_link(self) -> None:
        if self._href is not None:
            self.found.append((self._href, self._text))
        self._href = None
