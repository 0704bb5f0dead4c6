"""What the system says about a local file, in our words."""

import errno
import os

import pytest

from damselfly.errors import (
    DamselflyError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
)
from damselfly.origin.tree import local_error


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, OriginNotFoundError),
        (errno.ENOTDIR, OriginNotFoundError),
        (errno.ELOOP, OriginNotFoundError),
        (errno.ENAMETOOLONG, OriginNotFoundError),
        (errno.EACCES, OriginDeniedError),
        (errno.EPERM, OriginDeniedError),
        (errno.EIO, OriginUnavailableError),
        (errno.ESTALE, OriginUnavailableError),
        (errno.EMFILE, OriginUnavailableError),
    ],
)
def test_what_the_system_says_has_one_class(number: int, kind: type[DamselflyError]) -> None:
    error = local_error(OSError(number, os.strerror(number)), "reading /models/x")

    assert type(error) is kind
    assert str(error) == "reading /models/x"
