"""A verification that hangs ends with whoever waits for it."""

import os
import sys
from pathlib import Path
from threading import Event

import pytest

from damselfly.errors import CancelledError
from damselfly.origin import signature
from damselfly.origin.signature import Method, Trust


def test_a_stop_ends_the_process_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "hangs"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/id\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    stopped = Event()
    stopped.set()
    trust = Trust(Method.KEY, (b"key",))
    with pytest.raises(CancelledError, match="was stopped"):
        signature.verify(b"{}" * 500_000, trust, {"a": "0" * 64}, stopped=stopped)
    if (tmp_path / "id").exists():  # Else it was stopped before it began.
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "id").read_text()), 0)
