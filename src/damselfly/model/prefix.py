"""Prefixes of refs: what a rule of an administrator's is for. Pure.

`https://host/models` means that directory and what is below it, and not
`https://host/models-of-others`: names count whole. A repository of a hub or a registry is one name
whatever its revision: `hf://org/name` has `hf://org/name@main` below it and every other commit of
the repository, also those of somebody's pull request (`refs/pr/N`), which the hub keeps in there.
A rule that wants one revision says so: `hf://org/name@main`.

A prefix is kept in the form that parsed refs have (`model/ref.py`): else it would never match. It
is no place for secrets, so one with a query or a user name is refused, and is not repeated.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

from damselfly.model.schemes import SCHEMES

PREFIXES_MAX = 256
_PREFIX = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s]+)(/[^?#\s]*)?", re.ASCII)
_PATH = re.compile(r"(?:[A-Za-z0-9/._~!$&'()*+,;=:@-]|%[0-9A-F]{2})*", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_PLACED = frozenset({"hf", "s3", "gs", "az"})
"""What follows their slashes is no host: upper case means something."""
_REVISED = {"hf": "@", "oci": ":@"}
"""Where the revision of a repository begins."""


def checked(word: str) -> str:
    """Write a prefix the one way.

    Raises:
        ValueError: no ref could lie below it, or it is on this machine's own disk.
    """
    scheme, mark, rest = word.partition("://")
    scheme = scheme.lower()
    if "?" in word or "@" in rest.partition("/")[0]:
        raise ValueError("a prefix with a query or a user name in it: no secret belongs there")
    shown = repr(word[:120])
    if scheme == "file":
        raise ValueError("no prefix allows a file:// ref: it lies on this node's own disk")
    match = _PREFIX.fullmatch(f"{scheme}{mark}{rest}")
    if match is None:
        raise ValueError(f"{shown} is neither none, all nor a prefix such as https://host/models/")
    _, host, path = match.groups(default="")
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"{shown} has a . or .. in it: write where it leads")
    if not _PATH.fullmatch(path):
        raise ValueError(f"{shown} has characters that refs encode: write them as %C3%BC")
    if any(_PATH.fullmatch(unquote(code)) for code in re.findall("%..", path)):
        raise ValueError(f"{shown} encodes a character that refs do not: write it as it is")
    if scheme not in _PLACED:
        host = host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, "\0"))
    return f"{scheme}://{host}{path}"


def check_spoken(prefix: str, others: Iterable[str] = ()) -> None:
    """Make sure that some origin speaks the scheme of a prefix: those of `others` do, too.

    Raises:
        ValueError: none does, so no ref would ever lie below it.
    """
    scheme = prefix.partition("://")[0]
    if scheme not in {*SCHEMES, *others}:
        known = ", ".join(f"{one}://" for one in (*SCHEMES[1:], *others))
        raise ValueError(f"no origin speaks {scheme}://: known are {known}")


def is_below(location: str, prefix: str) -> bool:
    """Whether the location of a parsed ref is a prefix of `checked`, or lies below it."""
    if prefix.endswith("/"):
        return f"{location}/".startswith(prefix)
    if not location.startswith(prefix):
        return False
    after = location[len(prefix) :]
    if not after or after[0] in "/?":
        return True
    scheme, _, rest = prefix.partition("://")
    # A revision follows the name of a repository, and nothing shorter: `hf://org`, `oci://host`.
    return "/" in rest and after[0] in _REVISED.get(scheme, "")


def longest_of(location: str, prefixes: Iterable[str]) -> str | None:
    """The prefix that says most about a location; None: it lies below none."""
    found = [prefix for prefix in prefixes if is_below(location, prefix)]
    return max(found, key=lambda prefix: len(prefix.rstrip("/")), default=None)
