"""``python azureml/submit.py``: what it does with its arguments."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objrec.cloud.environments import ROOT
from objrec.cloud.snapshot import snapshot_files, stage
from objrec.config.diagnose import refuse_secrets
from objrec.config.environment import child_environment
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.config.search_space import check_values, read_command
from objrec.runner.runner import new_run_dir
from objrec.submit import summary
from objrec.submit.checks import check_job
from objrec.submit.jobs import Job, JobRequest, build_job
from objrec.submit.sweep import AzureSpace, azure_space
from objrec.system.files import write_json
from objrec.system.outputs import claim_cache

SHORT = ("dry_run", "wait", "cleanup")  # may be given without ``azure.``

HELP = """Run the five steps as an Azure ML pipeline job, with the same settings as locally.

usage: python azureml/submit.py [key=value ...] [dry_run=true] [azure.wait=true] [cleanup=true]

examples:
  python azureml/submit.py dry_run=true                        print a summary and write the job's YAML: no account
  python azureml/submit.py experiment=seed azure.wait=true     submit and wait for the result
  python azureml/submit.py azure.data=azureml:my-images:3      start from a data asset of the workspace
  python azureml/submit.py compute=cpu                         no GPU cluster
  python azureml/submit.py compute=multi_gpu azure.gpu.size=Standard_NC64as_T4_v3 azure.gpu.gpus=4
  python azureml/submit.py sweep=random                        a sweep job, from the same file as objrec.train -m
  python azureml/submit.py cleanup=true                        list created resources, delete them after confirmation

Azure settings and their defaults: configs/azure/default.yaml
Starting from an empty subscription: docs/azure.md"""


def run(overrides: Sequence[str]) -> int:
    """Compose, build, check; then show, submit or clean up. Returns the exit status."""
    overrides = [f"azure.{o}" if o.split("=")[0] in SHORT else o for o in overrides]
    plain, space, config = read_overrides(overrides)
    if config.azure.cleanup:
        from objrec.submit.cleanup import clean_up

        return clean_up(config)
    claim_cache(Path(config.cache_dir))
    files = snapshot_files(ROOT)
    snapshot = stage(files, ROOT, Path(config.cache_dir).resolve() / "azure")
    code = snapshot.name
    job = prepare(plain, space, config, snapshot)
    marks = {**summary.fingerprints(job, code), "code": code}
    memory = Path(config.cache_dir) / summary.MEMORY
    place = write(job, new_folder(config) / "job.yaml")
    print(summary.describe(job, config, reused=summary.reuse(job, marks, _read(memory)), files=files))
    print(f"job         {place}")
    if config.azure.dry_run:
        return 0
    from objrec.submit.client import submit

    name, status = submit(place, job, config)
    steps = {k: v for k, v in marks.items() if k != "code"}
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, {"name": name, "code": code, "steps": steps})
    return status


def read_overrides(overrides: Sequence[str]) -> tuple[list[str], AzureSpace | None, Config]:
    """Return (overrides that all trials share, what is varied, the configuration without that). Raises UserError."""
    refuse_secrets(overrides)
    plain, varied = read_command(overrides)
    config = load_config(plain, effects=not varied)
    space = azure_space(varied, config)
    if varied:  # a node that starts to learn of a bad value costs money
        check_values(plain, varied)
    return plain, space, config


def prepare(plain: Sequence[str], space: AzureSpace | None, config: Config, code: Path) -> Job:
    """Return the checked definition of the job. Raises UserError with everything that stands against it."""
    from objrec.steps import load_steps

    request = JobRequest(
        steps=load_steps(), config=config, overrides=plain, code=code, space=space, git_commit=_git_commit()
    )
    job = build_job(request)
    clusters = {c.cluster: c.max_nodes for c in (config.azure.cpu, config.azure.gpu)}
    if problems := check_job(job, clusters):
        raise UserError(problems)
    return job


def write(job: Job, place: Path) -> Path:
    """Write the job with local paths relative to the file, as Azure ML reads them."""
    import yaml

    text = yaml.safe_dump(_relative(job, place.parent), sort_keys=False, width=100000, allow_unicode=True)
    place.write_text(text, encoding="utf-8")
    return place


def _relative(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {k: _relative(v, folder) for k, v in value.items()}
    if isinstance(value, str) and value.startswith("/") and Path(value).exists():
        return os.path.relpath(value, folder)
    return value


def new_folder(config: Config) -> Path:
    """Return the folder of this submission under ``runs_dir/azure``, or ``run_dir``."""
    return new_run_dir(config, "azure").resolve()


def _git_commit() -> str | None:
    try:
        told = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True, env=child_environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _read(memory: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return found
