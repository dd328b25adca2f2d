"""Strict notebook parameters, profiles, devices."""

import json

import pandas as pd
import pytest

from lib.runtime.device import Runtime, choose_runtime
from lib.study.inputs import label_of, without_data
from lib.study.profiles import PROFILES, get_profile
from lib.study.study import Study, open_study
from lib.study.tables import save_table


def test_defaults_and_overrides():
    study = open_study({"profile": "tiny", "seed": 3, "mask_steps": 7, "temperature": 1, "tasks": "scenes, textures"})
    assert (study.profile.mask_steps, study.profile.temperature, study.seed) == (7, 1, 3)
    assert study.profile.task_names == ("scenes", "textures")
    assert study.results.parts[-1] == "seed3"
    assert open_study({}).results.parts[-3:] == ("runs", "tiny", "seed0")
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
        ({"seed": -1}, "parameter 'seed' is -1, expected 0 or a positive number"),
        ({"mask_steps": 1.5}, r"parameter 'mask_steps' is 1.5 \(float\), expected int"),
        ({"temperature": 0}, "parameter 'temperature' is 0, expected a positive number"),
        ({"head": "none"}, "parameter 'head' is 'none'"),
        (
            {"profile": "tiny-t5"},
            "profile 'tiny-t5' is one of language, this notebook needs one of vision: tiny, ",
        ),
        ({"final_mask": "soft"}, "parameter 'final_mask' is 'soft', expected 'sample', 'binary', 'expected' or 'hard'"),
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


def kernel(*cells):
    """A notebook's namespace in which cells were run, as IPython keeps it; the study is opened in one more."""
    namespace = {"In": [""], "open_study": open_study}

    def run(*more):
        for cell in more:
            namespace["In"].append(cell)
            if not cell.startswith("%"):
                exec(cell, namespace)
        return namespace["study"]

    run(*cells)
    return run


PARAMETERS, OPEN = "profile = 'tiny'\nseed = 1", "study = open_study(globals())"


@pytest.mark.parametrize("variables", ["temperature = 0.01", "model = 'ViT-B_32'", "for mask_steps in (1, 2): pass"])
def test_run_all_twice_opens_the_same_study(variables):
    run = kernel(PARAMETERS, OPEN, "%matplotlib inline", variables)
    first = run("print(study.label)")
    assert run(OPEN) == first, "the cell alone"
    assert run(PARAMETERS, OPEN, variables) == first
    assert run(PARAMETERS, "# Parameters\nseed = 2\nprofile = 'tiny'", OPEN).label == "tiny", "papermill's cell"


def test_the_parameters_cell_may_be_edited():
    run = kernel(PARAMETERS + "\nmask_rate = 0.5", OPEN, "temperature = 0.01", "tasks = [1]")
    assert run(PARAMETERS + "\nmask_steps = 7", OPEN).profile == get_profile("tiny", mask_steps=7), (
        "one added, one gone"
    )
    with pytest.raises(ValueError, match=r"unknown parameter 'mask_stepz' .did you mean 'mask_steps'"):
        run(PARAMETERS + "\nmask_stepz = 7", OPEN)


def test_names_are_at_most_100_bytes_and_tell_everything_apart():
    many = " ".join(f"my_data_set_number_{number}_größe" for number in range(30))
    one = get_profile(
        "tiny-real", tasks=many, mask_steps=7, experts="/gpfs/home/somebody/checkpoints/{task}/finetuned.pt"
    )
    other = get_profile("tiny-real", tasks=many, mask_steps=8, experts=one.experts)
    labels = {label_of(profile, precision="bf16", device="cuda:15") for profile in (one, other)}
    assert len(labels) == 2
    assert all(len(label.encode()) <= 100 and label.startswith("tiny-real+tasks=my_data_set") for label in labels)
    assert {without_data(label) for label in labels} == {one.label, other.label}
    assert Study(one).folders("fusion") == {}, "no path is too long"


def test_precision_and_device_are_in_the_name_and_in_about_json(tmp_path):
    study = open_study({"precision": "bf16", "device": "cpu"})
    assert study.label == "tiny+precision=bf16+device=cpu"
    study = Study(study.profile, runtime=study.runtime, root=tmp_path, precision="bf16", device="cpu")
    saved(study, "fusion", accuracy=0.5)
    about = json.loads((study.results / "about.json").read_text())
    assert (about["precision"], about["device"]) == ("bf16", "cpu")
    assert {"torch", "timm", "transformers", "open_clip_torch"} <= set(about)


