# SPDX-License-Identifier: Apache-2.0
# monai-attn with all bundles, and the weights that come with some; docs/install.md has the commands to build and run it.
# For a GPU: --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH_INDEX=https://pypi.org/simple
ARG BASE=python:3.12-slim

# hadolint ignore=DL3006
FROM ${BASE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# NVIDIA's images come without Python; constraints.txt says which versions of the packages are installed
# hadolint ignore=DL3008
RUN if ! command -v python3; then \
        apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi

FROM base AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/monai_attn \
    && /opt/monai_attn/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt .

FROM base
COPY --from=build /opt/monai_attn /opt/monai_attn
# any user will do: nothing is written but to the mounted folder and /tmp
ENV PATH="/opt/monai_attn/bin:${PATH}" HOME=/tmp USER=monai_attn
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["monai-attn"]
CMD ["list"]
