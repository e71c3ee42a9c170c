"""A pool of workers that are what SDK containers are: they install what a job staged, and run it.

Beam's own pool starts a program for every worker. This one forks it from a process that has
imported Beam and torch, so that a worker starts in a moment, but nothing of this project. What
Beam's boot program does in an image happens in a folder of its own: artifacts are fetched from the
job service, `workflow.tar.gz` is installed with pip, and the SDK harness starts where only that
folder and the environment's packages can be imported. Before it ends, a worker writes which files
it imported the project's modules from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PACKAGES = ("pipelines", "semid_transforms", "models", "schemas", "tests")

_FORKS = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "apache_beam.runners.worker.sdk_worker_main",
    "apache_beam.ml.inference.base",
    "sentence_transformers",
    "faiss",
]
_STOP_SECONDS = 10


def main() -> None:
    """Serves a pool until it is killed; `--address_file` gets the address when it listens."""
    from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

    parser = argparse.ArgumentParser()
    parser.add_argument("--address_file", required=True)
    address_file = Path(parser.parse_args().address_file)
    workers: dict[str, Any] = {}

    class Pool(BeamFnExternalWorkerPoolServicer):
        """Starts and stops workers at the job service's request."""

        def StartWorker(self, start_worker_request: Any, unused_context: Any) -> Any:  # noqa: N802
            from apache_beam.portability.api import beam_fn_api_pb2

            request = start_worker_request
            endpoints = {
                "logging": request.logging_endpoint.url,
                "artifact": request.artifact_endpoint.url,
                "provision": request.provision_endpoint.url,
                "control": request.control_endpoint.url,
            }
            worker = _FORKS.Process(target=run_worker, args=(request.worker_id, endpoints))
            worker.start()
            workers[request.worker_id] = worker
            return beam_fn_api_pb2.StartWorkerResponse()

        def StopWorker(self, stop_worker_request: Any, unused_context: Any) -> Any:  # noqa: N802
            from apache_beam.portability.api import beam_fn_api_pb2

            worker = workers.pop(stop_worker_request.worker_id, None)
            if worker is not None:
                worker.terminate()
                worker.join(_STOP_SECONDS)
                worker.kill()
            return beam_fn_api_pb2.StopWorkerResponse()

    _FORKS.set_forkserver_preload(_PRELOADED)
    address, _ = Pool.start(use_process=True)
    partial = address_file.with_suffix(".part")
    partial.write_text(address, "utf-8")
    partial.rename(address_file)
    while True:
        time.sleep(3600)


def run_worker(worker_id: str, endpoints: dict[str, str]) -> None:
    """Boots a worker in a new folder, and is it until the job service lets it go."""
    folder = Path(tempfile.mkdtemp(prefix="worker-", dir=os.getcwd()))
    with open(folder / "log", "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    site = _boot(worker_id, endpoints, folder)
    os.chdir(folder)
    ours = str(Path(__file__).parent)
    sys.path[:] = [str(site), *(entry for entry in sys.path if entry != ours)]

    from apache_beam.runners.worker import sdk_worker_main

    def stop(_: int, __: FrameType | None) -> NoReturn:
        _report(folder)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)  # the pool may end a worker that is about to end
    sdk_worker_main.main([])
    _report(folder)


def _boot(worker_id: str, endpoints: dict[str, str], folder: Path) -> Path:
    """Fetches and installs what was staged and sets the harness's environment.

    Returns:
      The folder that was installed into.
    """
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2 as provision
    from apache_beam.portability.api import beam_provision_api_pb2_grpc as provision_grpc
    from google.protobuf import json_format, text_format

    metadata = [("worker_id", worker_id)]
    channel = grpc.insecure_channel(endpoints["provision"])
    info = (
        provision_grpc.ProvisionServiceStub(channel)
        .GetProvisionInfo(provision.GetProvisionInfoRequest(), metadata=metadata)
        .info
    )
    (folder / "staged").mkdir()
    staged = list(_fetch(info.dependencies, endpoints["artifact"], metadata, folder))
    archives = [path for path in staged if path.name.endswith(".tar.gz")]
    assert archives, f"no package was staged, only {[path.name for path in staged]}"
    os.environ |= {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "SEMI_PERSISTENT_DIRECTORY": str(folder),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
    }
    return _install(archives[0], folder.parent)


def _fetch(
    dependencies: Iterable[Any], endpoint: str, metadata: list[tuple[str, str]], folder: Path
) -> Iterator[Path]:
    """Copies staged artifacts here; yields their paths."""
    import grpc
    from apache_beam.portability.api import beam_artifact_api_pb2 as artifacts
    from apache_beam.portability.api import beam_artifact_api_pb2_grpc as artifacts_grpc
    from apache_beam.portability.api import beam_runner_api_pb2 as runner_api

    stub = artifacts_grpc.ArtifactRetrievalServiceStub(grpc.insecure_channel(endpoint))
    request = artifacts.ResolveArtifactsRequest(artifacts=dependencies)
    for artifact in stub.ResolveArtifacts(request, metadata=metadata).replacements:
        role = runner_api.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
        path = folder / "staged" / role.staged_name
        with open(path, "wb") as file:
            wanted = artifacts.GetArtifactRequest(artifact=artifact)
            for chunk in stub.GetArtifact(wanted, metadata=metadata):
                file.write(chunk.data)
        yield path


def _install(archive: Path, folder: Path) -> Path:
    """Installs a source distribution, once for all workers that get the same files."""
    digest = hashlib.sha256()
    with tarfile.open(archive) as members:  # the archive itself also holds the time of packing
        for member in sorted(members.getmembers(), key=lambda member: member.name):
            if (file := members.extractfile(member)) is not None:
                digest.update(f"{member.name}\0{member.size}\0".encode() + file.read())
    site = folder / f"site-{digest.hexdigest()[:16]}"
    if not site.exists():
        command = "install --no-deps --no-build-isolation --no-index --no-compile --target"
        packed = site.with_suffix(".part")
        subprocess.run(
            [sys.executable, "-m", "pip", *command.split(), str(packed), str(archive)],
            check=True,
        )
        packed.rename(site)
    return site


def _report(folder: Path) -> None:
    """Writes the file of every imported module that could be the project's."""
    found = {
        name: getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in PACKAGES
    }
    (folder / "modules.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
