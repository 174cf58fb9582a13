"""Types, ranges and cross-field rules of the configuration. Default values are in ``configs/`` and nowhere else.

A mark on a field says what a cache key may hold: ``UNKEYED`` is for paths, presentation and limits of time, which do
not change what a step produces. No setting is a secret: those come from the environment or from files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

UNKEYED = Field(json_schema_extra={"keyed": False})


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Share = Annotated[Float, Field(ge=0, le=1)]
Bits = Annotated[Int, Field(ge=0, le=15)]  # objrec.images.near_duplicates.MAX_DISTANCE


def _count_or_auto(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"should be a whole number of at least 1, or auto, got {value!r}")
    return value


def _like(pattern: str, words: str) -> AfterValidator:
    """Check text against a pattern, and say in words what it should be."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"'{value}' should be {words}")
        return value

    return AfterValidator(check)


def _home(value: Any) -> Any:
    """Put the home directory for ``~``: a shell does so at the beginning of a word only."""
    return str(FilePath(value).expanduser()) if isinstance(value, str) and value[:1] == "~" else value


def _names(value: Any) -> Any:
    """Take numbers for names, as in a file's ``names: [0, 1, 2]``."""
    if not isinstance(value, list):
        return value
    return [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value]


PATH = Field(json_schema_extra={"keyed": False, "path": True})
Node = dict[str, Any]  # ``_target_`` and its arguments: what hydra.utils.instantiate takes
Path = Annotated[str | None, BeforeValidator(_home), PATH]
Folder = Annotated[str, BeforeValidator(_home), PATH]


