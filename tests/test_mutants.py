"tools/mutants.py tells a mutant that a test notices from one that none does, and says where its text is gone."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import mutants  # noqa: E402


def test_every_text_is_there_and_every_test_exists() -> None:
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(names) == len({*names}) >= 20
    for mutant in mutants.MUTANTS:
        compile(mutants.broken(mutant), mutant.name, "exec")
        file, option, word = mutant.tests.split()
        assert option == "-k" and word in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_mutant_is_killed_or_survives() -> None:
    "In a process of its own, which has not loaded netinv."
    script = """
import sys
sys.path.insert(0, "tools")
import mutants
from mutants import MUTANTS, fails
mutants.preload()
sign = next(m for m in MUTANTS if m.name == "sign of CE")
assert mutants.healthy([sign]) and mutants.killed(sign)
assert not mutants.killed(sign._replace(tests="test_losses.py -k simplex"))
try: mutants.killed(sign._replace(tests="test_losses.py -k no_such_test"))
except RuntimeError: print("fine")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stdout + done.stderr


@pytest.mark.parametrize("old, n", [("import torch\n", 1), ("no such text", 0), ("return", 2)])
def test_a_text_that_is_not_there_exactly_once_is_an_error(old: str, n: int) -> None:
    mutant = mutants.MUTANTS[0]._replace(room="losses", old=old, new="")
    if n == 1: assert "import torch\n" not in mutants.broken(mutant)
    else:
        with pytest.raises(ValueError, match="say in tools/mutants.py what stands there now"): mutants.broken(mutant)


def test_mutants_are_chosen_by_words(capsys: pytest.CaptureFixture) -> None:
    assert mutants.main(["--list", "--only", "sign of CE", "EMA"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit): mutants.main(["--only", "nobody"])
    assert "no mutant is called 'nobody'" in capsys.readouterr().err
