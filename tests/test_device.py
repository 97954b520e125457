"""The hardware as facts: what a container may take, and names that mean nothing."""

import os

import pytest

from hf_peft_recipes.device import _host_memory_bytes, detect_device, named_device
from hf_peft_recipes.errors import UserError

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, PHYSICAL),
        ({"memory.max": "max\n"}, PHYSICAL),
        ({"memory.max": "1073741824\n"}, 2**30),
        ({"memory.limit_in_bytes": "536870912\n"}, 2**29),
        # What cgroup v1 says where there is no limit.
        ({"memory.limit_in_bytes": "9223372036854771712\n"}, PHYSICAL),
        ({"memory.max": "1073741824\n", "memory.limit_in_bytes": "536870912\n"}, 2**29),
        ({"memory.max": ""}, PHYSICAL),
    ],
)
def test_a_containers_limit_counts(tmp_path, contents, expected):
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    limits = [tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"]
    assert _host_memory_bytes(limits) == expected


def test_this_machine_has_memory():
    assert detect_device().memory_bytes > 0


@pytest.mark.parametrize("size", ["0GiB", "0 gb", "0.0G"])
def test_a_card_without_memory_is_refused(size):
    with pytest.raises(UserError, match="has no memory"):
        named_device(size)
