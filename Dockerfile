# kdaudit with its GPU extra on the CUDA 13 runtime. Build: docker build -t kdaudit .
# Run: docker run --rm --gpus all --network none -v "$PWD:/work" -w /work kdaudit scan model.onnx data/
# Not built in CI (no engine there) and never run on a GPU; `kdaudit doctor` inside says what works.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 auditor

COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY kdaudit /src/kdaudit
COPY kernels /src/kernels
RUN python3.12 -m venv /opt/kdaudit \
    && /opt/kdaudit/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[gpu]' \
    && rm -rf /src

# The audited model is somebody else's: nothing here runs as root.
USER auditor
ENTRYPOINT ["/opt/kdaudit/bin/kdaudit"]
