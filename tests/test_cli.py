"""The command line: quick help, one-line errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eqtp.cli import COMMANDS, main


def test_help_names_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys; from eqtp.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'lightning', 'torch_geometric', 'ase', 'matplotlib', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: eqtp {command}" in capsys.readouterr().out


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "evaluate" in capsys.readouterr().out


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2
    assert "'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "config or preset, or --resume RUN, got neither"),
        (["train", "no-such-preset"], "one of the presets 3bpa-escn, "),
        (["train", "3bpa-quick", "training.lrr=1"], "unknown key 'training.lrr': did you mean"),
        (["train", "3bpa-quick", "training.lr"], "key=value, got 'training.lr'"),
        (["train", "--resume", "no-such-run"], "folder with a config.yaml, got 'no-such-run'"),
        (["evaluate", "no-such-model.safetensors", "3bpa"], "no-such-model.safetensors"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["train", "no-such-preset"], ["bench", "compare", "no-such-run", "no-such-run"]]
)
def test_traceback_shows_where(command: list[str]) -> None:
    with pytest.raises(FileNotFoundError):
        main([*command, "--traceback"])


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from eqtp.models.training import train

    def broken(args: object) -> int:
        raise KeyError("a defect")

    monkeypatch.setattr(train, "run", broken)
    with pytest.raises(KeyError):
        main(["train", "3bpa-quick"])


def test_missing_training_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("data: {train_file: nowhere.xyz}\n")
    assert main(["train", str(config), "--dry-run"]) == 2
    assert "nowhere.xyz" in capsys.readouterr().err
