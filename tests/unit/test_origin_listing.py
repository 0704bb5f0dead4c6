"""Directory listings as servers write them, and as somebody hostile might."""

import contextlib

import pytest
from hypothesis import given, strategies as st

from damselfly.errors import ManifestError
from damselfly.origin.listing import LINKS_MAX, TAGS_MAX, Entry, parse_listing

URL = "http://h/m/"

APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html>
 <head>
  <title>Index of /m</title>
 </head>
 <body>
<h1>Index of /m</h1>
  <table>
   <tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a>
   </th><th><a href="?C=M;O=A">Last modified</a></th><th><a href="?C=S;O=A">Size</a></th></tr>
   <tr><td valign="top"><img src="/icons/back.gif" alt="[PARENTDIR]"></td>
   <td><a href="/">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td></tr>
<tr><td valign="top"><a href="config.json"><img src="/icons/unknown.gif" alt="[   ]"></a></td>
<td><a href="config.json">config.json</a></td><td align="right">2026-11-23 09:41  </td></tr>
<tr><td><a href="a%20b%20&amp;%20%3cc%3e%2541.txt">a b &amp; &lt;c&gt;%41.txt</a></td></tr>
<tr><td><a href="model-00001-of-00002.safetensors">model-00001-of-00002.s..&gt;</a></td></tr>
<tr><td><a href="original/">original/</a></td><td>2026-11-23 09:41  </td></tr>
<tr><td><a href="./1:2.bin">1:2.bin</a></td></tr>
</table>
<address>Apache/2.4.57 (Debian) Server at <a href="mailto:admin@h">h</a> Port 80</address>
</body></html>
"""

APACHE_PLAIN = """<html><head><title>Index of /m</title></head><body><h1>Index of /m</h1>
<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a> <hr>
<img src="/icons/back.gif"> <a href="/">Parent Directory</a>                             -
<img src="/icons/unknown.gif"> <a href="config.json">config.json</a>   2026-11-23 09:41    2
</pre></body></html>"""

NGINX = """<html>\r
<head><title>Index of /m/</title></head>\r
<body>\r
<h1>Index of /m/</h1><hr><pre><a href="../">../</a>\r
<a href="original/">original/</a>                      23-Nov-2026 09:41       -\r
<a href="gr%C3%B6%C3%9Fe.bin">größe.bin</a>            23-Nov-2026 09:41       3\r
<a href="a-name-that-is-longer-than-nginx-likes-to-show-in-a-row.bin">a-name-that..&gt;</a>\r
</pre><hr></body>\r
</html>\r
"""

AIOHTTP = """<html>
<head>
<title>Index of /.</title>
</head>
<body>
<h1>Index of /.</h1>
<ul>
<li><a href="/m/config.json">config.json</a></li>
<li><a href="/m/original">original/</a></li>
</ul>
</body>
</html>"""

PYTHON = """<!DOCTYPE HTML>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Directory listing for /m/</title>
</head>
<body>
<h1>Directory listing for /m/</h1>
<hr>
<ul>
<li><a href="config.json">config.json</a></li>
<li><a href="link">link@</a></li>
<li><a href="original/">original/</a></li>
</ul>
<hr>
</body>
</html>"""


def _files(*names: str) -> list[Entry]:
    return [Entry(name.rstrip("/"), name.endswith("/")) for name in names]


@pytest.mark.parametrize(
    ("page", "entries"),
    [
        (
            APACHE,
            _files(
                "1:2.bin",
                "a b & <c>%41.txt",
                "config.json",
                "model-00001-of-00002.safetensors",
                "original/",
            ),
        ),
        (APACHE_PLAIN, _files("config.json")),
        (
            NGINX,
            _files(
                "a-name-that-is-longer-than-nginx-likes-to-show-in-a-row.bin",
                "größe.bin",
                "original/",
            ),
        ),
        (AIOHTTP, _files("config.json", "original/")),
        (PYTHON, _files("config.json", "link", "original/")),
    ],
)
def test_the_listings_of_known_servers_are_read(page: str, entries: list[Entry]) -> None:
    assert parse_listing(page, URL) == entries
    assert parse_listing(page, "http://h/m") == entries


@pytest.mark.parametrize(
    "page",
    [
        "",
        "hello",
        "<title>Models</title><a href='config.json'>config.json</a>",
        "<p>Index of things</p><a href='config.json'>config.json</a>",
        '{"weight_map": {}}',
    ],
)
def test_another_page_is_no_listing(page: str) -> None:
    assert parse_listing(page, URL) is None


def _linking(*hrefs: str) -> str:
    return "<title>Index of /m/</title>" + "".join(f'<a href="{href}">x</a>' for href in hrefs)


def test_links_to_elsewhere_are_no_entries() -> None:
    page = _linking(
        *("../", "..", "/", "/m/", "/m", ".", "./", "", "#top", "?C=N&O=D", "a?C=N", "/other/a"),
        *("http://evil/m/a", "https://h/m/a", "//evil/m/a", "http://h:81/m/a", "mailto:a@h"),
        *("javascript:alert(1)", "file:///m/a", "http://[bad/m/a", "sub/a", "../n/a"),
    )

    assert parse_listing(page, URL) == []


def test_an_empty_directory_has_an_empty_listing() -> None:
    assert parse_listing(_linking(), URL) == []


@pytest.mark.parametrize(
    "href",
    ["%2e%2e", "%2e%2e/", "..%2f..%2fetc%2fpasswd", "a%2fb", "a%5cb", "a%00", "a%0ab", "%ff"],
)
def test_a_name_that_would_leave_the_directory_is_refused(href: str) -> None:
    with pytest.raises(ManifestError):
        parse_listing(_linking(href), URL)


def test_an_entry_is_told_once_and_as_a_directory_where_any_link_says_so() -> None:
    assert parse_listing(_linking("a", "a", "b", "b/"), URL) == _files("a", "b/")


def test_links_that_are_not_closed_are_links() -> None:
    page = "<h1>Index of /m</h1><a href=a>a<a href=b/>b/<a href=c>c"

    assert parse_listing(page, URL) == _files("a", "b/", "c")


def test_what_is_inside_of_comments_and_scripts_is_no_link() -> None:
    page = (
        "<title>Index of /m</title><!-- <a href=b>b</a> --><script>x = '<a href=c>c</a>'</SCRIPT>"
        "<style><a href=d>d</style><a href=a>a</a><!-- <a href=e>e</a>"
    )

    assert parse_listing(page, URL) == _files("a")


@pytest.mark.parametrize(
    "tag",
    [
        "<A HREF=a>",
        "<a\nclass='x' href = 'a' >",
        '<a title=" href=b >" href="a"/>',
        "<a data-href=b href=a href=c>",
        "<a = / href=a>",
        "< a href=b><a href=a>",
        "<a x='<a href=a>",
    ],
)
def test_a_link_is_found_however_it_is_spelt(tag: str) -> None:
    assert parse_listing(f"<h1>Index of /m</h1>{tag}a</a>", URL) == _files("a")


@pytest.mark.parametrize(
    "part",
    [
        *("<a ", "<a", "<", "<!--", "<!", "<![CDATA[", "<?", "</a ", "</", "<a href=", '<a href="'),
        *("<a href='x", "<a \"'", "<a '\"", "<script>", "<style>", "</script", "<title>", "<h1>"),
        *("<a =", "<a / ", "<a x y ", "&#", "&amp", "<a href=x>", "<b>", "<a \n\t ", '<a x="> '),
    ],
)
def test_a_megabyte_of_anything_is_read_to_its_end(part: str) -> None:
    page = "<title>Index of /</title>" + part * ((1 << 20) // len(part))

    with contextlib.suppress(ManifestError):
        assert parse_listing(page, URL) in ([], _files("x"), None)


@given(
    parts=st.lists(st.sampled_from(["<a ", "href=", '"', "'", "<", ">", "x", " ", "<!--", "/a"])),
    count=st.integers(1, 2000),
)
def test_what_repeats_is_read_to_its_end(parts: list[str], count: int) -> None:
    with contextlib.suppress(ManifestError):
        parse_listing("<title>Index of /</title>" + "".join(parts) * count, URL)


def test_a_page_with_more_links_than_an_artifact_has_files_is_refused() -> None:
    with pytest.raises(ManifestError, match="links"):
        parse_listing(_linking() + "<a href=x>" * (LINKS_MAX + 1), URL)


def test_a_page_with_more_tags_than_a_listing_has_is_refused() -> None:
    with pytest.raises(ManifestError, match="tags"):
        parse_listing(_linking() + "<b>" * TAGS_MAX, URL)


def test_a_number_that_no_character_has_leads_nowhere() -> None:
    assert parse_listing(_linking("&#" + "9" * 5000 + ";"), URL) == []
