"""The C face beside Apple's: one program includes both headers, links both and calls each."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from apple_library import FUNCTIONS, OURS, write_functions, write_header
from multihead.bnns.library import compile_flags, link_flags

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "native" / "beside_apple.c"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic-errors")
LANGUAGES = {"c": ("cc", "-std=c99"), "c++": ("c++", "-std=c++17", "-x", "c++")}

pytestmark = pytest.mark.timeout(120)


def run(*command: str | Path) -> str:
    """Run a command and return what it prints; fail with what it says."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def apple(tmp_path: Path) -> Path:
    """A folder with a header and a shared library that stand in for Apple's."""
    write_header(tmp_path)
    source = write_functions(tmp_path)
    run("cc", "-shared", "-fPIC", source, "-o", tmp_path / "libaccelerate.so")
    return tmp_path


def linked(apple: Path, source: Path, *options: str, language: Sequence[str] = ("cc",)) -> Path:
    """Build a program with both libraries, Apple's first."""
    code, program = apple / "program.o", apple / "program"
    run(*language, *STRICT, *options, f"-I{apple}", compile_flags(), "-c", source, "-o", code)
    both = [f"-L{apple}", "-laccelerate", f"-Wl,-rpath,{apple}", *link_flags()]
    run("cc", code, *both, "-lm", "-o", program)
    return program


@pytest.mark.parametrize("order", [(), ("-DOURS_FIRST",)], ids=["Apple's", "ours"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_both_headers_and_both_libraries(
    apple: Path, language: str, order: tuple[str, ...]
) -> None:
    options = ("-DMULTIHEAD_BNNS_PREFIX", *order)
    program = linked(apple, PROGRAM, *options, language=LANGUAGES[language])
    assert run(program) == "passed\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_headers_collide_without_the_prefix(apple: Path, language: str) -> None:
    source = apple / "both.c"
    source.write_text("#include <accelerate.h>\n#include <multihead/bnns.h>\n")
    words = [*LANGUAGES[language], f"-I{apple}", compile_flags(), "-c", str(source)]
    for prefix, works in ((["-DMULTIHEAD_BNNS_PREFIX"], True), ([], False)):
        command = [*words, *prefix, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode == 0) is works, done.stderr


def test_a_program_with_our_header_calls_ours(apple: Path) -> None:
    program = linked(apple, ROOT / "examples" / "bnns_train.c")
    assert len(run(program).splitlines()) == 6
    wanted = run("nm", "-u", apple / "program.o")
    # a Mach-O name starts with one more underscore
    assert set(re.findall(r"\b_?((?:multihead_)?BNNS\w+)", wanted)) == {
        f"multihead_{name}" for name in FUNCTIONS
    }


def test_the_list_has_every_name_that_the_header_declares() -> None:
    text = re.sub(r"/\*.*?\*/", "", OURS.read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"\bBNNS[A-Z0-9]\w*", text))
    listed = (OURS.parent / "bnns_names.h").read_text().replace("\\\n", " ")
    found = re.findall(r"^#define (\w+) +MULTIHEAD_BNNS_NAME\((\w+)\)$", listed, re.MULTILINE)
    assert all(name == same for name, same in found)
    assert {name for name, _ in found} == declared
    assert len(declared) > 40
