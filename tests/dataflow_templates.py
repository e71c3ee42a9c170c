"""A runner that compiles what Dataflow would get, offline, and runs the pipeline in process.

Compiling stages everything a job needs and writes the job's description to a bucket instead of
sending it to the service.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.portability.common_urns import combine_components, composites
from apache_beam.runners.dataflow import DataflowRunner
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from semid_transforms import files


class CompilingDataflowRunner(PipelineRunner):
    """Runs in process, then compiles to `<temp_location>/templates/<job name>.json`."""

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        """Returns the result of the run."""
        result = FnApiRunner().run_pipeline(pipeline, options)
        compile_template(pipeline, options)
        return result


def compile_template(pipeline: beam.Pipeline, options: PipelineOptions) -> None:
    """Writes the template of a pipeline; Dataflow's runner changes the pipeline on the way."""
    own = copy.deepcopy(options)
    cloud = own.view_as(GoogleCloudOptions)
    cloud.template_location = f"{cloud.temp_location}/templates/{cloud.job_name}.json"
    # Otherwise it runs `pip freeze` for a log line, which takes seconds.
    own.view_as(DebugOptions).add_experiment("disable_logging_submission_environment")
    DataflowRunner().run_pipeline(pipeline, own)


@dataclasses.dataclass(frozen=True)
class Template:
    """A pipeline as Dataflow gets it.

    Attributes:
      job: the description of the job.
      pipeline: what `pipeline.pb` holds.
    """

    job: dict[str, Any]
    pipeline: beam_runner_api_pb2.Pipeline

    @functools.cached_property
    def stages(self) -> dict[str, beam_runner_api_pb2.PTransform]:
        """Transforms that a worker runs, by full name."""
        every = self.pipeline.components.transforms.values()
        return {stage.unique_name: stage for stage in every if stage.environment_id}

    def hints(self) -> dict[str, dict[str, str]]:
        """Returns the resource hints of every transform that a worker runs."""
        environments = self.pipeline.components.environments
        return {
            name: {
                urn.split(":")[2]: value.decode()
                for urn, value in environments[stage.environment_id].resource_hints.items()
            }
            for name, stage in self.stages.items()
        }

    def coders(self) -> dict[str, Coder]:
        """Returns the coder of every edge, by the name of the transform that it comes from."""
        components = self.pipeline.components
        context = PipelineContext(components)
        found = {}
        for stage in components.transforms.values():
            if not stage.subtransforms and stage.inputs:
                for tag, edge in stage.outputs.items():
                    name = stage.unique_name + ("" if tag == "None" else f".{tag}")
                    found[name] = context.coders.get_by_id(components.pcollections[edge].coder_id)
        return found

    def accumulator_coders(self) -> dict[str, Coder]:
        """Returns the coder of what combiners send through a shuffle."""
        context = PipelineContext(self.pipeline.components)
        urns = (composites.COMBINE_PER_KEY.urn, combine_components.COMBINE_GROUPED_VALUES.urn)
        payloads = {
            stage.unique_name: beam_runner_api_pb2.CombinePayload.FromString(stage.spec.payload)
            for stage in self.pipeline.components.transforms.values()
            if stage.spec.urn in urns
        }
        return {
            name: context.coders.get_by_id(payload.accumulator_coder_id)
            for name, payload in payloads.items()
        }


def read_template(path: str) -> Template:
    """Reads a template and the pipeline that was staged with it."""
    job = json.loads(files.read_bytes(path))
    url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    pipeline = beam_runner_api_pb2.Pipeline.FromString(files.read_bytes(url))
    return Template(job, pipeline)
