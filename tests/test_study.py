"""Strict notebook parameters, profiles, devices."""

import pytest

from lib.runtime.device import Runtime, choose_runtime
from lib.study.profiles import PROFILES, get_profile
from lib.study.study import open_study


def test_defaults_and_overrides():
    study = open_study({"profile": "tiny", "seed": 3, "mask_steps": 7, "temperature": 1, "tasks": "scenes, textures"})
    assert (study.profile.mask_steps, study.profile.temperature, study.seed) == (7, 1, 3)
    assert study.profile.task_names == ("scenes", "textures")
    assert study.results.parts[-1] == "seed3"
    assert open_study({}).results.parts[-3:] == ("results", "tiny", "seed0")
    assert open_study({}).profile == PROFILES["tiny"]
    assert open_study({"tasks": ""}).profile == PROFILES["tiny"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"profil": "tiny"}, "unknown parameter 'profil' .did you mean 'profile'.*known: .*mask_steps"),
        ({"sede": 1}, "unknown parameter 'sede' .did you mean 'seed'"),
        ({"profile": "tny"}, "unknown profile 'tny' .did you mean 'tiny'.*known: tiny, tiny-full, tiny-real"),
        ({"profile": 3}, r"parameter 'profile' is 3 \(int\), expected str"),
        ({"seed": "one"}, r"parameter 'seed' is 'one' \(str\), expected int"),
        ({"seed": True}, r"parameter 'seed' is True \(bool\), expected int"),
        ({"seed": -1}, "parameter 'seed' is -1"),
        ({"mask_steps": 1.5}, r"parameter 'mask_steps' is 1.5 \(float\), expected int"),
        ({"temperature": 0}, "parameter 'temperature' is 0, expected a positive number"),
        ({"head": "none"}, "parameter 'head' is 'none'"),
        ({"final_mask": "soft"}, "parameter 'final_mask' is 'soft', expected 'sample' or 'hard' or 'expected'"),
        ({"tasks": "scenes scenes"}, "none of them twice"),
        ({"device": "gpu"}, "unknown device 'gpu'; known: auto, cpu, cuda, mps"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; known: auto, fp32, bf16"),
    ],
)
def test_a_wrong_parameter_is_one_clear_error(given, message):
    with pytest.raises(ValueError, match=message):
        open_study(given)


def test_changed_parameters_file_their_results_apart():
    assert get_profile("tiny", mask_steps=PROFILES["tiny"].mask_steps).label == "tiny"
    assert get_profile("tiny", mask_steps=7, tasks="scenes textures").label == "tiny+tasks=scenes,textures+mask_steps=7"
    assert open_study({"mask_steps": 7}).results.parent.name == "tiny+mask_steps=7"


def test_a_claim_must_hold_at_the_default_profile_and_is_reported_elsewhere(capsys):
    open_study({}).claim(True, "one")
    open_study({"mask_steps": 7}).claim(False, "two")
    assert capsys.readouterr().out == "holds: one\ndoes NOT hold with these parameters: two\n"
    with pytest.raises(AssertionError, match="default profile: three"):
        open_study({"seed": 4}).claim(False, "three")


def test_running_the_cell_again_ignores_the_notebooks_own_variables():
    namespace = {"seed": 1, "open_study": open_study, "In": [""]}
    open_study(namespace)
    namespace["accuracy"] = 0.5
    assert open_study(namespace).seed == 1
    namespace["seed"] = "two"
    with pytest.raises(ValueError, match="parameter 'seed'"):
        open_study(namespace)


def test_an_unknown_field_of_a_profile():
    with pytest.raises(ValueError, match=r"unknown parameter 'mask_step' .did you mean 'mask_steps'"):
        get_profile("tiny", mask_step=3)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_runtime() == Runtime("cpu", "fp32")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        choose_runtime("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_runtime() == Runtime("cuda", "bf16")
