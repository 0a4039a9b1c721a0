"""Every block of code in the README and in docs/ runs as it stands there; `snippets.py` says how."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from host_process import MODELS, HostProcess
from shells import Shell
from sizes import FULL
from snippets import CHECKED, PAGES, ROOT, Block, blocks, commands, is_as_shown, is_in_order

from modelhost.cli.main import cli
from modelhost.config import load_settings, parse_model_options, parse_toml

EACH = [block for page in PAGES for block in blocks(page) if block.language in CHECKED]
RUN = [
    block
    for block in EACH
    if block.language in ("sh", "python", "console")
    and block.mark in ("", *(("full",) if FULL else ()))
    and not is_in_order(block.page)
]


@pytest.fixture
def shell(tmp_path: Path, host_process: HostProcess) -> Iterator[Shell]:
    (tmp_path / "models").symlink_to(MODELS)
    shell = Shell(tmp_path, address=host_process.address)
    yield shell
    shell.close()


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_block_runs_as_it_stands_there(shell: Shell, block: Block) -> None:
    shell.run(block)


@pytest.mark.parametrize("block", [block for block in EACH if block.language == "toml"], ids=lambda block: block.name)
def test_settings_are_what_the_host_reads(tmp_path: Path, block: Block) -> None:
    if block.text.startswith("# model.toml"):
        parse_model_options(parse_toml(block.text), source=block.name)
        return
    file = tmp_path / "modelhost.toml"
    file.write_text(block.text)
    load_settings(file=file, environ={})


def test_what_is_not_run_says_why_and_is_no_nonsense() -> None:
    for block in [*EACH, *blocks(ROOT / "benchmarks" / "README.md")]:  # which measures for hours
        if block.mark in ("not run", "full"):
            assert len(block.reason) > 10, f"{block.name}: no reason is given"
        if block.language == "python":
            compile(block.text, block.name, "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT
        elif block.language == "json":
            json.loads(block.text)
        elif block.language in ("sh", "console"):
            for command in commands(block):
                ended = subprocess.run(["sh", "-n", "-c", command.text], capture_output=True, text=True, check=False)
                assert ended.returncode == 0, f"{block.name}: {ended.stderr}"
                check_ours(command.text, block.name)


def check_ours(text: str, where: str) -> None:
    """Raises AssertionError where a command of ours has another name, or not that option."""
    for words in re.findall(r"(?:^|[ /])modelhost ((?:serve|models|prepare|infer|mem\w+|keys|top)\b[^|&;#\n]*)", text):
        check_command(cli, words.split(" -- ")[0].split(), where)
    for words in re.findall(r"python -m benchmarks ([\w-]+[^|&;#\n]*)", text):
        check_command(benchmarks(), words.split(), where)
    for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: make {target}"


def check_command(group: click.Command, words: list[str], where: str) -> None:
    command, names = group, []
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        names.append(words.pop(0))
        found = command.get_command(click.Context(command), names[-1])
        assert found is not None, f"{where}: no command '{' '.join(names)}'"
        command = found
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("--"):
            option = word.split("=")[0].strip("`'\"")
            assert option in known, f"{where}: {' '.join(names)} has no {option}"


@cache
def benchmarks() -> click.Command:
    from benchmarks.__main__ import cli as found

    return found


def test_commands_of_pages_are_checked_at_all() -> None:
    with pytest.raises(AssertionError, match="no --modles"):
        check_ours("modelhost serve --modles models", "here")
    with pytest.raises(AssertionError, match="no command 'nothing'"):
        check_ours("python -m benchmarks nothing", "here")


@pytest.mark.parametrize(
    ("found", "shown", "is_same"),
    [
        ('{"a": [1.51519]}', '{"a": [1.515]}', True),
        ('{"a": [1.51519]}', '{"a": [1.525]}', False),
        ('{"a": 1, "b": 2}', '{"a": 1}', False),
        ("3 models of 18.42 MB", "3 models of 18.42 MB", True),
        ("3 models of 18.42 MB", "3 models of 19.0 MB", False),
        ("limit 24.0 GB (machine), and more", "limit ..., and more", True),
    ],
)
def test_what_is_printed_is_compared_with_what_is_shown(found: str, shown: str, is_same: bool) -> None:
    assert is_as_shown(found, shown) == is_same


def test_all_languages_are_known() -> None:
    known = {*CHECKED, "", "text", "yaml", "mermaid", "protobuf", "dockerfile", "promql"}
    assert [block.name for page in PAGES for block in blocks(page) if block.language not in known] == []


def test_this_interpreter_is_the_one_that_pages_get() -> None:
    assert Path(sys.executable).parent.joinpath("modelhost").exists(), "modelhost is not installed beside the tests"