class Section(BaseModel):
    """Frozen, closed: a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Classes(Section):
    names: Annotated[list[str] | None, BeforeValidator(_names)]  # null: those that the source has

    @field_validator("names")
    @classmethod
    def _check(cls, names: list[str] | None) -> list[str] | None:
        if names is None:
            return None
        if len(names) < 2:
            raise ValueError(f"needs at least two class names, got {len(names)}: classes.names=[cat,dog]")
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"repeats a class name: {', '.join(repeated)}")
        if bad := [n for n in names if not n.strip() or n.strip(".") == "" or set(n) & set('/\\\0:*?"<>|')]:
            raise ValueError(f"has a name that is not valid for a folder: {', '.join(map(repr, bad))}")
        return names


class SourceSection(Section):
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    target: Annotated[str, Field(alias="_target_")]
    path: Path
    endpoint: Annotated[str | None, UNKEYED]
    licenses: list[str] | None
    num_images: Annotated[int | None, UNKEYED] = None  # the default of ingest.num_images, which is what counts
    members: dict[str, Node] | None = None  # of source=[a,b]: the nodes of a and b

    @property
    def targets(self) -> set[str]:
        """Names of the classes of all its sources, without their modules."""
        return {
            str(n.get("_target_")).rpartition(".")[2]
            for n in (self.members or {"": {"_target_": self.target}}).values()
        }


SOURCES = {  # which of the settings that all nodes share our sources read
    "SampleSource": ("licenses",),
    "FolderSource": ("path",),
    "UrlsSource": ("path", "licenses"),
    "TorchvisionSource": (),
    "BingSource": ("endpoint", "licenses"),
    "CommonsSource": ("endpoint", "licenses"),
    "OpenverseSource": ("endpoint", "licenses"),
}
FINITE = {"FolderSource", "UrlsSource", "TorchvisionSource"}


class Ingest(Section):
    num_images: Annotated[Int, Field(ge=1)] | None
    contact: Annotated[str | None, UNKEYED]
    min_size: Annotated[Int, Field(ge=1)]
    near_duplicate_bits: Bits | None
    exclude: list[str]
    refresh: Annotated[bool, UNKEYED]
    timeout: Annotated[Float, Field(gt=0), UNKEYED]
    class_timeout: Annotated[Float, Field(gt=0), UNKEYED]
    max_bytes: Annotated[Int, Field(ge=1)]
    retries: Annotated[Int, Field(ge=0, le=10), UNKEYED]
    max_wait: Annotated[Float, Field(ge=0), UNKEYED]
    connections: Annotated[Int, Field(ge=1, le=1000), UNKEYED]
    connections_per_host: Annotated[Int, Field(ge=1, le=1000), UNKEYED]
    host_rate: Annotated[Annotated[Float, Field(gt=0)] | None, UNKEYED]
    robots: bool
    allow_private_addresses: bool

    @field_validator("contact")
    @classmethod
    def _is_address(cls, contact: str | None) -> str | None:
        if contact is not None and not ("@" in contact or contact.startswith(("http://", "https://"))):
            raise ValueError(f"'{contact}' should be your e-mail address or URL, as in me@example.org")
        if contact is not None and not contact.isprintable():
            raise ValueError("should not contain control characters")
        return contact

    @field_validator("exclude")
    @classmethod
    def _names_images(cls, exclude: list[str]) -> list[str]:
        if bad := [
            e for e in exclude if ":" not in e and not (len(e) >= 16 and set(e.lower()) <= set("0123456789abcdef"))
        ]:
            raise ValueError(f"'{bad[0]}' should be a URL, or at least 16 digits of a sha256 as in the manifest")
        return exclude


class Preprocess(Section):
    image_size: Annotated[Int, Field(ge=8, le=4096)]
    split: Annotated[list[Share], Field(min_length=3, max_length=3)]
    exact_split: bool
    drop_empty_classes: bool
    near_duplicate_bits: Bits | None
    jpeg_quality: Annotated[Int, Field(ge=1, le=100)] | None
    workers: Annotated[Annotated[Int, Field(ge=1)] | None, UNKEYED]
    timeout: Annotated[Float, Field(gt=0), UNKEYED]

    @field_validator("split")
    @classmethod
    def _sums_to_one(cls, split: list[float]) -> list[float]:
        if abs(sum(split) - 1) > 1e-6:
            raise ValueError(f"must sum to 1, got {sum(split):g}: train, valid and test, as in [0.7,0.2,0.1]")
        if min(split) == 0:
            raise ValueError("needs a share above 0 for each of train, valid and test")
        return split


class Images(Section):
    max_pixels: Annotated[Int, Field(ge=64)]
    near_duplicate_bits: Bits | None


class Backbone(Section):
    name: str
    pretrained: bool
    weights: Path
    small_input: bool
    drop_rate: Annotated[Share, Field(lt=1)]
    frozen: bool

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained=true and weights=PATH cannot be combined: choose one")
        return self


class Augmentation(Section):
    name: Literal["none", "flip_crop", "shift", "trivial", "rand"]
    scale: Annotated[list[Annotated[Share, Field(gt=0)]], Field(min_length=2, max_length=2)] | None
    ratio: Annotated[list[Annotated[Float, Field(gt=0)]], Field(min_length=2, max_length=2)] | None
    pad: Annotated[Int, Field(ge=0)] | None
    flip: Share | None
    flip_mode: Literal["random", "alternate"]
    num_ops: Annotated[Int, Field(ge=1, le=10)] | None
    magnitude: Annotated[Int, Field(ge=0, le=30)] | None
    erase: Share
    erase_area: Annotated[list[Annotated[Share, Field(gt=0)]], Field(min_length=2, max_length=2)]
    cutout: Annotated[Int, Field(ge=0)]
    mixup: Annotated[Float, Field(ge=0)]
    cutmix: Annotated[Float, Field(ge=0)]

    @field_validator("scale", "ratio", "erase_area")
    @classmethod
    def _rises(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds is not None and bounds[0] > bounds[1]:
            raise ValueError(f"should go from the smallest to the largest, got {bounds}")
        return bounds

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        needs = {"flip_crop": ("scale", "ratio"), "shift": ("pad",), "rand": ("num_ops", "magnitude")}
        if missing := [key for key in needs.get(self.name, ()) if getattr(self, key) is None]:
            raise ValueError(f"name={self.name} needs {', '.join(missing)}: augmentation={self.name} sets them")
        return self


class Train(Section):
    max_epochs: Annotated[Int, Field(ge=1)]
    batch_size: Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)]
    memory_limit: Annotated[Int, Field(ge=1)] | None
    accumulate: Annotated[Int, Field(ge=1)]
    learning_rate: Annotated[Float, Field(gt=0)]
    find_lr: bool
    layer_decay: Annotated[Float, Field(gt=0, le=1)] | None
    decay_norms: bool
    momentum: Annotated[Share, Field(lt=1)]
    loss: Literal["cross_entropy", "focal"]
    focal_gamma: Annotated[Float, Field(ge=0)]
    class_weights: Literal["none", "balanced"]
    label_smoothing: Annotated[Share, Field(lt=1)]
    freeze_epochs: Annotated[Int, Field(ge=0)]
    freeze_batch_norm: bool
    ema: Annotated[Share, Field(lt=1)] | None
    progressive_resize: Annotated[Float, Field(gt=0, lt=1)] | None
    gradient_clip: Annotated[Float, Field(gt=0)] | None
    resume: Annotated[Literal["auto", "never"], UNKEYED]
    keep_checkpoints: bool
    checkpoint_minutes: Annotated[Annotated[Float, Field(gt=0)] | None, UNKEYED]
    log_every_n_steps: Annotated[Int, Field(ge=1), UNKEYED]
    validate_every: Annotated[Int, Field(ge=1)]
    limit_batches: Annotated[Int, Field(ge=1)] | None
    fraction: Annotated[Share, Field(gt=0)]


class DataModule(Section):
    cache: Annotated[Literal["auto", "memory", "disk", "off"], UNKEYED]
    cache_limit: Annotated[Int, Field(ge=0), UNKEYED]
    disk_limit: Annotated[Int, Field(ge=0), UNKEYED]
    store_size: Annotated[Int, Field(ge=8, le=4096)] | None
    sampler: Literal["shuffle", "balanced"]
    num_workers: Annotated[Annotated[Int, Field(ge=0)] | Literal["auto"], UNKEYED]


class Compute(Section):
    accelerator: Literal["auto", "cpu", "gpu", "mps", "tpu"]
    devices: Int | Literal["auto"] | list[Int]
    num_nodes: Annotated[Int, Field(ge=1)]
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"]
    compile: bool
    sync_batchnorm: bool
    runtime: Literal["auto", "onnxruntime", "torch"]

    @field_validator("devices")
    @classmethod
    def _some(cls, devices: Any) -> Any:
        numbers = devices if isinstance(devices, list) else []
        if devices == 0 or devices == [] or (isinstance(devices, int) and devices < -1):
            raise ValueError(
                f"should be a number of at least 1, a list as in [0,1], -1 for all, or auto, got {devices}"
            )
        if min(numbers, default=0) < 0 or len(set(numbers)) < len(numbers):
            raise ValueError(f"should list different devices by their number from 0, got {devices}")
        return devices

    @model_validator(mode="after")
    def _counts_on_a_cpu(self) -> Self:
        if self.accelerator == "cpu" and (self.devices == -1 or isinstance(self.devices, list)):
            raise ValueError(f"devices={self.devices}: on a CPU it is the number of processes: compute.devices=1")
        return self

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # precision=32 is read as a number


class Evaluate(Section):
    batch_size: Annotated[Int, Field(ge=1), UNKEYED]
    compare: Path
    unknown_dir: Path
    slices: bool
    robustness: bool


class Export(Section):
    formats: list[Literal["onnx", "openvino", "torch_export"]]
    int8: bool
    calibration: Annotated[Int, Field(ge=1)]


class Deploy(Section):
    target: Literal["local", "azure"]
    start: bool
    min_improvement: Annotated[Float, Field(ge=0, le=1)]
    require_significance: bool
    significance_level: Annotated[Float, Field(gt=0, lt=1)]
    min_accuracy: Share | None
    max_accuracy_drop: Share | None
    keep: Annotated[Int, Field(ge=0)]


class Serve(Section):
    action: Literal["run", "start", "stop", "status"]
    host: str
    port: Annotated[Int, Field(ge=0, le=65535)]
    key_file: Path
    runtime: Literal["auto", "onnxruntime", "openvino", "torch"]
    precision: Literal["auto", "fp32", "bf16", "int8"]
    max_accuracy_drop: Share
    workers: Annotated[Int, Field(ge=1)] | None
    queue: Annotated[Int, Field(ge=0)]
    timeout: Annotated[Float, Field(gt=0)]
    max_batch: Annotated[Int, Field(ge=1)]
    grace: Annotated[Float, Field(ge=0)]
    drain: Annotated[Float, Field(ge=0)]
    cors: list[str]
    root_path: Annotated[str, _like(r"(/[A-Za-z0-9._~-]+)*", "empty or a path, as in /models/animals")]
    allow_urls: bool
    max_bytes: Annotated[Int, Field(ge=1)]
    max_pixels: Annotated[Int, Field(ge=64)]
    memory: Annotated[Int, Field(ge=16 * 2**20)] | Literal["auto"]
    max_head: Annotated[Int, Field(ge=1024)]
    max_headers: Annotated[Int, Field(ge=10)]
    max_target: Annotated[Int, Field(ge=64)]
    top_k: Annotated[Int, Field(ge=1)]
    examples: bool | Literal["auto"]


class AzureCluster(Section):
    """A cluster of virtual machines that shrinks to none when idle."""

    cluster: Annotated[str, _like(r"[A-Za-z][A-Za-z0-9-]{1,23}", "2 to 24 letters, digits or -")]
    size: str
    gpus: Annotated[Int, Field(ge=0)]
    max_nodes: Annotated[Int, Field(ge=1)]
    idle_seconds: Annotated[Int, Field(ge=30)]
    tier: Literal["dedicated", "low_priority"]


class AzureTimeouts(Section):
    """Seconds after which the platform stops a step."""

    ingest: Annotated[Int, Field(ge=1)] | None
    preprocess: Annotated[Int, Field(ge=1)] | None
    train: Annotated[Int, Field(ge=1)] | None
    evaluate: Annotated[Int, Field(ge=1)] | None
    deploy: Annotated[Int, Field(ge=1)] | None


class AzureEndpoint(Section):
    """The managed online endpoint and the way traffic moves to a new deployment."""

    name: Annotated[str, _like(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", "3 to 32 lower-case letters, digits or -")] | None
    size: str
    instances: Annotated[Int, Field(ge=1)]
    traffic: Annotated[list[Annotated[Int, Field(ge=1, le=100)]], Field(min_length=1)]
    settle_seconds: Annotated[Float, Field(ge=0)]
    request_timeout_ms: Annotated[Int, Field(ge=1, le=180000)]
    max_concurrent_requests: Annotated[Int, Field(ge=1)]
    max_queue_wait_ms: Annotated[Int, Field(ge=1)]
    smoke_images: Annotated[Int, Field(ge=1)]
    keep_previous: bool

    @field_validator("traffic")
    @classmethod
    def _rises_to_all(cls, traffic: list[int]) -> list[int]:
        if traffic != sorted(set(traffic)) or traffic[-1] != 100:
            raise ValueError(f"must rise to 100, got {traffic}: as in [10,50,100], or [100] for all at once")
        return traffic


class Azure(Section):
    config: str
    experiment: str
    name: str | None
    dry_run: bool
    wait: bool
    poll_seconds: Annotated[Float, Field(gt=0)]
    cleanup: bool
    confirm: bool
    retries: Annotated[Int, Field(ge=0, le=20)]
    timeout: Annotated[Float, Field(gt=0)]
    data: str | None
    datastore: str | None
    cpu: AzureCluster
    gpu: AzureCluster
    shm_size: Annotated[str, _like(r"[0-9]+[bkmg]", "a size, as in 8g")]
    timeouts: AzureTimeouts
    environment: str
    vault_url: Annotated[str, _like(r"https://[^/]+/?", "as in https://NAME.vault.azure.net")] | None
    secrets: list[str]
    model_name: str
    endpoint: AzureEndpoint

    @field_validator("data")
    @classmethod
    def _is_an_asset(cls, data: str | None) -> str | None:
        if data is not None and not data.startswith(("azureml:", "https://", "wasbs://", "abfss://")):
            raise ValueError(
                f"'{data}' is not data in the cloud: azureml:NAME:VERSION, or azureml://datastores/STORE/paths/FOLDER"
            )
        return data

    @field_validator("secrets")
    @classmethod
    def _are_names(cls, secrets: list[str]) -> list[str]:
        if any(not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*:[A-Za-z0-9-]{1,127}", s) for s in secrets):
            raise ValueError("takes VARIABLE:NAME with the name of a secret in the vault, never the secret itself")
        return secrets

    @model_validator(mode="after")
    def _secrets_have_a_vault(self) -> Self:
        if self.secrets and self.vault_url is None:
            raise ValueError("secrets need azure.vault_url=https://NAME.vault.azure.net, the vault that holds them")
        return self


class Sweep(Section):
    """How trials are chosen and stopped; what is varied stands in ``hydra.sweeper.params`` of the same file."""

    algorithm: Literal["grid", "random", "bayesian", "optuna"]
    metric: Literal["val/acc", "val/loss"]
    max_trials: Annotated[Int, Field(ge=1)]
    max_concurrent_trials: Annotated[Int, Field(ge=1)]
    trial_timeout: Annotated[Int, Field(ge=1)] | None
    early_termination: Literal["none", "median", "bandit", "truncation"]
    delay_epochs: Annotated[Int, Field(ge=0)]


class Config(Section):
    """The whole configuration, checked. Group nodes that name a class (``_target_``) stay dictionaries."""

    seed: Annotated[Int, Field(ge=0, lt=2**32)]
    classes: Classes
    source: SourceSection
    ingest: Ingest
    preprocess: Preprocess
    images: Images
    backbone: Backbone
    augmentation: Augmentation
    optimizer: Node
    scheduler: Node
    callbacks: dict[str, Node | None]
    logger: Annotated[dict[str, Node | None], UNKEYED]
    compute: Compute
    train: Train
    datamodule: DataModule
    evaluate: Evaluate
    export: Export
    deploy: Deploy
    serve: Serve
    azure: Annotated[Azure, UNKEYED]
    sweep: Annotated[Sweep, UNKEYED]

    runs_dir: Folder
    cache_dir: Folder
    registry_dir: Folder
    run_dir: Path
    force: Annotated[list[str], UNKEYED]
    raw_data_dir: Path
    train_dir: Path
    valid_dir: Path
    test_dir: Path
    model_dir: Path
    accuracy_file: Path
    report_dir: Path
    endpoint_file: Path
    export_dir: Path

    @field_validator("force", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _refresh_runs_again(cls, data: Any) -> Any:
        """``ingest.refresh=true`` asks the sources again: a stored output of the same settings is no answer to it."""
        if isinstance(data, dict) and isinstance(data.get("ingest"), dict) and data["ingest"].get("refresh") is True:
            force = data.get("force")
            return {**data, "force": [*([force] if isinstance(force, str) else force or []), "ingest"]}
        return data

    def _unread(self) -> Iterator[str]:
        """Name the settings that were given and that the chosen source or augmentation does not read."""
        targets = self.source.targets
        if targets <= SOURCES.keys():
            name = ",".join(sorted(t.removesuffix("Source").lower() for t in targets))
            reads = {key for target in targets for key in SOURCES[target]}
            for key, cure in (
                ("path", ": source=folder takes a folder or an archive, source=urls a list"),
                ("endpoint", ""),
                ("licenses", ", for it knows none"),
            ):
                if key not in reads and (value := getattr(self.source, key)) is not None:
                    yield f"source.{key}={value}: source={name} does not read it{cure}"
        if self.ingest.num_images is None and not targets <= FINITE and targets <= SOURCES.keys():
            yield "ingest.num_images: null takes all images, but this source is unlimited: set ingest.num_images=100"

    @model_validator(mode="after")
    def _rules(self) -> Self:
        """Rules that span sections. Each message begins with the key to change."""
        problems = [*self._unread()]
        if "FolderSource" in self.source.targets and self.source.path is None:
            problems.append("source.path: source=folder needs a folder, zip or tar: source.path=PATH")
        if self.source.members == {}:
            problems.append("give a list instead of source=several: source=[openverse,commons]")
        if "UrlsSource" in self.source.targets and self.source.path is None:
            problems.append("source.path: source=urls needs a list (.csv, .tsv, .jsonl, .parquet): source.path=LIST")
        if "CommonsSource" in self.source.targets and self.ingest.contact is None:
            problems.append(
                "ingest.contact: source=commons needs your e-mail address or URL, which Wikimedia requires in the "
                "User-Agent: ingest.contact=me@example.org"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
