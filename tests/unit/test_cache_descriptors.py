"""The LRU of open files: opened once, never closed in use, never leaked."""

import os

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from damselfly.cache.descriptors import Descriptor, Descriptors


class Opened:
    """Files that somebody opened, by a number that is not used again."""

    def __init__(self) -> None:
        self.inodes: list[tuple[int, int]] = []

    def __call__(self) -> int:
        fd = os.memfd_create("test")
        self.inodes.append((fd, os.fstat(fd).st_ino))
        return fd

    def count(self) -> int:
        """How many are open still."""
        found = 0
        for fd, ino in self.inodes:
            try:
                found += os.fstat(fd).st_ino == ino
            except OSError:
                continue
        return found


def test_a_file_is_opened_once() -> None:
    opened, descriptors = Opened(), Descriptors(2)

    one, two = descriptors.acquire(1, opened), descriptors.acquire(1, opened)

    assert one is two
    assert len(opened.inodes) == 1
    descriptors.release(one)
    descriptors.release(two)
    descriptors.close()
    assert opened.count() == 0


def test_who_uses_a_forgotten_file_keeps_it_until_the_end() -> None:
    opened, descriptors = Opened(), Descriptors(2)
    old = descriptors.acquire(1, opened)
    descriptors.forget(1)

    new = descriptors.acquire(1, opened)

    assert new.fd != old.fd
    assert opened.count() == 2
    descriptors.release(old)
    assert opened.count() == 1
    descriptors.release(new)
    descriptors.close()
    assert opened.count() == 0


class DescriptorsMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.opened = Opened()
        self.descriptors = Descriptors(2)
        self.held: list[Descriptor] = []

    @rule(key=st.integers(0, 4))
    def acquire(self, key: int) -> None:
        self.held.append(self.descriptors.acquire(key, self.opened))

    @rule(number=st.integers(0, 20))
    def release(self, number: int) -> None:
        if self.held:
            self.descriptors.release(self.held.pop(number % len(self.held)))

    @rule(key=st.integers(0, 4))
    def forget(self, key: int) -> None:
        self.descriptors.forget(key)

    @invariant()
    def what_is_used_is_open_and_little_else(self) -> None:
        if not hasattr(self, "opened"):
            return
        used = {descriptor.fd for descriptor in self.held}
        for fd in used:
            os.fstat(fd)
        assert len(used) <= self.opened.count() <= len(used) + 2

    def teardown(self) -> None:
        if hasattr(self, "opened"):
            for descriptor in self.held:
                self.descriptors.release(descriptor)
            self.descriptors.close()
            assert self.opened.count() == 0


DescriptorsMachine.TestCase.settings = settings(max_examples=50, deadline=None)
TestDescriptorsMachine = DescriptorsMachine.TestCase
