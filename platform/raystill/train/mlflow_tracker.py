"""An MLflow run: a local file store, or whatever `experiment.set_tracking_uri` names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raystill.run.publish import write_json
from raystill.train.trackers import TrackedRun

# MLflow has put its file store into maintenance and asks for this before it opens one.
_ALLOW_FILES = "MLFLOW_ALLOW_FILE_STORE"
_FILE_SCHEME = "file:"


class MlflowTracker:
    """Keys of `experiment`: `name` and `run_name` name it; `path` is created for a file store; the data's
    description is an artifact at `dataset_artifact_path` and an input tagged `dataset_tags`; the trained
    model is copied to `model_artifact_path` and registered as `registered_model_name`."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""
        self._run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> None:
        """Continue the run that `record` notes; else open one with its parameters and its data."""
        from mlflow import MlflowClient, set_tracking_uri

        uri = run.experiment.set_tracking_uri
        if uri.startswith(_FILE_SCHEME):
            os.environ.setdefault(_ALLOW_FILES, "true")
            Path(run.experiment.path).expanduser().mkdir(parents=True, exist_ok=True)
            uri = Path(uri.removeprefix(_FILE_SCHEME).replace("//", "/")).expanduser().absolute().as_uri()
        # Registering asks the process's own store, too, which would else be a new mlflow.db where it runs.
        set_tracking_uri(uri)
        self._client, self._run = MlflowClient(tracking_uri=uri, registry_uri=uri), run
        earlier = _read_record(run.record, uri) if run.first_step > 0 else None
        if earlier is not None:
            self._run_id = earlier
            self._client.update_run(earlier, status="RUNNING")
            return
        self._run_id = self._open(run)
        write_json(run.record, {"tracking_uri": uri, "run_id": self._run_id})
        self._describe(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One batch of metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, model: Path | None) -> None:
        """Upload and register the model, and end the run."""
        assert self._run is not None, "a tracker is started first"
        experiment = self._run.experiment
        if model is not None:
            self._client.log_artifacts(self._run_id, str(model), experiment.model_artifact_path)
            if experiment.registered_model_name is not None:
                self._register(experiment.registered_model_name, experiment.model_artifact_path)
        self._client.set_terminated(self._run_id, "FINISHED" if model is not None else "KILLED")

    def _open(self, run: TrackedRun) -> str:
        name = run.experiment.name
        found = self._client.get_experiment_by_name(name)
        experiment_id = found.experiment_id if found is not None else self._client.create_experiment(name)
        opened = self._client.create_run(experiment_id, run_name=run.experiment.run_name)
        return str(opened.info.run_id)

    def _describe(self, run: TrackedRun) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        parameters = [Param(name, str(value)) for name, value in run.parameters.items()]
        self._client.log_batch(self._run_id, params=parameters)
        text = json.dumps(run.data, indent=2, sort_keys=True, default=str)
        self._client.log_text(self._run_id, text, f"{run.experiment.dataset_artifact_path}/dataset.json")
        tags = [InputTag(key, value) for key, value in run.experiment.dataset_tags.items()]
        dataset = Dataset(
            name="teacher_store",
            digest=str(run.data["fingerprint"])[:32],
            source_type="local",
            source=str(run.data["store"]),
        )
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, tags)])

    def _register(self, name: str, artifact_path: str) -> None:
        known = {model.name for model in self._client.search_registered_models(f"name = '{name}'")}
        if name not in known:
            self._client.create_registered_model(name)
        source = f"{self._client.get_run(self._run_id).info.artifact_uri}/{artifact_path}"
        self._client.create_model_version(name, source=source, run_id=self._run_id)


def _read_record(record: Path, uri: str) -> str | None:
    """The id of the run that an interrupted training opened in the same place."""
    if not record.exists():
        return None
    noted = json.loads(record.read_text(encoding="utf-8"))
    return str(noted["run_id"]) if noted["tracking_uri"] == uri else None