def test_results_go_elsewhere_by_one_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_OUT", str(tmp_path))
    study = open_study({})
    assert (study.results, study.cache) == (tmp_path / "runs" / "tiny" / "seed0", tmp_path / "data" / "cache")


@pytest.mark.parametrize("name", ["101", "007", "NA", "null", "None", "nan", "1e3", "True", ""])
def test_a_name_comes_back_as_it_was_whatever_it_looks_like(tmp_path, name):
    table = pd.DataFrame({"task": [name or None] * 2, "method": "101", "accuracy": [0.5, float("nan")], "seed": 0})
    back = Study(PROFILES["tiny"], root=tmp_path).save(table, "fusion")
    assert back["task"].tolist() == [name] * 2 if name else back["task"].isna().all()
    assert (back["method"] == "101").all()
    assert (back["accuracy"][0], back["accuracy"].isna().tolist(), back["seed"].tolist()) == (
        0.5,
        [False, True],
        [0, 0],
    )


def saved(study, *names, **columns):
    for name in names:
        study.save(pd.DataFrame({"task": ["a"], **columns}), name)


def committed(study, name, profile="tiny", seed=0, accuracy=0.5):
    path = study.root / "data" / "results" / profile / f"seed{seed}" / f"{name}.csv"
    save_table(pd.DataFrame({"task": ["a"], "accuracy": [accuracy]}), path)


def test_a_run_writes_below_runs_only(tmp_path):
    study = Study(get_profile("tiny", mask_steps=7), 3, root=tmp_path)
    saved(study, "fusion", accuracy=0.25)
    assert study.results == tmp_path / "runs" / "tiny+mask_steps=7" / "seed3"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert study.load("fusion")["accuracy"].tolist() == [0.25]
    about = json.loads((study.results / "about.json").read_text())
    assert (about["seed"], about["parameters"]["mask_steps"], list(about["seconds"])) == (3, 7, ["fusion"])


def test_the_full_run_is_the_committed_one(tmp_path, capsys):
    study = Study(PROFILES["tiny"], root=tmp_path)
    saved(study, "fusion", accuracy=0.1)
    committed(study, "fusion")
    assert study.full("fusion")["accuracy"].tolist() == [0.1], "without a full run, its own"
    for seed in (0, 1):
        committed(study, "fusion", "tiny-full", seed, accuracy=0.9)
    table = study.full("fusion")
    assert (table["accuracy"].tolist(), table["seed"].tolist()) == ([0.9, 0.9], [0, 1])
    assert capsys.readouterr().out == "shown: profile tiny, seed 0\nshown: profile tiny-full, seeds 0, 1\n"
    with pytest.raises(FileNotFoundError, match=r"no saved table at .*scaling.csv: run the notebook that makes it"):
        study.full("scaling")


def test_committed_tables_stand_in_for_seeds_that_have_not_run(tmp_path, capsys):
    study = Study(PROFILES["tiny-t5-full"], 1, root=tmp_path)
    for seed in (0, 1, 2):
        committed(study, "fusion", "tiny-t5-full", seed)
    assert study.load("fusion")["accuracy"].tolist() == [0.5]
    saved(study, "fusion", accuracy=0.1)
    assert study.load("fusion")["accuracy"].tolist() == [0.1]
    assert study.full("fusion")["accuracy"].tolist() == [0.5, 0.1, 0.5]
    assert {seed: own["fusion"]["accuracy"][0] for seed, own in study.load_seeds("fusion").items()} == {
        0: 0.5, 1: 0.1, 2: 0.5,
    }  # fmt: skip
    assert capsys.readouterr().out == (
        "fusion: no run of this seed has saved it yet, so this is the committed table\n"
        "shown: profile tiny-t5-full, seeds 0, 1, 2 (1 of this run, the others as committed)\n"
    )


def test_committed_tables_never_stand_in_for_changed_parameters_or_other_data(tmp_path):
    (tmp_path / "mirror" / "mnist").mkdir(parents=True)
    for study in (
        Study(get_profile("tiny-t5", mask_steps=7), root=tmp_path),
        Study(get_profile("tiny-real"), data_root=str(tmp_path / "mirror"), root=tmp_path),
    ):
        committed(study, "fusion", study.profile.name, seed=1)
        saved(study, "fusion", accuracy=0.1)
        assert list(study.load_seeds("fusion")) == [0]
        assert study.full("fusion")["seed"].tolist() == [0]


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_runtime() == Runtime("cpu", "fp32")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        choose_runtime("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_runtime() == Runtime("cuda", "bf16")
