"""The memory of the machine or of the container, read from files that the tests write."""

import math

import pytest

from input_pipeline.host_memory import available_bytes


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return str(root)


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\nHugePages_Total: 0\n"}


@pytest.mark.quick
def test_without_a_limit_the_memory_of_the_machine_is_available(tmp_path):
    assert available_bytes(write(tmp_path, {})) == math.inf
    assert available_bytes(write(tmp_path, MACHINE)) == 5000 * 1024
    group = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "7\n"}
    assert available_bytes(write(tmp_path, group)) == 5000 * 1024
    assert 0 < available_bytes() < math.inf


@pytest.mark.quick
@pytest.mark.parametrize("folder", ["sys/fs/cgroup", "sys/fs/cgroup/user", "sys/fs/cgroup/user/job"])
def test_the_smallest_limit_of_the_control_groups_holds(folder, tmp_path):
    """A job of a scheduler has a group within others. A container sees its own group as the outermost."""
    group = {
        "proc/self/cgroup": "0::/user/job\n",
        f"{folder}/memory.max": "3000\n",
        f"{folder}/memory.current": "1500\n",
        f"{folder}/memory.stat": "anon 900\ninactive_file 500\n",
    }
    assert available_bytes(write(tmp_path, MACHINE | group)) == 2000


@pytest.mark.quick
def test_control_groups_of_the_first_version_are_read(tmp_path):
    group = {
        "proc/self/cgroup": "12:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "3100\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 900\ntotal_inactive_file 40\n",
    }
    assert available_bytes(write(tmp_path, MACHINE | group)) == 0
