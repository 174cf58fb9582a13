"""A workspace on loopback: the control plane's addresses and answers, a managed identity, and Azurite for the blobs.

It keeps what it is sent and gives it back in the service's shapes, so the real SDK runs against it unchanged. It
accepts almost anything: what it proves is the shape and order of our requests and our reaction to answers, not that
Azure would accept them.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SUBSCRIPTION, GROUP, WORKSPACE = "00000000-1111-2222-3333-444444444444", "images", "studio"
W = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
    f"/workspaces/{WORKSPACE}"
)
ACCOUNT = "devstoreaccount1"  # Azurite's own, with its published key
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "workspace"
TENANT = "99999999-8888-7777-6666-555555555555"


@dataclass
class Fault:
    """What to answer instead: ``status`` 0 never answers."""

    method: str
    path: re.Pattern[str]
    status: int
    code: str = ""
    message: str = ""
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    method: str
    path: str
    query: dict[str, list[str]]
    body: Any


class StandIn:
    """The state of the workspace, and the servers in front of it."""

    def __init__(self, folder: Path, blobs: str) -> None:
        self.certificate, key = make_certificate(folder)
        self.blobs = blobs
        self.resources: dict[str, dict[str, Any]] = {}
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.scoring: Callable[[str, bytes, str], tuple[int, Any]] | None = None  # deployment, body, content type
        self.job_states: dict[str, list[str]] = {}
        self.default_states: list[str] = []  # what a new job goes through
        self.children: dict[str, list[dict[str, Any]]] = {}
        self.secrets: dict[str, str] = {}
        self.lock = threading.RLock()
        self.arm = _serve(self, _Arm)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self.arm.socket = context.wrap_socket(self.arm.socket, server_side=True, do_handshake_on_connect=False)
        self.identity = _serve(self, _Identity)
        for server in (self.arm, self.identity):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.arm.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to take this for Azure."""
        return {
            "ARM_CLOUD_METADATA_URL": f"{self.url}/metadata/endpoints?api-version=2019-05-01",
            "AZUREML_CURRENT_CLOUD": "StandIn",
            "REQUESTS_CA_BUNDLE": str(self.certificate),
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{self.identity.server_address[1]}/msi/token",
            "IDENTITY_HEADER": "stand-in",
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "AZURE_CORE_COLLECT_TELEMETRY": "0",
        }

    def close(self) -> None:
        for server in (self.arm, self.identity):
            server.shutdown()
            server.server_close()

    def reset(self) -> None:
        """Forget everything but the blobs."""
        for kept in (self.resources, self.calls, self.faults, self.job_states, self.children, self.secrets):
            kept.clear()
        self.default_states = []
        self.scoring = None

    def fail(self, method: str, path: str, status: int, code: str = "", message: str = "", **more: Any) -> None:
        self.faults.append(Fault(method, re.compile(path), status, code, message, **more))

    def sent(self, method: str, path: str) -> list[Call]:
        """Return the calls whose path, within the workspace, matches from its start."""
        return [c for c in self.calls if c.method == method and re.match(path, c.path.removeprefix(W).lstrip("/"))]

    def put(self, name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Store a resource; ``name`` is its path within the workspace."""
        path = f"{W}/{name}"
        known = self.resources.get(path, {})
        now = datetime.datetime.now(datetime.UTC).isoformat()
        created = known.get("systemData", {}).get("createdAt", now)
        resource = {
            **more,
            "id": path,
            "name": name.rsplit("/", 1)[-1],
            "type": "Microsoft.MachineLearningServices/workspaces/" + "/".join(name.split("/")[::2]),
            "systemData": {"createdAt": created, "createdBy": "stand-in", "lastModifiedAt": now},
            "properties": properties,
        }
        self.resources[path] = resource
        return resource

    def get(self, name: str) -> dict[str, Any] | None:
        return self.resources.get(f"{W}/{name}")

    def names(self, kind: str) -> list[str]:
        """Return the names of the resources of a kind, ``computes`` or ``onlineEndpoints/x/deployments``."""
        return [p.rsplit("/", 1)[-1] for p in self.resources if p.rsplit("/", 1)[0] == f"{W}/{kind}"]

    def make_container(self, name: str) -> str:
        self.blob_service().create_container(name)
        return name

    def blob_service(self) -> Any:
        from azure.core.credentials import AzureNamedKeyCredential
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(self.blobs, credential=AzureNamedKeyCredential(ACCOUNT, ACCOUNT_KEY))

    def download(self, address: str, folder: Path) -> None:
        """Write the blobs under an address of this account to a folder, as the platform mounts them."""
        container, _, prefix = urlsplit(address).path.strip("/").partition("/")
        client = self.blob_service().get_container_client(container)
        for blob in client.list_blobs(name_starts_with=prefix):
            place = folder / (blob.name[len(prefix) :].strip("/") or Path(prefix).name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(client.download_blob(blob.name).readall())

    def container_sas(self, container: str = CONTAINER) -> str:
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        token = generate_container_sas(
            ACCOUNT,
            container,
            account_key=ACCOUNT_KEY,
            permission=ContainerSasPermissions(read=True, write=True, create=True, list=True, delete=True, add=True),
            expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
        )
        return f"{self.blobs}/{container}?{token}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: without it each answer takes 40 ms
    stand_in: StandIn

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.answer(status, {"error": {"code": code, "message": message}}, headers)


class _Identity(_Handler):
    """A managed identity: a token for whatever resource is asked for."""

    def do_GET(self) -> None:
        resource = parse_qs(urlsplit(self.path).query).get("resource", [""])[0]
        self.answer(200, token_for(resource))


class _Arm(_Handler):
    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # a client that gave up
            super().handle_one_request()

    def _take(self) -> None:
        stand_in = self.stand_in
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if parts.path.startswith("/score/"):
            self._score(parts.path.split("/")[2], raw)
            return
        if parts.path.startswith("/secrets/") and not self.headers.get("Authorization"):
            self._challenge()
            return
        body = json.loads(raw) if raw[:1] in (b"{", b"[") else None
        path = parts.path.replace("//", "/")
        call = Call(self.command, path, parse_qs(parts.query), body)
        with stand_in.lock:
            stand_in.calls.append(call)
            fault = next(
                (f for f in stand_in.faults if f.times > 0 and f.method == self.command and f.path.search(path)), None
            )
            if fault is not None:
                fault.times -= 1
        if fault is None:
            with stand_in.lock:
                reply = route(stand_in, call)
            self.answer(*reply) if reply[0] < 400 else self.error(reply[0], *reply[1])
        elif fault.status == 0:
            time.sleep(5)
            self.close_connection = True
        else:
            self.error(fault.status, fault.code, fault.message, fault.headers)

    def _challenge(self) -> None:
        """A vault tells whom it trusts before it takes a token."""
        port = self.stand_in.arm.server_address[1]
        told = f'Bearer authorization="{self.stand_in.url}/{TENANT}", resource="https://blob.localhost:{port}"'
        self.answer(401, None, {"WWW-Authenticate": told})

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _take

    def _score(self, endpoint: str, raw: bytes) -> None:
        """The endpoint's scoring address: by the header that names a deployment, else by the traffic."""
        stand_in = self.stand_in
        found = stand_in.get(f"onlineEndpoints/{endpoint}")
        if self.headers.get("Authorization") != f"Bearer key-of-{endpoint}":
            self.answer(401, {"message": "key_auth_access_denied"})
            return
        if found is None or stand_in.scoring is None:
            self.answer(404, {"message": "no such endpoint"})
            return
        traffic = found["properties"].get("traffic", {})
        chosen = self.headers.get("azureml-model-deployment") or max(traffic, key=traffic.get, default=None)
        if chosen is None:
            self.answer(404, {"message": "no deployment takes traffic"})
            return
        status, answer = stand_in.scoring(chosen, raw, self.headers.get("Content-Type", ""))
        self.answer(status, answer, {"azureml-model-deployment": chosen})


def route(s: StandIn, call: Call) -> tuple[int, Any]:
    """Answer a call as the control plane would: (status, body), or (status, (code, message)) for an error."""
    if call.path.startswith("/metadata/endpoints"):
        return 200, [metadata(s)]
    if call.path.startswith("/discovery"):
        return 200, {"api": s.url, "history": s.url}
    if match := re.match(r"/secrets/([\w-]+)", call.path):
        return _secret(s, match[1])
    if call.path == W:
        return 200, workspace(s)
    if "/history/" in call.path or call.path.startswith("/mferp"):
        return 200, {"value": [_run(c) for c in s.children.get(call.path.split("/runs/")[1].split("/")[0], [])]}
    name = call.path.removeprefix(f"{W}/")
    if name == call.path:
        return 404, ("ResourceNotFound", f"The Resource '{call.path}' was not found.")
    if call.method == "POST":
        return _act(s, name, call)
    if call.method == "PUT":
        return _put(s, name, call)
    if call.method == "PATCH":
        found = s.get(name)
        if found is None:
            return _missing(name)
        found.update({k: v for k, v in call.body.items() if k != "properties"})
        found["properties"].update(call.body.get("properties", {}))
        return 200, found
    if call.method == "DELETE":
        if s.resources.pop(f"{W}/{name}", None) is None:
            return 204, None
        for path in [p for p in s.resources if p.startswith(f"{W}/{name}/")]:
            del s.resources[path]
        return 200, None
    return _get(s, name, call)


def _get(s: StandIn, name: str, call: Call) -> tuple[int, Any]:
    if name.startswith("datastores/"):
        return 200, datastore(s, name.split("/")[1])
    found = s.get(name)
    if len(name.split("/")) % 2:  # a collection
        items = [r for p, r in s.resources.items() if p.rsplit("/", 1)[0] == f"{W}/{name}"]
        if wanted := call.query.get("hash"):  # the same content under whatever name
            codes = [r for p, r in s.resources.items() if p.startswith(f"{W}/codes/")]
            items = [r for r in codes if r["properties"].get("properties", {}).get("hash_sha256") == wanted[0]]
        if order := call.query.get("$orderBy") or call.query.get("orderBy"):
            items.sort(key=lambda r: r["systemData"]["createdAt"], reverse="desc" in order[0])
        if tops := call.query.get("$top"):
            items = items[: int(tops[0])]
        return 200, {"value": items}
    if found is None:
        return _missing(name)
    if name.startswith("jobs/") and s.job_states.get(found["name"]):
        states = s.job_states[found["name"]]
        found["properties"]["status"] = states.pop(0) if len(states) > 1 else states[0]
    return 200, found


def _missing(name: str) -> tuple[int, Any]:
    kind, *rest = name.split("/")
    return 404, ("UserError", f"Requested item type {kind}: {'/'.join(rest)} is not found")


def _put(s: StandIn, name: str, call: Call) -> tuple[int, Any]:
    properties = dict(call.body.get("properties", {}))
    more = {k: v for k, v in call.body.items() if k != "properties"}
    kind = name.split("/")[0]
    if kind == "jobs":
        s.job_states[name[5:]] = list(s.default_states)
        properties |= {"status": "Preparing", "services": {"Studio": {"endpoint": f"{s.url}/runs/{name[5:]}"}}}
    if kind == "computes":
        properties["provisioningState"] = "Succeeded"
    if kind == "onlineEndpoints":
        known = s.get(name)
        fresh = {
            "scoringUri": f"{s.url}/score/{name.split('/')[1]}",
            "swaggerUri": f"{s.url}/swagger",
            "provisioningState": "Succeeded",
        }
        properties = {**(known or {}).get("properties", {}), **properties, **(fresh if name.count("/") == 1 else {})}
        if name.count("/") == 3:
            properties |= {"provisioningState": "Succeeded", "scaleSettings": {"scaleType": "Default"}}
    if kind == "models" and name.count("/") == 3:
        properties.setdefault("flavors", {})
        version = name.split("/")[3]
        s.put("/".join(name.split("/")[:2]), {"latestVersion": version, "nextVersion": str(int(version) + 1)})
    return 200 if s.get(name) else 201, s.put(name, properties, **more)


def _act(s: StandIn, name: str, call: Call) -> tuple[int, Any]:
    if name.endswith("/startPendingUpload"):
        container = s.make_container(f"upload-{uuid.uuid4()}")  # a place of its own for each upload
        return 200, {
            "blobReferenceForConsumption": {
                "blobUri": f"{s.blobs}/{container}",
                "storageAccountArmId": "",
                "credential": {"credentialType": "SAS", "sasUri": s.container_sas(container)},
            },
            "pendingUploadType": "TemporaryBlobReference",
        }
    if name.endswith("/listSecrets"):
        return 200, {"secretsType": "Sas", "sasToken": s.container_sas().split("?", 1)[1]}
    if name.endswith("/listKeys"):
        endpoint = name.split("/")[1]
        return 200, {"primaryKey": f"key-of-{endpoint}", "secondaryKey": f"other-key-of-{endpoint}"}
    if name.endswith("/cancel"):
        job = s.get(name.removesuffix("/cancel"))
        if job is None:
            return _missing(name)
        job["properties"]["status"] = "Canceled"
        s.job_states[job["name"]] = ["Canceled"]
        return 200, None
    return 404, ("UserError", f"no action {name}")


def _secret(s: StandIn, name: str) -> tuple[int, Any]:
    if name not in s.secrets:
        return 404, ("SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")
    return 200, {"value": s.secrets[name], "id": f"{s.url}/secrets/{name}/1", "attributes": {"enabled": True}}


def _run(child: dict[str, Any]) -> dict[str, Any]:
    return {"runId": child["name"], "displayName": child["name"], "status": child["status"], "properties": {}}


def metadata(s: StandIn) -> dict[str, Any]:
    return {
        "name": "StandIn",
        "portal": "https://portal.azure.com",
        "resourceManager": s.url,
        "authentication": {
            "loginEndpoint": s.url,
            "audiences": [s.url, "https://management.core.windows.net/"],
            "tenant": "common",
        },
        "suffixes": {"storage": s.blobs.split("blob.", 1)[-1].split("/")[0]},
    }


def workspace(s: StandIn) -> dict[str, Any]:
    return {
        "id": W,
        "name": WORKSPACE,
        "type": "Microsoft.MachineLearningServices/workspaces",
        "location": "westeurope",
        "identity": {"type": "SystemAssigned", "principalId": "p", "tenantId": TENANT},
        "properties": {
            "workspaceId": "12345678-aaaa-bbbb-cccc-1234567890ab",
            "friendlyName": WORKSPACE,
            "discoveryUrl": f"{s.url}/discovery",
            "mlFlowTrackingUri": f"azureml://{s.url.removeprefix('https://')}/mlflow/v1.0{W}",
            "provisioningState": "Succeeded",
            "storageAccount": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage"
            f"/storageAccounts/{ACCOUNT}",
        },
    }


def datastore(s: StandIn, name: str) -> dict[str, Any]:
    return {
        "id": f"{W}/datastores/{name}",
        "name": name,
        "type": "Microsoft.MachineLearningServices/workspaces/datastores",
        "properties": {
            "datastoreType": "AzureBlob",
            "accountName": ACCOUNT,
            "containerName": CONTAINER,
            "endpoint": s.blobs.split("blob.", 1)[-1].split("/")[0],
            "protocol": "https",
            "isDefault": True,
            "credentials": {"credentialsType": "Sas"},
        },
    }


def token_for(resource: str) -> dict[str, Any]:
    """Return a well-formed, unsigned token: the SDK reads tenant, audience and expiry from it."""
    now = int(time.time())
    claims = {
        "aud": resource,
        "iss": f"https://sts.windows.net/{TENANT}/",
        "tid": TENANT,
        "oid": "o",
        "exp": now + 3600,
    }

    def part(data: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    token = f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(claims)}.{'A' * 342}"
    return {"access_token": token, "expires_on": str(now + 3600), "resource": resource, "token_type": "Bearer"}


def _serve(stand_in: StandIn, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"stand_in": stand_in}))
    server.daemon_threads = True
    return server


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1 and ``*.blob.localhost``, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    certificate_file, key_file = folder / "loopback.pem", folder / "loopback.key"
    if certificate_file.exists():
        return certificate_file, key_file
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("localhost"),
        x509.DNSName("*.blob.localhost"),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return certificate_file, key_file


@contextlib.contextmanager
def azurite(program: Path, folder: Path) -> Iterator[str]:
    """Run the Blob emulator with TLS on a free port; yields the account's address."""
    certificate, key = make_certificate(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "azurite.log").open("wb")
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    command += ["--cert", str(certificate), "--key", str(key), "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"azurite did not start: {(folder / 'azurite.log').read_text()[-500:]}")
            time.sleep(0.05)
        yield f"https://{ACCOUNT}.blob.localhost:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)
        log.close()
