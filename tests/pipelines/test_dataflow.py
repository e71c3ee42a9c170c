"""What Dataflow would get: every link of a run compiled to a template, without any account."""

from pathlib import Path

import pytest
from apache_beam.portability.common_urns import primitives

from pipelines.flex_template import main as launch_flex_template
from semid_transforms import files
from tests.dataflow_templates import read_template
from tests.pipelines import jobs

LINKS = ("read", "embed", "fit", "assign", "place", "index")
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"
RESOURCES = {
    "embed": {"accelerator": GPU, "min_ram": "16GB"},
    "fit": {"accelerator": GPU, "min_ram": "32GB"},
    "place": {"min_ram": "8GiB"},
}
# No RecordBatch and without a coder of its own: descriptions of work, and paths that side inputs of
# Dataflow pickle.
OBJECTS = {
    *(f"ReadCatalog/ListSplits/{step}" for step in ("Number", "Spread", "Release")),
    "IndexItems/NameRows/WriteNames",
    "IndexItems/NameRows/WriteNamed",
    "IndexItems/Index",
}
PICKLING = ("FastPrimitives", "Pickle", "Dill")
# Of Beam's own: the one key of a global combiner.
BEAMS_OWN = ("DeterministicFastPrimitivesCoderV2",)


def dataflow_options(bucket):
    return [
        "--project=my-project-1",
        "--region=us-central1",
        f"--temp_location={bucket}/tmp",
        f"--staging_location={bucket}/staging",
        "--sdk_container_image=example.com/semid:1",
    ]


@pytest.fixture(scope="module")
def bucket(gcs):
    return gcs.new_bucket()


@pytest.fixture(scope="module")
def templates(bucket, tmp_path_factory, text_config):
    """The templates of a first run, by link."""
    folder = tmp_path_factory.mktemp("dataflow")
    jobs.run(
        jobs.write_rows(folder / "catalog.jsonl", jobs.products(120)),
        folder / "root",
        {**text_config, "resources": RESOURCES},
        beam=[
            "--runner=tests.dataflow_templates.CompilingDataflowRunner",
            "--job_name=nightly",
            *dataflow_options(bucket),
        ],
    )
    jobs.assert_sound(folder / "root")
    found = files.list_files(f"{bucket}/tmp/templates", ".json")
    return {Path(path).stem.removeprefix("nightly-"): read_template(path) for path in found}


def test_every_link_is_a_job_that_is_called_after_it(templates):
    assert set(templates) == set(LINKS)
    for link, template in templates.items():
        assert template.job["name"] == f"nightly-{link}"
        assert template.job["type"] == "JOB_TYPE_BATCH"
        environment = template.job["environment"]
        assert "use_runner_v2" in environment["experiments"]
        images = environment["workerPools"][0]["sdkHarnessContainerImages"]
        assert {image["containerImage"] for image in images} == {"example.com/semid:1"}


def test_one_process_has_the_gpu_and_elsewhere_every_core_has_one(templates):
    for link, template in templates.items():
        experiments = template.job["environment"]["experiments"]
        alone = link in ("embed", "fit")
        assert ("no_use_multiple_sdk_containers" in experiments) == alone
        assert ("use_multiple_sdk_containers" in experiments) != alone


def test_shuffles_are_the_ones_that_the_design_knows(templates):
    shuffles = {
        link: sorted(
            stage.unique_name.replace("/GroupByKey", "")
            for stage in template.pipeline.components.transforms.values()
            if stage.spec.urn == primitives.GROUP_BY_KEY.urn
            and "/Spread" not in stage.unique_name  # of paths and task names
        )
        for link, template in templates.items()
    }
    assert shuffles == {
        "read": [
            "DiffItems/GroupByItemShard",
            "WriteCounts/Group",
            "WriteRejects/Group",
        ],
        "embed": ["EmbedTexts/GroupByContentShard"],
        "fit": [],
        "assign": ["Histogram/SumHistograms/CombinePerKey"],
        "place": [
            "PlaceItems/SettleRows/GroupByPart",
            "PlaceItems/SettleRows/GroupBySidShard",
            "PlaceItems/SettleRows/GroupLatents",
        ],
        "index": [
            "IndexItems/NameRows/GroupByItem",
            "IndexItems/NameRows/GroupByPart",
            "IndexItems/NameRows/GroupNames",
        ],
    }


def test_what_moves_many_rows_flattens_nothing(templates):
    """A runner on one machine would shuffle it once more."""
    flattened = {
        link: [
            transform.unique_name
            for transform in template.pipeline.components.transforms.values()
            if transform.spec.urn == primitives.FLATTEN.urn
        ]
        for link, template in templates.items()
    }
    assert not flattened["read"] + flattened["place"]


def test_no_batch_is_pickled_anywhere(templates):
    pickled, batches = set(), 0
    for template in templates.values():
        for name, coder in template.coders().items():
            text = str(coder)
            for own in BEAMS_OWN:
                text = text.replace(own, "")
            batches += "RecordBatchCoder" in text
            if any(word in text for word in PICKLING):
                pickled.add(name)
        for name, coder in template.accumulator_coders().items():
            assert str(coder) == "RecordBatchCoder", name
    assert pickled == OBJECTS
    assert batches > 30


def test_embeddings_stay_on_the_machine_that_made_them(templates):
    hints = templates["embed"].hints()
    asked = {"accelerator": GPU, "min_ram_bytes": "16000000000"}
    encoding = {name for name, wanted in hints.items() if wanted}
    assert all(hints[name] == asked for name in encoding)
    assert {"/".join(name.split("/")[:2]) for name in encoding} == {
        "EmbedTexts/PreparePart",
        "EmbedTexts/Encode",
        "EmbedTexts/WriteEmbeddings",
    }
    assert {name for name in hints if name.startswith("EmbedTexts/Route")}.isdisjoint(encoding)
    edges = {
        edge: name
        for name, stage in templates["embed"].stages.items()
        for edge in stage.outputs.values()
    }
    for name, stage in templates["embed"].stages.items():
        for edge in stage.inputs.values():
            if edges.get(edge, "").startswith("EmbedTexts/Encode"):
                assert name in encoding


def test_the_other_links_ask_with_one_voice(templates):
    asked = {
        "fit": {"accelerator": GPU, "min_ram_bytes": "32000000000"},
        "place": {"min_ram_bytes": str(8 << 30)},
    }
    for link in ("read", "fit", "assign", "place", "index"):
        found = templates[link].hints()
        assert found
        assert all(hints == asked.get(link, {}) for hints in found.values())


def test_the_flex_template_compiles(bucket, tmp_path):
    path = f"{bucket}/tmp/templates/flex.json"
    launch_flex_template(
        [
            "--catalog=gs://shop/catalog/*.parquet",
            "--root=gs://shop/ids",
            "--runner=DataflowRunner",
            f"--template_location={path}",
            *dataflow_options(bucket),
        ]
    )
    assert "RunChain" in read_template(path).stages
