"""The command line: what all commands have in common, `info` and `config`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multihead as mh
from command_line import run, run_in_terminal, surroundings, words
from multihead.cli import COMMANDS, Console, check, machine, main
from multihead.cli.bench.process import REMOVED
from multihead.cli.environment import VARIABLES, table

ROOT = Path(__file__).resolve().parents[1]
ESCAPE = "\x1b"
SCRIPT = "import sys\nfrom multihead.cli import main\nsys.exit(main())\n"
QUICK = ("info", "config")  # what takes no time


@pytest.mark.timeout(120)
def test_the_entry_point_is_the_module() -> None:
    found = re.search(
        r'^multihead = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert found
    module, function = found.groups()
    code = f"import sys; from {module} import {function}; sys.exit({function}(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"multihead {mh.__version__}\n")
    assert run("--version").stdout == done.stdout


@pytest.mark.timeout(120)
def test_help_names_every_command_and_its_own_options() -> None:
    done = run("--help", COLUMNS="60")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"    {command.name} " in done.stdout
        own = run(command.name, "--help", COLUMNS="60")
        assert own.returncode == 0
        assert "--json" in own.stdout
        for text in (done.stdout, own.stdout):
            assert all(len(line) <= 60 for line in text.splitlines())
            assert "`" not in text


@pytest.mark.timeout(120)
def test_help_imports_no_command_and_no_library() -> None:
    code = """
import sys
from multihead.cli import main
try:
    main(["--help"])
