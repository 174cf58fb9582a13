"""Names in the user's language, the words of other libraries, and no word of pydantic's."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from objrec.config.complaints import ELSEWHERE, flatten_keys
from objrec.config.compose import compose_data
from objrec.config.errors import UserError
from objrec.config.load import load_config, validate
from objrec.config.quoting import PATH_KEYS, leaves, quote
from objrec.config.schema import Config

FOREIGN = re.compile(
    r"input should|valid (integer|number|string|boolean|list|dict)|pattern|"
    r"pydantic|unable|of another kind|constrained|NoneType|literal",
    re.I,
)
WRONG: list[Any] = [{"a": 1}, [[]], "nonsense", True, -1e9, 1e99, float("nan"), None, [1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_no_word_of_pydantics_reaches_a_user(wrong: Any) -> None:
    data = compose_data([])
    for key, _ in leaves():
        changed = copy.deepcopy(data)
        *sections, leaf = key.split(".")
        place = changed
        for section in sections:
            place = place[section]
        place[leaf] = wrong
        _, said = validate(changed)
        bad = [line for line in said if FOREIGN.search(line.replace(str(wrong), ""))]
        assert not bad, bad


@pytest.mark.parametrize("name", ["Bücher", "写真", "a, b", "it's (2)", "2024", "true", "a=b", "x&y"])
def test_paths_of_any_name_need_no_quotes(name: str) -> None:
    assert load_config(["source=folder", f"source.path={name}"]).source.path == name


def test_a_home_folder_is_found() -> None:
    assert load_config(["source=folder", "source.path=~/images"]).source.path == str(Path.home() / "images")
    assert load_config(["runs_dir=~/runs"]).runs_dir == str(Path.home() / "runs")


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("[Äpfel,寿司]", ["Äpfel", "寿司"]),
        ("[0,1,2]", ["0", "1", "2"]),
        ("[007,1.0,1e3]", ["007", "1.0", "1e3"]),
        ("[true,false]", ["true", "false"]),
        ("['salt, pepper',sugar]", ["salt, pepper", "sugar"]),
        ("[a cat,a dog]", ["a cat", "a dog"]),
    ],
)
def test_class_names_are_names(typed: str, names: list[str]) -> None:
    assert load_config([f"classes.names={typed}"]).classes.names == names


def test_digits_in_a_file_are_names_too(tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "digits.yaml").write_text("names: [0, 1, 2]\n")
    assert load_config([f"--config-dir={tmp_path}", "classes=digits"]).classes.names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "train.max_epochs=3",
        "backbone.name=hf-hub:timm/resnet18",
        "optimizer.betas=[0.9,0.99]",
        "+callbacks.a={_target_: b.C, x: 1}",
        "seed=choice(1,2)",
        "~callbacks.checkpoint",
        "run_dir=null",
    ],
)
def test_what_hydra_reads_is_left_alone(text: str) -> None:
    assert quote(text) == text


def test_names_of_models_elsewhere_are_taken() -> None:
    for name in ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"):
        assert load_config([f"backbone.name={name}"]).backbone.name == name


def test_a_broken_override_is_told_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(["source=folder", "source.path='x"])
    assert len(caught.value.messages) == 1


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("epochs", "train.max_epochs"),
        ("batch", "train.batch_size"),
        ("lr", "train.learning_rate"),
        ("imgsz", "preprocess.image_size"),
        ("model", "backbone.name"),
        ("data", "source.path"),
        ("device", "compute.accelerator"),
    ],
)
def test_the_words_of_other_libraries_lead_to_ours(word: str, ours: str) -> None:
    with pytest.raises(UserError, match=f"^{word}: unknown key. Did you mean '.*{re.escape(ours)}'"):
        load_config([f"{word}=3"])


def test_those_words_lead_to_keys_that_exist() -> None:
    legal = {*flatten_keys(Config), *compose_data(["callbacks=early_stopping"])["callbacks"]}
    for ours in ELSEWHERE.values():
        key = ours.split(" ")[-1]
        assert key in legal or key.split(".")[0] in Config.model_fields, ours


def test_a_model_of_timm_without_a_file_is_a_name() -> None:
    with pytest.raises(UserError, match=r"any model of timm goes to backbone\.name=resnet34"):
        load_config(["backbone=resnet34"])


def test_paths_are_known_by_their_type() -> None:
    assert {"run_dir", "source.path", "backbone.weights", "serve.key_file", "evaluate.compare"} <= PATH_KEYS
