"""A managed online endpoint, blue and green in turn: the new deployment answers before it takes traffic."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from objrec.cloud.workspace import explained
from objrec.config.errors import UserError

COLOURS = ("blue", "green")
LOG_LINES = 60
PAUSE = 2.0  # seconds between two tries
TRIES = 3  # of one smoke image: a new deployment's first requests may meet a starting server


@dataclass(frozen=True)
class SmokeImage:
    """An encoded image and what the model answered for it before it was deployed."""

    data: bytes
    label: str
    probability: float


class ManagedEndpoint:
    """One endpoint of the workspace.

    Args:
        send: posts an image: (url, body, headers, seconds) -> (status, answer).
    """

    def __init__(
        self,
        client: Any,
        name: str,
        *,
        send: Callable[[str, bytes, Mapping[str, str], float], tuple[int, Any]],
        seconds: float,
    ) -> None:
        self.client, self.name = client, name
        self._send, self._seconds = send, seconds
        self._key: str | None = None

    def ensure(self) -> bool:
        """Create the endpoint when there is none; returns whether it did."""
        from azure.ai.ml.entities import ManagedOnlineEndpoint
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"look at the endpoint {self.name}"):
            try:
                self.client.online_endpoints.get(self.name)
                return False
            except ResourceNotFoundError:
                pass
        wanted = ManagedOnlineEndpoint(name=self.name, auth_mode="key", tags={"created_by": "objrec"})
        with explained(f"create the endpoint {self.name} (its name must be free in the whole region)"):
            self.client.online_endpoints.begin_create_or_update(wanted).result()
        return True

    @property
    def url(self) -> str | None:
        """The scoring address."""
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"look at the endpoint {self.name}"):
            try:
                return str(self.client.online_endpoints.get(self.name).scoring_uri)
            except ResourceNotFoundError:
                return None

    def traffic(self) -> dict[str, int]:
        """Return the share of each deployment that has one, in per cent."""
        with explained(f"look at the traffic of {self.name}"):
            return {n: s for n, s in (self.client.online_endpoints.get(self.name).traffic or {}).items() if s > 0}

    def deployments(self) -> set[str]:
        with explained(f"list the deployments of {self.name}"):
            return {d.name for d in self.client.online_deployments.list(self.name)}

    def set_traffic(self, shares: Mapping[str, int]) -> None:
        """Replace the traffic map, whole as the service takes it. Raises UserError for one that it should not take."""
        if problems := check_traffic(shares, self.deployments()):
            raise UserError(problems)
        with explained(f"move the traffic of {self.name}"):
            endpoint = self.client.online_endpoints.get(self.name)
            endpoint.traffic = dict(shares)
            self.client.online_endpoints.begin_create_or_update(endpoint).result()

    def free_colour(self) -> str:
        """Return the colour that takes no traffic."""
        busy = self.traffic()
        return (
            next(c for c in COLOURS if c not in busy)
            if not set(COLOURS) <= set(busy)
            else min(busy, key=busy.__getitem__)
        )

    def delete(self, deployment: str) -> None:
        """Delete a deployment that takes no traffic, if it is there."""
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"delete the deployment {deployment}"):
            try:
                self.client.online_deployments.begin_delete(name=deployment, endpoint_name=self.name).result()
            except ResourceNotFoundError:
                return

    def create(self, deployment: Any) -> None:
        """Create a deployment and wait until it runs. Raises UserError with the end of its log."""
        try:
            with explained(f"create the deployment {deployment.name}"):
                self.client.online_deployments.begin_create_or_update(deployment).result()
        except UserError as error:
            raise UserError([*error.messages, *self._log(deployment.name)]) from error

    def _log(self, deployment: str) -> list[str]:
        try:
            log = self.client.online_deployments.get_logs(name=deployment, endpoint_name=self.name, lines=LOG_LINES)
        except Exception:  # there is none before the container has started
            return []
        return [f"its log ends: {line}" for line in str(log).strip().splitlines()[-5:]]

    def smoke(self, deployment: str, images: Sequence[SmokeImage]) -> None:
        """Ask one deployment, whatever its traffic. Raises UserError unless it answers as the model did."""
        url = self.url
        assert url is not None
        for image in images:
            status, answer = self._ask(url, deployment, image.data)
            if status != 200 or not isinstance(answer, dict):
                raise UserError(f"the deployment {deployment} answered a test image with {status}: {answer}")
            label, probability = answer.get("label"), answer.get("probability", 0.0)
            if abs(probability - image.probability) > 0.01 or (
                label != image.label and abs(probability - image.probability) > 1e-4
            ):
                raise UserError(
                    f"the deployment {deployment} answered a test image with {label} ({probability:.3f}); the model "
                    f"says {image.label} ({image.probability:.3f})"
                )

    def _ask(self, url: str, deployment: str, data: bytes) -> tuple[int, Any]:
        if self._key is None:
            with explained(f"get the key of {self.name}"):
                self._key = str(self.client.online_endpoints.get_keys(self.name).primary_key)
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/octet-stream",
            "azureml-model-deployment": deployment,
        }
        status: int = 0
        answer: Any = None
        for left in reversed(range(TRIES)):
            status, answer = self._send(url, data, headers, self._seconds)
            if status not in (0, 424, 429, 502, 503, 504) or not left:
                break
            time.sleep(PAUSE)
        return status, answer

    def roll_out(
        self, deployment: Any, images: Sequence[SmokeImage], *, shares: Sequence[int], settle: float
    ) -> str | None:
        """Create a deployment, try it, move the traffic in shares. Returns the one that had the traffic before.

        Whatever fails, the traffic is as it was before and the new deployment is gone.

        Raises:
            UserError: what failed.
        """
        before = self.traffic()
        name = deployment.name
        self.delete(name)  # what an earlier release left in this colour
        try:
            self.create(deployment)
            self.smoke(name, images)
            for share in shares if before else (100,):
                self.set_traffic(_mixed(before, name, share))
                print(f"endpoint    {self.name}: {share} % to {name}", flush=True)
                time.sleep(settle)
                self.smoke(name, images)
        except BaseException as error:
            self._back(before, name, error)
            raise
        return max(before, key=lambda n: before[n]) if before else None

    def _back(self, before: Mapping[str, int], name: str, error: BaseException) -> None:
        try:
            if self.traffic() != dict(before):
                self.set_traffic(before if before else {name: 0})
            self.delete(name)
        except Exception as second:
            told = [str(error), f"and the way back failed too: {second}"]
            if before:
                cure = " ".join(f"{n}={s}" for n, s in before.items())
                told.append(
                    f"to move the traffic back: az ml online-endpoint update --name {self.name} --traffic '{cure}'"
                )
            raise UserError(told) from error


def _mixed(before: Mapping[str, int], name: str, share: int) -> dict[str, int]:
    """Give ``share`` per cent to ``name`` and the rest to the others as they had it, in whole per cents."""
    rest = 100 - share
    others = {n: s * rest // 100 for n, s in before.items() if n != name}
    if others:
        others[max(others, key=lambda n: before[n])] += rest - sum(others.values())
    return {**others, name: share}


def check_traffic(traffic: Mapping[str, int], deployments: set[str]) -> list[str]:
    """Return what is wrong with a traffic map; the service takes it as a whole and the SDK sends anything."""
    problems = [f"traffic would go to '{n}', which is no deployment" for n in sorted(set(traffic) - deployments)]
    if any(share < 0 for share in traffic.values()):
        problems.append(f"negative share: {dict(traffic)}")
    if sum(traffic.values()) not in (0, 100):
        problems.append(f"the shares sum to {sum(traffic.values())}, not to 100: {dict(traffic)}")
    return problems


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> tuple[int, Any]:
    """Send a request; a connection that fails is status 0."""
    import requests

    try:
        response = requests.post(url, data=body, headers=dict(headers), timeout=seconds)
    except requests.RequestException as error:
        return 0, str(error)
    try:
        return response.status_code, response.json()
    except json.JSONDecodeError:
        return response.status_code, response.text[:200]
