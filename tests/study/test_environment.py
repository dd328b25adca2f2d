"""pyproject.toml, the locks and environment.yml say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCKS = ("requirements.lock", "bootstrap.lock", "peers.lock")


def locked(name):
    """Every entry of a lock: requirement -> number of hashes."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    entries = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = line.split("--hash=sha256:")
        assert all(re.fullmatch("[0-9a-f]{64}", digest.strip()) for digest in hashes), line[:80]
        entries[Requirement(requirement)] = len(hashes)
    return entries


def declared():
    """Every requirement of pyproject.toml, with the lock that holds it."""
    extras = PROJECT["project"]["optional-dependencies"]
    groups = {"": PROJECT["project"]["dependencies"], **extras}
    locks = {"peers": "peers.lock"}
    return [
        (Requirement(text), locks.get(name, "requirements.lock")) for name, group in groups.items() for text in group
    ]


def lowest_python(specifier):
    return re.search(r"(\d+\.\d+)", specifier).group(1)


@pytest.mark.parametrize(("requirement", "lock"), declared(), ids=lambda part: getattr(part, "name", part))
def test_every_dependency_is_pinned_within_its_bounds(requirement, lock):
    wanted = canonicalize_name(requirement.name)
    pins = [pin for pin in locked(lock) if canonicalize_name(pin.name) == wanted]
    assert len(pins) == 1, f"{requirement.name} is {len(pins)} times in {lock}; run `make lock`"
    (version,) = pins[0].specifier
    assert version.operator == "=="
    assert version.version in requirement.specifier, f"{requirement} against {pins[0]}; run `make lock`"
    assert pins[0].marker is None, f"{requirement.name} would be missing on some machines: {pins[0].marker}"


def test_every_dependency_says_why_it_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement, _ in declared():
        assert re.search(rf'^    "{re.escape(requirement.name)}[<>=].*",\s+# \w+', text, flags=re.MULTILINE), (
            requirement
        )


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_exact_and_has_hashes(lock):
    entries = locked(lock)
    assert entries
    for requirement, hashes in entries.items():
        assert hashes > 0, requirement
        assert [clause.operator for clause in requirement.specifier] == ["=="], requirement
        assert requirement.url is None


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_host(lock):
    text = (ROOT / lock).read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|--trusted-host|@ ", text)


def test_the_libraries_to_compare_with_change_no_version_of_the_study():
    study = {pin.name: pin.specifier for pin in locked("requirements.lock")}
    peers = {pin.name: pin.specifier for pin in locked("peers.lock")}
    assert {"fusion-bench", "mergekit"} <= set(peers) - set(study)
    assert {name: peers[name] for name in peers if name in study} == {n: study[n] for n in study if n in peers}


def test_the_installer_has_its_own_lock():
    first = {requirement.name: requirement for requirement in locked("bootstrap.lock")}
    assert set(first) == {"uv", "setuptools"}
    assert first["setuptools"] in locked("requirements.lock"), "two versions of setuptools; run `make lock`"


def test_conda_reads_the_same_lock():
    (pip,) = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock"]
    plain = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    assert {"pip", "make"} <= set(plain)
    names = {canonicalize_name(re.split("[=<>]", entry)[0]) for entry in plain}
    assert not names & {canonicalize_name(requirement.name) for requirement, _ in declared()}, (
        "two sources of one version"
    )


def test_python_versions_agree():
    lowest = lowest_python(PROJECT["project"]["requires-python"])
    (conda,) = [entry for entry in ENVIRONMENT["dependencies"] if str(entry).startswith("python=")]
    assert lowest_python(conda) == lowest
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + lowest.replace(".", "")
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"--python-version (\S+)", makefile)) == {lowest}
    assert f"sys.version_info < ({lowest.replace('.', ', ')})" in (ROOT / "scripts" / "setup.sh").read_text()
    assert lowest in SpecifierSet(PROJECT["project"]["requires-python"])


def test_names_agree():
    assert ENVIRONMENT["name"] == PROJECT["project"]["name"]
