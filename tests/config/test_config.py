"""Composition, validation and messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from objrec.config.command_line import check_command_line as check_line
from objrec.config.command_line import sort_arguments
from objrec.config.errors import UserError
from objrec.config.load import config_dir, dump, load_config
from objrec.config.quoting import quote
from objrec.config.schema import Config

CONFIGS = Path(config_dir())
OPTIONS = sorted(
    f"{f.parent.name}={f.stem}" for f in CONFIGS.glob("*/*.yaml") if f.parent.name not in {"experiment", "debug"}
)
GLOBAL = sorted(f"{f.parent.name}={f.stem}" for g in ("experiment", "debug") for f in (CONFIGS / g).glob("*.yaml"))
NEEDS = {  # what an option cannot do without
    "source=folder": ["source.path=images"],
    "source=urls": ["source.path=list.csv"],
    "source=commons": ["ingest.contact=me@example.org"],
    "source=several": ["+source@source.members.openverse=openverse"],  # what source=[...] is turned into
    "experiment=cifar10_cpu": ["source.path=images"],
    "experiment=cifar10_gpu": ["source.path=images"],
}


def check_command_line(arguments: list[str]) -> Config | None:
    return check_line(sort_arguments(arguments))


def messages(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    return caught.value.messages


def test_the_defaults_compose() -> None:
    config = load_config()
    assert config.classes.names is not None and len(config.classes.names) == 10
    assert config.train.batch_size == config.train.batch_size


@pytest.mark.parametrize("option", [*OPTIONS, *GLOBAL])
def test_every_group_option_is_valid(option: str) -> None:
    assert isinstance(load_config([option, *NEEDS.get(option, [])]), Config)


def test_all_faults_are_told_at_once_with_the_nearest_name() -> None:
    said = messages("backbone=resnet19", "train.max_epochs=-1", "train.batch_sise=8", "trian.batch_size=2")
    assert len(said) == 4
    text = "\n".join(said)
    assert "Did you mean 'resnet18'?" in text
    assert text.count("Did you mean 'train.batch_size'?") == 2
    assert "train.max_epochs=-1: should be at least 1" in text


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("classes.names=[]", "at least two class names"),
        ("classes.names=[cat]", "at least two class names"),
        ("classes.names=[cat,cat]", "repeats"),
        ("classes.names=[cat,a/b]", "not valid for a folder"),
        ("train.max_epochs=ten", "should be a whole number"),
        ("train.max_epochs=1.5", "should be a whole number"),
        ("train.max_epochs=true", "not true or false"),
        ("+train.batch_sise=8", "Did you mean 'train.batch_size'?"),
        ("++train.batch_sise=8", "Did you mean 'train.batch_size'?"),
        ("+optimizer.weight_dcay=1", "Did you mean 'optimizer.weight_decay'?"),
        ("optimizer.weight_decay=much", "of type float"),
        ("callbacks.checkpoint.monitor=val/ac", "Did you mean 'val/acc'?"),
        ("preprocess.split=[0.5,0.2,0.1]", "must sum to 1"),
        ("preprocess.split=[0.8,0.2,0.0]", "above 0"),
        ("source=folder", "source.path"),
        ("backbone.pretrained=true backbone.weights=a.safetensors", "cannot be combined"),
        ("seed=1,2", "need -m"),
        ("seed=-1", "at least 0"),
        ("nonsense", "key=value"),
        ("optimizer=sdg", "Did you mean 'sgd'?"),
    ],
)
def test_a_mistake_is_told_with_its_cure(override: str, told: str) -> None:
    said = messages(*override.split(" "))
    assert any(told in message for message in said), said


def test_seed_zero_is_a_seed() -> None:
    assert load_config(["seed=0"]).seed == 0


def test_the_command_line_wins_over_an_experiment() -> None:
    assert load_config(["experiment=seed"]).train.batch_size == 16
    assert load_config(["experiment=seed", "train.batch_size=7"]).train.batch_size == 7
    assert load_config(["train.batch_size=7", "experiment=seed"]).train.batch_size == 7


def test_the_seed_experiment_is_the_original_recipe() -> None:
    config = load_config(["experiment=seed"])
    assert config.ingest.num_images == 100
    assert config.preprocess.image_size == 200
    assert config.preprocess.split == [0.7, 0.2, 0.1]
    assert (config.train.max_epochs, config.train.batch_size) == (10, 16)
    assert (config.optimizer["lr"], config.optimizer["momentum"]) == (0.001, 0.9)
    assert (config.scheduler["step_size"], config.scheduler["gamma"]) == (7, 0.1)
    assert config.backbone.pretrained and config.backbone.name == "resnet18"


def test_a_folder_brings_its_own_classes_unless_they_are_named() -> None:
    assert load_config(["source=folder", "source.path=x"]).classes.names is None
    assert load_config(["source=folder", "source.path=x", "classes.names=[a,b]"]).classes.names == ["a", "b"]
    assert load_config(["source=folder", "source.path=x", "classes=pets"]).classes.names == ["cat", "dog"]


@pytest.mark.parametrize("path", ["my images (2)", "a=b", "it's", "plain/path.zip", "comma, space"])
def test_paths_need_no_quoting(path: str) -> None:
    assert load_config(["source=folder", f"source.path={path}"]).source.path == path


def test_an_already_quoted_path_is_left_alone() -> None:
    assert quote("source.path='a b'") == "source.path='a b'"
    assert quote("model_dir=a,b", sweeps=True) == "model_dir=a,b"
    assert quote("model_dir=a,b") == "model_dir='a,b'"


def test_callbacks_and_loggers_take_new_nodes() -> None:
    config = load_config(["+callbacks.mine={_target_: my.Callback, x: 1}"])
    assert config.callbacks["mine"] == {"_target_": "my.Callback", "x": 1}
    assert load_config(["callbacks=early_stopping", "callbacks.early_stopping.patience=3"])


def test_paths_are_not_keyed() -> None:
    keyed = dump(load_config(["serve.key_file=keys.txt", "runs_dir=elsewhere"]), keyed_only=True)
    assert "key_file" not in keyed["serve"] and "runs_dir" not in keyed and "path" not in keyed["source"]


@pytest.mark.parametrize(
    "text", ["serve.key=hush", "+serve.key=hush", "++serve.key=hush", "'serve.key'=hush", "serve={key: hush}"]
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(text: str) -> None:
    for check in (load_config, check_command_line):
        with pytest.raises(UserError, match="OBJREC_SERVE_KEY") as caught:
            check(["train.max_epochs=nonsense", text])
        assert "hush" not in str(caught.value)


def test_a_key_in_a_settings_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nserve:\n  key: hush\n")
    with pytest.raises(UserError, match=r"OBJREC_SERVE_KEY|serve\.key") as caught:
        load_config([f"--config-dir={tmp_path}", "experiment=mine"])
    assert "hush" not in str(caught.value)


def test_each_value_of_a_sweep_is_checked_before_it_starts() -> None:
    check_command_line(["train.batch_size=8,16", "-m"])
    with pytest.raises(UserError) as caught:
        check_command_line(["train.batch_size=8,0", "backbone=resnet18,resnet19", "-m"])
    assert len(caught.value.messages) >= 2


def test_a_config_folder_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "fruit.yaml").write_text("names: [apple, pear]\n")
    assert load_config([f"--config-dir={tmp_path}", "classes=fruit"]).classes.names == ["apple", "pear"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["source.path=mine"], "source.path=mine: source=sample does not read it: source=folder takes a folder"),
        (
            ["source=folder", "source.path=x", "source.licenses=[by]"],
            "source=folder does not read it, for it knows none",
        ),
        (["source=[openverse,sample]", "source.path=x"], "source=openverse,sample does not read it"),
        (["augmentation.magnitude=3"], "only augmentation=rand reads it"),
        (["ingest.num_images=null"], "this source is unlimited"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(overrides)


def test_sources_with_an_end_are_taken_whole_unless_a_number_is_given() -> None:
    assert load_config([]).ingest.num_images == 100
    assert load_config(["source=folder", "source.path=x"]).ingest.num_images is None
    assert load_config(["source=folder", "source.path=x", "ingest.num_images=5"]).ingest.num_images == 5


def test_no_default_value_hides_in_the_schema() -> None:
    optional = {"scale", "ratio", "flip", "pad", "members", "num_images"}  # of one augmentation or source or another
    for name, section in Config.model_fields.items():
        assert section.is_required(), name
        fields = getattr(section.annotation, "model_fields", {})
        assert all(f.is_required() or n in optional for n, f in fields.items()), name
