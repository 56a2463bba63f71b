# Three stages, one for each place where a bundle is worked on:
#   docker build --target export -t metagen-deploy:export .    specs and ONNX files -> bundles; torch, no GPU needed
#   docker build --target engine -t metagen-deploy:engine .    bundles -> engines, on a server GPU; no torch
#   docker build --target edge   -t metagen-deploy:edge   .    runs and builds on a Jetson; numpy and TensorRT only
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The containers of platforms trt10.13 and jp62 in specs/targets/platforms.yaml; the other platforms there name theirs.
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:25.08-py3
ARG JETSON_BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0

FROM ${PYTHON_IMAGE} AS export
WORKDIR /opt/metagen-deploy
COPY pyproject.toml constraints.txt README.md ./
COPY metagen_deploy metagen_deploy
COPY exporters exporters
COPY engines engines
COPY specs specs
RUN pip install --no-cache-dir -c constraints.txt '.[export,rtx]' \
    && useradd --create-home --uid 10001 metagen
USER 10001
WORKDIR /work
ENTRYPOINT ["metagen-deploy"]

FROM ${TENSORRT_IMAGE} AS engine
WORKDIR /opt/metagen-deploy
COPY pyproject.toml README.md ./
COPY metagen_deploy metagen_deploy
COPY exporters exporters
COPY engines engines
COPY specs specs
# TensorRT comes with the image, and so do its own version constraints: no extra that installs another one, no pins of ours.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[onnxruntime]' \
    && useradd --create-home --uid 10001 metagen
USER 10001
WORKDIR /work
ENTRYPOINT ["metagen-deploy"]

FROM ${JETSON_BASE} AS edge
# What an app embeds: numpy and TensorRT come with JetPack; `from metagen_deploy import load` needs nothing else.
WORKDIR /opt/metagen-deploy
COPY metagen_deploy metagen_deploy
COPY engines engines
COPY specs specs
ENV PYTHONPATH=/opt/metagen-deploy
RUN useradd --create-home --uid 10001 metagen
USER 10001
WORKDIR /work
ENTRYPOINT ["python3"]
