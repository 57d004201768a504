"""One fuzzer: ``python -m fuzz NAME FILE...`` replays inputs, other words are libFuzzer's."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from fuzz import NATIVE, PYTHON, ROOT


def target(name: str) -> Any:
    """The function that takes an input's bytes."""
    from fuzz import judge
    from fuzz.draws import Draws

    one = importlib.import_module(PYTHON[name]).one

    def test_one_input(data: bytes) -> None:
        draws = Draws(data)
        with judge.quiet():
            judge.show("kernel set", judge.choose(draws))
            one(draws)

    return test_one_input


def replay(name: str, files: list[str]) -> int:
    """Run inputs once each, and say what they are."""
    from fuzz import judge

    judge.SHOWS = True
    run, failed = target(name), 0
    for file in files:
        print(f"{name}: {file}", flush=True)
        try:
            run(Path(file).read_bytes())
        except BaseException:
            traceback.print_exc()
            failed = 1
    return failed


def main() -> None:
    """Replay, or fuzz."""
    if len(sys.argv) < 2 or sys.argv[1] not in (*PYTHON, *NATIVE):
        raise SystemExit(
            f"python -m fuzz NAME [FILE...], NAME one of {', '.join((*PYTHON, *NATIVE))}"
        )
    name, words = sys.argv[1], sys.argv[2:]
    replays = bool(words) and all(os.path.isfile(word) for word in words)
    if name in NATIVE:
        program = Path(os.environ.get("FUZZ_BUILD", ROOT / "build/fuzz")) / name
        shows = {"FUZZ_SHOW": "1"} if replays else {}
        done = subprocess.run([str(program), *words], env=os.environ | shows, check=False)
        raise SystemExit(done.returncode)
    if replays:
        raise SystemExit(replay(name, words))
    import atheris

    with atheris.instrument_imports(include=["multihead"]):
        run = target(name)
    atheris.Setup([f"fuzz {name}", *words], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
