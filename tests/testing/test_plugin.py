"""The pytest plugin, on projects of its own that pytest's `pytester` runs in this process."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from snippets import blocks

from modelhost.testing import cgroup

# `pytester` forgets what its runs import: what is imported here is the same in all of them.
for name in ("fixtures", "leaks", "limit", "summary"):
    import_module(f"modelhost.testing.plugin_{name}")

pytest_plugins = ["pytester"]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "memory-toolkit.md"
NO_CGROUP = cgroup.available()


# Plugins that are installed for our own tests are not to be asked.
ARGUMENTS = [part for name in ("hypothesispytest", "anyio", "schemathesis", "timeout") for part in ("-p", f"no:{name}")]
ARGUMENTS += ["-p", "modelhost.testing.plugin", "-p", "no:cacheprovider", "--strict-markers", "-Wdefault"]


def run(pytester: pytest.Pytester, code: str, *arguments: str, is_here: bool = True) -> pytest.RunResult:
    """Runs the code's tests in this process, or in one of their own: here `pytester` keeps a record of each call."""
    pytester.makepyfile(f"import logging, os, pytest, sys, unittest, warnings\nheld = []\n{code}")
    runpytest = pytester.runpytest_inprocess if is_here else pytester.runpytest_subprocess
    return runpytest(*ARGUMENTS, *arguments)


OUTCOMES = """
@pytest.fixture
def late():
    yield "late"
    print("torn down")

@pytest.mark.limit_memory("96MB")
def test_fits(late, tmp_path):
    (tmp_path / "file").write_bytes(bytes(16 << 20))

@pytest.mark.limit_memory("96MB")
def test_fails(late, record_property):
    record_property("what", "seen")
    print("this was printed")
    logging.getLogger("a.name").warning("this was logged")
    warnings.warn("this was warned")
    assert [1, 2, 3] == [1, 2, 4]

@pytest.mark.limit_memory("96MB")
def test_skips():
    pytest.skip("no time today")

@pytest.mark.xfail(strict=True)
@pytest.mark.limit_memory("96MB")
def test_is_expected_to_fail():
    assert not "what it should be"

@pytest.mark.xfail(strict=True)
@pytest.mark.limit_memory("96MB")
def test_passes_against_expectation():
    pass

@pytest.mark.limit_memory("96MB")
def test_dies():
    os._exit(3)

@pytest.mark.limit_memory("96MB", means="RLIMIT_DATA")
def test_has_an_rlimit():
    bytearray(200 << 20)

class TestOld(unittest.TestCase):
    @pytest.mark.limit_memory("96MB")
    def test_of_unittest(self):
        self.assertEqual("this", "that")
"""


@pytest.mark.parametrize("capture", ["fd", "sys"])
def test_a_limited_test_is_reported_as_if_it_had_run_here(pytester: pytest.Pytester, capture: str) -> None:
    # By itself: this process has what thousands of tests have left, and an rlimit counts that too.
    arguments = (f"--capture={capture}", "--junitxml=report.xml", "-ojunit_family=xunit1", "-rs")
    found = run(pytester, OUTCOMES, *arguments, is_here=False)
    found.assert_outcomes(passed=1, failed=5, skipped=1, xfailed=1, warnings=1)
    found.stdout.fnmatch_lines_random(
        [
            "E       assert [[]1, 2, 3] == [[]1, 2, 4]",
            "E         At index 2 diff: 3 != 4",
            "this was printed",
            "WARNING  a.name:*this was logged",
            "*UserWarning: this was warned",
            "*no time today",
            "[[]XPASS(strict)]*",
            "*ended before the test had: test_dies: ended with 3 after*",
            "E       MemoryError",
            "*limit * by RLIMIT_DATA: *",
            "*that is 96.0 MB more than the * that pytest had already",
            "E       AssertionError: 'this' != 'that'",
            "torn down",
        ]
    )
    text = found.stdout.str()
    assert text.count("this was printed\n") == 1, text
    assert 'name="what" value="seen"' in (pytester.path / "report.xml").read_text()


@pytest.mark.cgroup
@pytest.mark.skipif(NO_CGROUP is not None, reason=str(NO_CGROUP))
def test_the_kernel_kills_a_test_and_nothing_else(pytester: pytest.Pytester) -> None:
    code = """
large = bytearray(200 << 20)  # what this process has, and the fork begins with, is none of the limit's

@pytest.mark.limit_memory("64MB")
def test_takes_too_much():
    held.append(bytearray(160 << 20))

@pytest.mark.limit_memory("128MB")
def test_is_pressed(memory_pressure, memory_snapshot):
    assert 101 << 20 < memory_pressure("80%").reached_bytes < 103 << 20
    assert memory_snapshot.compare().committed_bytes > 1 << 20

def test_goes_on():
    assert not held
    assert len(large) == 200 << 20
"""
    # By itself: a census looks at every object, whose page is the fork's own then, and here there are very many.
    found = run(pytester, code, "--memory-summary=2", is_here=False)
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(
        [
            "the kernel killed this test: its peak was 6?.? MB, its limit 64.0 MB by cgroup v?",
            "*hungriest tests*",
            "*MB peak*call     *::test_takes_too_much",
        ]
    )


