"""Available memory is read from where each system reports it."""

import pytest

from flamingo_rt import system_memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes the files that a system says its memory in."""
    monkeypatch.setattr(system_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(system_memory, "OWN_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(system_memory, "GROUPS", tmp_path / "cgroup")

    def write(**files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)

    return write


MEMINFO = "MemTotal:       2000 kB\nMemFree:          10 kB\nMemAvailable:   1000 kB\n"


def test_a_machine_says_what_is_available(system):
    system(meminfo=MEMINFO)
    assert system_memory.available_bytes() == 1000 * 1024


def test_a_system_without_figures_has_unknown_memory(system):
    assert system_memory.available_bytes() is None


def test_the_tightest_limit_of_a_control_group_and_its_parents_counts_and_file_caches_count_as_free(system, tmp_path):
    system(meminfo=MEMINFO, groups="0::/a/b\n")
    for folder, limit, used in (("cgroup/a/b", "max", 70), ("cgroup/a", "100000", 60_000), ("cgroup", "900000", 80)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.current").write_text(f"{used}\n")
        (tmp_path / folder / "memory.stat").write_text("anon 9\ninactive_file 3000\nactive_file 200\n")
    assert system_memory.available_bytes() == 100_000 - 60_000 + 3200


def test_groups_of_the_first_version_are_read_too(system, tmp_path):
    system(meminfo=MEMINFO, groups="5:devices:/x\n4:cpu,memory:/host/path\n0::/\n")
    folder = tmp_path / "cgroup" / "memory"
    folder.mkdir(parents=True)  # in a container only the top is there
    (folder / "memory.limit_in_bytes").write_text("50000\n")
    (folder / "memory.usage_in_bytes").write_text("60000\n")
    (folder / "memory.stat").write_text("total_inactive_file 500\n")
    assert system_memory.available_bytes() == 0
    (folder / "memory.usage_in_bytes").write_text("20000\n")
    assert system_memory.available_bytes() == 30_500


def test_the_figure_of_this_system_is_sensible_or_missing():
    found = system_memory.available_bytes()
    assert found is None or 0 < found < 2**60
