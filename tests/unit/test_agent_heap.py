"""What the C library is told of an agent's memory."""

import platform
import subprocess
import sys

import pytest

from damselfly.agent.heap import keep_heap

GLIBC = platform.libc_ver()[0] == "glibc"
PROGRAM = """
import resource, sys
from damselfly.agent.heap import keep_heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def read():
    kept = [bytes(300_000) for _ in range(16)]
    del kept

if sys.argv[1] == "kept":
    assert keep_heap()
read()
before = faults()
for _ in range(50):
    read()
print(faults() - before)
"""


def faults(how: str) -> int:
    """The page faults of a process that reads for a while."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not GLIBC, reason="another C library than glibc")
def test_reads_that_come_and_go_do_not_fault_their_pages_in_again() -> None:
    assert faults("kept") * 10 < faults("given back")


def test_another_c_library_is_left_as_it_is() -> None:
    assert keep_heap() is GLIBC
