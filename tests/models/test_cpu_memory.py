"""What libraries would keep is given back where there is a call for it, and what the user has set stays."""

import os
from types import SimpleNamespace

import pytest

from coral_lab.models import cpu_memory


@pytest.mark.parametrize("own", [None, "5"])
def test_few_shapes_are_kept_unless_the_user_set_another_number(own, monkeypatch):
    for name in cpu_memory.CACHES:
        monkeypatch.setenv(name, own) if own else monkeypatch.delenv(name, raising=False)
    cpu_memory.keep_few_shapes()
    assert {os.environ[name] for name in cpu_memory.CACHES} == {own or "16"}


def test_glibc_is_asked_and_systems_without_its_calls_keep_their_memory(monkeypatch):
    asked = []
    library = SimpleNamespace(
        malloc_trim=lambda *own: asked.append(("trim", *own)),
        mallopt=lambda *own: asked.append(("option", *own)),
    )
    for platform, found in (("linux", library), ("linux", SimpleNamespace()), ("win32", library)):
        monkeypatch.setattr(cpu_memory.sys, "platform", platform)
        monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda _, found=found: found)
        cpu_memory.give_back()
        cpu_memory.give_back_at_once()
    assert asked == [("trim", 0), ("option", -3, 2**20)]
