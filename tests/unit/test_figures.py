"""Reading the kernel's small files."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelhost.memory.figures import figure, read_file

TABLE = b"anon 12\nactive_file 3\ninactive_file 4\ntotal_active_file 5\nworkingset_refault_file 6"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"anon", 12),
        (b"active_file", 3),
        (b"inactive_file", 4),
        (b"total_active_file", 5),
        (b"workingset_refault_file", 6),
        (b"workingset_refault", None),
        (b"file", None),
        (b"", None),
    ],
)
def test_a_figure_is_that_of_the_whole_name(name: bytes, value: int | None) -> None:
    assert figure(TABLE, name) == value


def test_a_figure_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="many"):
        figure(b"anon many\n", b"anon")
    assert figure(b"", b"anon") is None


@pytest.mark.parametrize("size", [0, 1, 16 << 10, (16 << 10) + 1, 100_000])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert read_file(tmp_path / "file") == content


def test_what_the_kernel_writes_is_read_whole() -> None:
    assert read_file("/proc/self/maps").endswith(b"\n")
    with pytest.raises(FileNotFoundError):
        read_file("/proc/self/no-such-file")
