"""Profiles are declared once, read from a file, and checked by their declaration."""

import dataclasses
import pickle
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from lib.concrete.mask import FINAL_MASKS
from lib.runtime.disk import ROOT
from lib.study.profiles import FAMILIES, FILE, PROFILES, VisionProfile, get_profile, read_profiles

MINE = """
[mine]
base = "tiny"
tasks = "scenes textures"
mask_steps = 200
"""


def written(tmp_path, text):
    path = tmp_path / "profiles.toml"
    path.write_text(text)
    return path


def test_a_profile_is_added_without_code(tmp_path):
    profiles = read_profiles(written(tmp_path, FILE.read_text() + MINE))
    assert list(profiles) == [*PROFILES, "mine"]
    mine = profiles["mine"]
    changed = {"name": "mine", "tasks": "scenes textures", "mask_steps": 200}
    assert dataclasses.asdict(mine) == dataclasses.asdict(PROFILES["tiny"]) | changed
    assert {name: profiles[name] for name in PROFILES} == PROFILES


def test_every_family_has_its_default_profile_and_every_full_profile_is_there():
    for family, kind in FAMILIES.items():
        assert PROFILES[kind.default].family == family
    for profile in PROFILES.values():
        assert not profile.full or type(PROFILES[profile.full]) is type(profile)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mask_steps = 200", "mask_steps = "), r"profiles.toml cannot be read .Invalid value .at line \d+"),
        (("mask_steps = 200", "mask_step = 200"), "section 'mine': unknown parameter 'mask_step' .did you mean"),
        (("mask_steps = 200", "mask_steps = '200'"), r"section 'mine': .*'mask_steps' is '200' .str., expected int"),
        (("mask_steps = 200", "temperature = nan"), "section 'mine': parameter 'temperature' is nan, expected"),
        (("mask_steps = 200", "name = 'x+y'"), "section 'mine': parameter 'name' is 'x.y', expected"),
        (('base = "tiny"', 'base = "tny"'), "section 'mine': base 'tny' is no other section of the file"),
        (('base = "tiny"', 'base = "mine"'), "section 'mine': base 'mine' is no other section of the file"),
        (('base = "tiny"', ""), "section 'mine': family is '', expected one of vision, real, own, language"),
        (('base = "tiny"', 'family = "vision"'), "section 'mine': parameter 'model' has no value"),
        (('base = "tiny"', 'base = "any"\nfamily = "real"'), "section 'mine': parameter 'pretrained' has no value"),
        (
            ("[mine]", "[mine]\nhead = 'none'"),
            "'head' is 'none', expected 'text', 'class-mean', 'linear-probe' or 'expert'",
        ),
        (("mask_steps = 200", "[mine.inner]\nx = 1"), "section 'mine': unknown parameter 'inner'"),
        (("[mine]", "[tiny]"), "cannot be read .Cannot declare .'tiny',. twice"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_profiles(written(tmp_path, FILE.read_text() + MINE.replace(*change)))
    assert str(caught.value).startswith(f"{tmp_path}/profiles.toml")
    assert "\n" not in str(caught.value)


def test_a_value_outside_a_section_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"profiles.toml, section 'odd': it is no section with values"):
        read_profiles(written(tmp_path, "odd = 3\n" + FILE.read_text()))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.toml cannot be read"):
        read_profiles(tmp_path / "nowhere.toml")


def test_profiles_are_values():
    tiny = PROFILES["tiny"]
    changed = dataclasses.replace(tiny, model="ViT-B-32", temperature=1)
    assert (changed.model, changed.temperature, type(changed)) == ("ViT-B-32", 1.0, VisionProfile)
    assert dataclasses.replace(changed, model="", temperature=tiny.temperature) == tiny
    assert len({tiny, pickle.loads(pickle.dumps(tiny)), changed}) == 2
    assert list(vars(tiny)) == [field.name for field in dataclasses.fields(tiny)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.mask_steps = 3
    with pytest.raises(ValueError, match="mask_steps"):
        dataclasses.replace(tiny, mask_steps=0)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "tiny",
            {"mask_step": 3},
            r"unknown parameter 'mask_step' .did you mean 'mask_steps'.*; known: model, tasks, ",
        ),
        ("tiny", {"mask_steps": -1}, "parameter 'mask_steps' is -1, expected a positive number"),
        ("tiny", {"mask_steps": True}, r"parameter 'mask_steps' is True \(bool\), expected int"),
        ("tiny", {"temperature": True}, r"parameter 'temperature' is True \(bool\), expected float"),
        ("tiny", {"temperature": float("inf")}, "parameter 'temperature' is inf, expected"),
        ("tiny", {"image_size": -1}, "parameter 'image_size' is -1, expected 0 or a positive number"),
        ("tiny", {"tasks": ""}, "parameter 'tasks' is '': name at least one task"),
        ("tiny", {"tasks": "dtd, dtd"}, "parameter 'tasks' is 'dtd, dtd': .* none of them twice"),
        ("tiny", {"kept_steps": "3 x"}, "'kept_steps' names 'x', expected numbers below fine_tuning_steps=420"),
        ("deit-tiny", {"fine_tuning_steps": 600}, "'kept_steps' names '600', .* below fine_tuning_steps=600"),
        ("clip-vit-b-32", {"experts": "~/experts"}, "parameter 'experts' is '~/experts', expected .*{task} in it"),
        ("tiny-t5", {"experts": "x/{task}"}, "unknown parameter 'experts'"),
        ("tny", {}, "unknown profile 'tny' .did you mean 'tiny'.*known: tiny, tiny-full"),
    ],
)
def test_a_wrong_value_is_one_sentence(name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        get_profile(name, **given)
    assert "\n" not in str(caught.value)


def test_a_profile_may_choose_any_final_mask():
    """Profiles name them once more, because reading profiles must not import torch."""
    assert get_args(get_type_hints(VisionProfile)["final_mask"]) == FINAL_MASKS


def test_the_snakefile_waits_for_no_torch():
    """What the Snakefile imports; it is read once for every job that it sends to a cluster."""
    command = "import sys, lib.study.profiles, lib.study.inputs; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
