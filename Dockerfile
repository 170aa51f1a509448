# The CPU build:   docker build -t wsi .
# A CUDA build:    docker build --build-arg TORCH=cu130 -t wsi:cuda .
FROM python:3.11-slim-bookworm

# A folder of https://download.pytorch.org/whl that has the version of constraints.txt.
ARG TORCH=cpu

WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY docs docs
COPY tiling tiling
COPY wsi_pipeline wsi_pipeline
RUN python -m pip install --no-cache-dir -c constraints.txt \
        --extra-index-url "https://download.pytorch.org/whl/${TORCH}" ".[all]" \
    && rm -rf build ./*.egg-info

# Any user can run it, also one without a home folder (docker run --user).
ENV MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba
RUN useradd --create-home --uid 1000 wsi
USER wsi
WORKDIR /work
ENTRYPOINT ["wsi-pipeline"]
CMD ["--help"]
