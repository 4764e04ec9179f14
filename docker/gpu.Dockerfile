# All of the package on an NVIDIA GPU: docker build -f docker/gpu.Dockerfile -t naflex .
#   mkdir -p artifacts
#   docker run --gpus all --user "$(id -u):$(id -g)" -v ./artifacts:/artifacts naflex export --target onnx --out /artifacts/siglip
# torch brings CUDA's libraries with it; g++ and Python's headers are what torch.compile and AOTInductor build with.
FROM ubuntu:24.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/naflex/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY naflex_export naflex_export
RUN python3 -m venv /opt/naflex \
    && pip install --no-cache-dir -c constraints.txt '.[hf,embed,serve]' \
    && useradd --create-home --uid 10001 naflex \
    && chmod 1777 /home/naflex

# The home is open to any user, since only one whose folder is mounted can write there. torch's caches ask for a name.
ENV HOME=/home/naflex USER=naflex
USER 10001
WORKDIR /home/naflex
ENTRYPOINT ["naflex"]