finally:
    ours = [name for name in sys.modules if name.startswith("multihead.cli.")]
    others = [name for name in ("rich", "torch", "matplotlib") if name in sys.modules]
    print("imported:", sorted(ours), others)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    expected = ["multihead.cli.arguments", "multihead.cli.console"]
    assert f"imported: {expected} []" in done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["info", "--paint"], "unrecognized arguments: --paint"),
        (["check", "--json", "/nowhere/x.json"], "expected a file in a folder that can be written"),
        (["config", "--json", "/"], "expected a file in a folder that can be written, got '/'"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    written = capsys.readouterr()
    assert message in written.err
    assert written.out == ""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", QUICK)
def test_a_pipe_of_60_columns_holds_whole_words(command: str) -> None:
    narrow, wide = run(command, COLUMNS="60"), run(command, COLUMNS="500")
    assert narrow.returncode == wide.returncode == 0
    assert narrow.stderr == wide.stderr == ""
    assert ESCAPE not in narrow.stdout
    assert narrow.stdout.replace("COLUMNS=60", "COLUMNS=500").split() == wide.stdout.split()
    long = [line for line in narrow.stdout.splitlines() if len(line) > 60]
    assert all(len(line.split()[-1]) > 30 for line in long)  # paths are not cut


@pytest.mark.timeout(120)
def test_a_terminal_has_colours_where_it_may() -> None:
    assert ESCAPE in run_in_terminal("info")
    assert ESCAPE not in run_in_terminal("info", NO_COLOR="1")
    assert ESCAPE not in run_in_terminal("info", TERM="dumb")
    assert ESCAPE not in run_in_terminal("info", without="rich")


@pytest.mark.timeout(120)
def test_colours_change_no_word() -> None:
    narrow = "30"  # not even a path has room
    colours = re.sub(r"\x1b\[[0-9;]*m", "", run_in_terminal("info", COLUMNS=narrow))
    assert colours.replace("\r\n", "\n") == run("info", COLUMNS=narrow).stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", QUICK)
def test_json_is_json_and_a_file_takes_it_too(command: str, tmp_path: Path) -> None:
    found = json.loads(run(command, "--json").stdout)
    assert found["version"] == mh.__version__
    assert found["isa"] in found["available_isas"]
    file = tmp_path / "found.json"
    text = run(command, "--json", str(file)).stdout
    assert json.loads(file.read_text()) == found
    assert mh.__version__ in text


@pytest.mark.timeout(60)
def test_a_reader_that_leaves_is_no_error() -> None:
    pipe = subprocess.Popen(
        words("config"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings()
    )
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.close()
    assert pipe.wait(timeout=30) == 0
    assert pipe.stderr.read() == b""
    pipe.stderr.close()


@pytest.mark.timeout(120)
def test_info_says_what_sets_the_threads() -> None:
    found = machine.description()
    usable = run("info", OMP_NUM_THREADS="").stdout
    limit = found["cgroup_limit"] or found["affinity"]
    cpus = max(1, min(found["affinity"], -int(-limit // 1)))
    assert re.search(rf"^threads +{cpus}, (one for each CPU|as the cgroup allows)$", usable, re.M)
    ours = run("info", MULTIHEAD_NUM_THREADS="3").stdout
    assert re.search(r"^threads +3, with MULTIHEAD_NUM_THREADS=3$", ours, re.M)


@pytest.mark.timeout(120)
def test_info_names_missing_extras() -> None:
    found = json.loads(run("info", "--json").stdout)["extras"]
    assert {"torch", "plot", "cli"} <= set(found)
    assert not {*found} & {*machine.DEVELOPERS}
    assert found["plot"]["matplotlib"]
    code = """
from importlib import metadata
from multihead.cli import machine, main
there = metadata.version
def version(name):
    if name == "matplotlib":
        raise metadata.PackageNotFoundError(name)
    return there(name)
metadata.version = version
main(["info"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert re.search(r'^plot +missing +pip install "multihead\[plot\]"$', done.stdout, re.M)


def test_cgroups_are_read_as_the_engine_reads_them(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("proc/self/cgroup", "4:cpu,cpuacct:/a\n0::/outer/inner\n")
    assert machine.cgroup_limit(str(tmp_path)) is None
    write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n")
    write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n")
    assert machine.cgroup_limit(str(tmp_path)) is None
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n")
    write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert machine.cgroup_limit(str(tmp_path)) == 4
    write("sys/fs/cgroup/outer/cpu.max", "250000 100000\n")
    write("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    assert machine.cgroup_limit(str(tmp_path)) == 2.5
    write("sys/fs/cgroup/outer/inner/cpu.max", "150000 100000\n")
    assert machine.cgroup_limit(str(tmp_path)) == 1.5


@pytest.mark.timeout(120)
def test_config_says_every_variable_and_its_value() -> None:
    text = run("config", MULTIHEAD_NUM_THREADS="2").stdout
    assert "\nMULTIHEAD_NUM_THREADS=2\n" in text
    assert "\nMULTIHEAD_ISA, not set\n" in text
    found = json.loads(run("config", "--json", MULTIHEAD_NUM_THREADS="2").stdout)
    assert found["threads"] == 2
    values = {each["name"]: each["value"] for each in found["environment"]}
    assert set(values) == {variable.name for variable in VARIABLES}
    assert values["MULTIHEAD_NUM_THREADS"] == "2"
    assert values["MULTIHEAD_ISA"] is None


def test_the_variables_that_are_read_are_those_that_are_known() -> None:
    read = re.compile(
        r"""(?:getenv\(|environ(?:\.\w+)?[(\[])\s*"(\w+)\"|"((?:MULTIHEAD|NO)_[A-Z_]+)\""""
    )
    endings = (".cpp", ".h", ".py")
    sources = [path for path in ROOT.glob("csrc/**/*") if path.suffix in endings]
    sources += [path for path in ROOT.glob("src/**/*.py") if path.name != "environment.py"]
    found = {"".join(names) for path in sources for names in read.findall(path.read_text())}
    by_python = {"COLUMNS"}  # shutil.get_terminal_size
    assert found | by_python | {*REMOVED} == {variable.name for variable in VARIABLES}


REFUSED = {"MULTIHEAD_ISA": "sse9", "MULTIHEAD_NUM_THREADS": "many"}
IGNORED = {
    "OMP_NUM_THREADS": "many",
    "COLUMNS": "-3",
    "NO_COLOR": "what",
    "TERM": "nonsense",
    "OPENBLAS_CORETYPE": "Nonsense",
}


def test_each_variable_has_a_wrong_value() -> None:
    assert {*REFUSED, *IGNORED} == {variable.name for variable in VARIABLES}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("word", ["--help", "--version", *(command.name for command in COMMANDS)])
def test_a_wrong_variable_ends_a_command_in_one_line(name: str, word: str) -> None:
    value = REFUSED[name]
    done = run(word, **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"multihead: {name}: expected .*, got '{value}'\n", done.stderr)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("word", ["--help", *QUICK])
def test_wrong_variables_that_are_ignored_end_no_command(word: str) -> None:
    done = run(word, **IGNORED)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(120)
def test_the_entry_point_ends_in_one_line_too(tmp_path: Path) -> None:
    wrong = surroundings(MULTIHEAD_ISA="sse9")
    codes = {}
    for name in ("multihead", "other"):
        program = tmp_path / name
        program.write_text(SCRIPT)
        command = [sys.executable, str(program), "info"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=wrong)
        codes[name] = done.returncode, len(done.stderr.splitlines())
    assert codes["multihead"] == (2, 1)
    assert codes["other"][0] == 1
    assert codes["other"][1] > 1  # another program sees the ImportError, and where it came from


@pytest.mark.timeout(120)
def test_info_does_not_say_that_threads_come_from_what_is_ignored() -> None:
    assert "OMP_NUM_THREADS" not in run("info", OMP_NUM_THREADS="many").stdout
    assert "with OMP_NUM_THREADS=1" in run("info", OMP_NUM_THREADS="1,2").stdout


@pytest.mark.timeout(120)
def test_config_has_a_compilers_flags() -> None:
    done = run("config", "--cflags", "--libs").stdout.split()
    assert done[0].startswith("-I")
    assert "-lmultihead" in done
    assert json.loads(run("config", "--cflags", "--json").stdout) == {"cflags": done[:1]}


def test_a_table_wraps_its_widest_column_and_cuts_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "30")
    rows = [["a", "one two three four five six", "9"], ["bb", "x", "10"], ["c", "y" * 24, "0"]]
    Console().table(rows, right=(2,))
    assert capsys.readouterr().out.splitlines() == [
        "a   one two three four       9",
        "    five six",
        "bb  x                       10",
        "c   yyyyyyyyyyyyyyyyyyyyyyyy   0",
    ]


def test_the_page_of_the_environment_is_the_table() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    start, end = "<!-- environment -->\n", "<!-- /environment -->"
    assert page.partition(start)[2].partition(end)[0] == table()


@pytest.mark.timeout(120)
def test_the_page_of_the_command_line_is_what_commands_write() -> None:
    page = (ROOT / "docs" / "command_line.md").read_text()
    for name in ("--help", *(command.name for command in COMMANDS)):
        assert re.search(rf"^\$ multihead {name}( --help)?$", page, re.M), name
    shown = page.partition("$ multihead --help\n")[2].partition("```")[0]
    assert shown == run("--help", COLUMNS="72").stdout
    parts = [line for line in page.splitlines() if line.endswith("  ok")]
    assert {line.partition(",")[0] for line in parts} == {*check.PARTS, "bits"}
