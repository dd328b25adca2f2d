"""The rooms import downwards only: the contracts in pyproject.toml hold, and would notice if they did not."""

import re
import tomllib

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from lib.runtime.disk import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def lint(capsys, settings):
    status = lint_imports(config_filename=str(settings), no_cache=True, no_logo=True)
    return status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_every_contract_is_kept(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    kept, said = lint(capsys, ROOT / "pyproject.toml")
    assert kept, said
    assert f"{len(CONTRACTS)} kept, 0 broken" in said


def test_every_room_has_a_place_in_the_contract():
    layers = {room for layer in CONTRACTS[0]["layers"] for room in layer.split(" | ")}
    folders = [*(ROOT / "lib").glob("*/__init__.py"), *(ROOT / "worlds").glob("*/__init__.py")]
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in folders}
    alone = {f"worlds.{path.stem}" for path in (ROOT / "worlds").glob("*.py") if path.stem != "__init__"}
    assert layers == rooms | alone


@pytest.mark.parametrize(
    "one, other",
    [("lib.study", "lib.vision | lib.language"), ("lib.adaptation", "lib.vectors"), ("lib.runtime", "lib.vectors")],
)
def test_an_import_upwards_would_break_it(capsys, monkeypatch, tmp_path, one, other):
    """With two rooms swapped the very same imports go upwards."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "pyproject.toml").read_text()
    swap = {f'"{one}"': f'"{other}"', f'"{other}"': f'"{one}"'}
    swapped = re.sub("|".join(map(re.escape, swap)), lambda found: swap[found[0]], text)
    (tmp_path / "pyproject.toml").write_text(swapped)
    kept, said = lint(capsys, tmp_path / "pyproject.toml")
    assert not kept
    assert "rooms, from the roof down BROKEN" in said


def test_a_second_door_to_worlds_would_break_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace('    "lib.language.examples -> worlds.text.**",\n', ""))
    kept, said = lint(capsys, tmp_path / "pyproject.toml")
    assert not kept
    assert "lib reaches worlds through one door BROKEN" in said