def test_what_stays_of_each_run_is_a_failure(pytester: pytest.Pytester) -> None:
    code = """
attempts = []

@pytest.mark.no_leaks(iterations=40)
def test_leaks():
    held.append(bytearray(1024))

@pytest.mark.no_leaks(iterations=40)
def test_leaves_a_file_open():
    held.append(os.open(__file__, os.O_RDONLY))

@pytest.mark.no_leaks(iterations=40)
def test_leaves_nothing(capsys, caplog, tmp_path):
    print("printed" * 100)
    logging.getLogger().warning("logged" * 100)
    warnings.warn("warned", DeprecationWarning)
    assert len(caplog.records) == 1
    assert not list(tmp_path.glob("*.left"))

@pytest.mark.no_leaks(iterations=40)
def test_fails():
    attempts.append(None)
    assert len(attempts) < 30, "too many"
"""
    found = run(pytester, code, is_here=False)
    found.assert_outcomes(passed=1, failed=3, warnings=1)
    found.stdout.fnmatch_lines(
        [
            "leak: 1.? KB of Python objects (99.9 %: 1.? KB to 1.? KB) per iteration, over * iterations",
            "*test_what_stays_of_each_run_is_a_failure.py:*: 1.? KB per iteration",
            "leak: 1.0 open files (99.9 %: 1.0 to 1.0)*",
            "E       AssertionError: too many",
        ]
    )


def test_fixtures_look_at_the_test_and_let_go(pytester: pytest.Pytester) -> None:
    code = """
from modelhost.testing import Place

def test_snapshot(memory_snapshot):
    held.append([bytes(1000) for _ in range(8000)])
    assert memory_snapshot.compare().main_place is Place.PYTHON
    assert not memory_snapshot.verify_recovered()
    held.clear()
    assert memory_snapshot.verify_recovered()

def test_pressure(memory_pressure):
    held.append(memory_pressure("+24MB"))
    assert abs(held[0].reached_bytes - held[0].level_bytes) < 1 << 20

def test_pressure_is_over():
    assert held[0].level_bytes - held[0].reached_bytes > 20 << 20
"""
    run(pytester, code, is_here=False).assert_outcomes(passed=3)  # here, what other tests left running takes memory too


def test_wrong_arguments_are_errors_of_collection(pytester: pytest.Pytester) -> None:
    code = """
@pytest.mark.limit_memory
def test_without(): pass

@pytest.mark.limit_memory("much")
def test_no_size(): pass

@pytest.mark.parametrize("value", [pytest.param(1, marks=pytest.mark.limit_memory("1MB", means="hope"))])
def test_means(value): pass

@pytest.mark.no_leaks(iterations="100")
def test_text(): pass
"""
    pytester.makepyfile(
        test_old="""
import pytest, unittest

class TestOld(unittest.TestCase):
    @pytest.mark.no_leaks(iterations=5)
    def test_too_few(self): pass
"""
    )
    found = run(pytester, code)
    assert found.ret == pytest.ExitCode.INTERRUPTED
    found.stdout.fnmatch_lines_random(
        [
            "*::test_without: @pytest.mark.limit_memory(): *missing 1 required positional argument: 'limit'",
            "*::test_no_size: @pytest.mark.limit_memory('much'): expected bytes or a size such as*",
            "*::test_means[[]1[]]: @pytest.mark.limit_memory('1MB', means='hope'): expected means of 'auto'*",
            "*::test_text: @pytest.mark.no_leaks(iterations='100'): expected a whole number of iterations, got '100'",
            "*::test_too_few: @pytest.mark.no_leaks(iterations=5): expected at least 40 iterations, got 5",
        ]
    )


@pytest.mark.parametrize(("setting", "complaint"), [("many", "got 'many'"), ("-1", "got '-1'")])
def test_a_wrong_setting_is_a_usage_error(pytester: pytest.Pytester, setting: str, complaint: str) -> None:
    pytester.makeini(f"[pytest]\nmemory_summary = {setting}")
    found = run(pytester, "def test_nothing(): pass")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([f"*memory_summary: expected a number of tests, {complaint}"])


def test_the_snippet_of_the_guide_runs(pytester: pytest.Pytester) -> None:
    (found,) = [block.text for block in blocks(GUIDE) if block.mark == "pytest"]
    run(pytester, found, is_here=False).assert_outcomes(passed=3)


def test_nothing_is_printed_or_imported_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    code = """
def test_unused():
    found = [name for name in sys.modules if name.startswith("modelhost.testing.")]
    assert found == ["modelhost.testing.plugin"], found
"""
    found = run(pytester, code, is_here=False)
    found.assert_outcomes(passed=1)
    assert "memory" not in found.stdout.str()
