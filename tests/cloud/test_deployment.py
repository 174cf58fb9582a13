"""Deployment to the managed endpoint with the real SDK, against a workspace on loopback and Azurite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.azure import QUICK
from helpers.azure_stand_in import StandIn
from helpers.serving import make_accuracy, make_images, make_model

from objrec.cloud.endpoint import check_traffic
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.inference.predictor import Predictor
from objrec.serving import request as handler
from objrec.steps.base import restrict
from objrec.steps.deploy import STEP

NAME = "objrec-try"
SETTINGS = [*QUICK, "deploy.target=azure", f"azure.endpoint.name={NAME}", "azure.endpoint.settle_seconds=0"]

Deploy = Callable[..., dict[str, Any]]


@pytest.fixture
def deploy(azure: StandIn, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Deploy:
    """Deploy a model as the step does in the cloud; the endpoint answers with the models that it was given."""
    test_dir = make_images(workdir / "test", per_class=3)
    models: dict[str, Predictor] = {}
    monkeypatch.setattr("objrec.cloud.endpoint.PAUSE", 0.0)

    def answer(deployment: str, body: bytes, content_type: str) -> tuple[int, Any]:
        found = azure.get(f"onlineEndpoints/{NAME}/deployments/{deployment}")
        assert found is not None
        sha256 = found["tags"]["sha256"]
        reply = handler.score(body, content_type, models[sha256])
        return reply.status, dict(reply.body)

    azure.scoring = answer

    def run(model_dir: Path, accuracy: float, *overrides: str, answers_as: Path | None = None) -> dict[str, Any]:
        config = load_config([*SETTINGS, *overrides])
        accuracy_file = make_accuracy(workdir / "accuracy.json", model_dir, accuracy)
        predictor = Predictor.load(model_dir)
        models[predictor.card.sha256] = Predictor.load(answers_as) if answers_as else predictor
        inputs = {"model_dir": model_dir, "accuracy_file": accuracy_file, "test_dir": test_dir}
        STEP.run(restrict(config, STEP), inputs, {"endpoint_file": workdir / "endpoint.json"})
        content: dict[str, Any] = json.loads((workdir / "endpoint.json").read_text())
        return content

    return run


def traffic(azure: StandIn) -> dict[str, int]:
    found = azure.get(f"onlineEndpoints/{NAME}")
    return {} if found is None else found["properties"].get("traffic", {})


def test_first_then_refused_then_better(azure: StandIn, deploy: Deploy, workdir: Path, capsys: Any) -> None:
    first = make_model(workdir / "first", seed=1)
    told = deploy(first, 0.8)
    assert told["deployed"] and told["rule"] == "first"
    assert traffic(azure) == {"blue": 100}
    assert told["url"].endswith(f"/score/{NAME}")
    (model,) = [r for p, r in azure.resources.items() if p.endswith("/models/objrec/versions/1")]
    assert model["properties"]["tags"]["accuracy"] == "0.8"
    assert model["properties"]["tags"]["training_data_fingerprint"] == "data-1"
    assert model["properties"]["tags"]["test_data_fingerprint"] == "test-1"
    assert model["properties"]["tags"]["git_commit"]
    sent = azure.get(f"onlineEndpoints/{NAME}/deployments/blue")["properties"]  # type: ignore[index]
    assert sent["requestSettings"]["maxConcurrentRequestsPerInstance"] == 4
    assert sent["requestSettings"]["requestTimeout"] == "PT30S"
    assert sent["codeConfiguration"]["scoringScript"] == "azureml/score.py"

    told = deploy(make_model(workdir / "second", seed=2), 0.8)
    assert not told["deployed"]
    assert "accuracy not higher" in told["decision"]
    assert traffic(azure) == {"blue": 100}
    assert azure.names(f"onlineEndpoints/{NAME}/deployments") == ["blue"]

    before = len(azure.calls)
    told = deploy(make_model(workdir / "third", seed=3), 0.9)
    assert told["deployed"] and told["rule"] == "higher"
    moves = [c.body["properties"]["traffic"] for c in azure.calls[before:] if _moves(c)]
    assert moves == [{"blue": 90, "green": 10}, {"blue": 50, "green": 50}, {"green": 100}]
    assert sorted(azure.names(f"onlineEndpoints/{NAME}/deployments")) == ["blue", "green"]  # blue for a way back
    assert told["deployment"] == "green"
    assert told["previous_version"] != told["model_version"]

    told = deploy(make_model(workdir / "fourth", seed=4, training_data="data-2"), 0.1, "azure.endpoint.traffic=[100]")
    assert told["rule"] == "new_data" and told["deployment"] == "blue"
    assert "key-of" not in json.dumps(told) + capsys.readouterr().out


def _moves(call: Any) -> bool:
    return call.method == "PUT" and call.path.endswith(f"/onlineEndpoints/{NAME}")


def test_a_deployment_that_answers_wrong_never_takes_traffic(azure: StandIn, deploy: Deploy, workdir: Path) -> None:
    deploy(make_model(workdir / "first", seed=1), 0.5)
    wrong = make_model(workdir / "wrong", seed=3, mirrored=True)
    before = len(azure.calls)
    with pytest.raises(UserError, match="the deployment green answered a test image with"):
        deploy(make_model(workdir / "second", seed=2), 0.9, answers_as=wrong)
    assert traffic(azure) == {"blue": 100}
    assert azure.names(f"onlineEndpoints/{NAME}/deployments") == ["blue"]
    assert not [c for c in azure.calls[before:] if _moves(c)]


def test_a_failure_on_the_way_moves_the_traffic_back(azure: StandIn, deploy: Deploy, workdir: Path) -> None:
    deploy(make_model(workdir / "first", seed=1), 0.5)
    good = azure.scoring
    assert good is not None

    def breaks_under_load(deployment: str, body: bytes, content_type: str) -> tuple[int, Any]:
        if deployment == "green" and traffic(azure).get("green") == 50:
            return 502, {"message": "the container died"}
        return good(deployment, body, content_type)

    azure.scoring = breaks_under_load
    with pytest.raises(UserError, match=r"green answered a test image with 502"):
        deploy(make_model(workdir / "second", seed=2), 0.9)
    assert traffic(azure) == {"blue": 100}
    assert azure.names(f"onlineEndpoints/{NAME}/deployments") == ["blue"]


def test_a_deployment_that_does_not_start_is_deleted(azure: StandIn, deploy: Deploy, workdir: Path) -> None:
    deploy(make_model(workdir / "first", seed=1), 0.5)
    azure.fail("PUT", r"/deployments/green$", 400, "BadArgument", "Out of capacity for Standard_F2s_v2")
    with pytest.raises(UserError, match=r"could not create the deployment green: 400: .*Out of capacity"):
        deploy(make_model(workdir / "second", seed=2), 0.9)
    assert traffic(azure) == {"blue": 100}
    assert azure.names(f"onlineEndpoints/{NAME}/deployments") == ["blue"]


def test_the_first_deployment_that_fails_leaves_no_endpoint(azure: StandIn, deploy: Deploy, workdir: Path) -> None:
    azure.fail("PUT", r"/deployments/blue$", 500, "InternalServerError", "A fault")
    with pytest.raises(UserError, match="A fault"):
        deploy(make_model(workdir / "first", seed=1), 0.5)
    assert azure.names("onlineEndpoints") == []


def test_another_test_set_measures_the_model_in_production_again(azure: StandIn, deploy: Deploy, workdir: Path) -> None:
    deploy(make_model(workdir / "first", seed=1), 0.2)
    azure.get(f"onlineEndpoints/{NAME}/deployments/blue")["tags"]["test_data_fingerprint"] = "an older one"  # type: ignore[index]
    told = deploy(
        make_model(workdir / "second", seed=2), 0.9
    )  # the first one, downloaded and measured, is right on all
    assert not told["deployed"]
    assert "against 1.0000 in production" in told["decision"]


def test_check_traffic() -> None:
    assert check_traffic({"blue": 60, "green": 40}, {"blue", "green"}) == []
    assert "sum to 120" in check_traffic({"blue": 60, "green": 60}, {"blue", "green"})[0]
    assert "'red', which is no deployment" in check_traffic({"red": 100}, {"blue"})[0]
    assert any("negative share" in p for p in check_traffic({"blue": 110, "green": -10}, {"blue", "green"}))
