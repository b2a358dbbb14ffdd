# The engine with its runtime and nothing else: no TensorFlow, no compiler, no package installer.
#
#   docker build --target cpu -t cervix:cpu .
#   docker build --target gpu -t cervix:gpu .
#   docker run --rm -v "$PWD/models/cervix:/model:ro" -v "$PWD/tiles:/tiles:ro" -v "$PWD/out:/out" \
#     --user "$(id -u)" cervix:cpu /tiles --out /out/preds.csv
#
# Behind a proxy or with a package index of your own, hand in pip's configuration and CA certificates as the
# secrets `pip_conf` and `ca`: they are seen while packages are installed and are in no layer of the image.

# Any Debian-based image; its python3 is used, or Debian's is installed.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS python
# No versions: Debian keeps only the newest build of a package, so a pinned one soon cannot be had.
# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip, venv' 2>/dev/null || { \
      apt-get update \
      && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
      && rm -rf /var/lib/apt/lists/*; }

FROM python AS wheel
WORKDIR /src
RUN python3 -m venv /opt/pip
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY edge edge
COPY export export
COPY train train
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/pip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
COPY constraints.txt ./

# The wheel is named by its path: by name alone, an index could answer with another `cervix`.
FROM wheel AS install-cpu
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv --without-pip /opt/cervix \
    && /opt/pip/bin/pip --python /opt/cervix/bin/python install --no-cache-dir -c constraints.txt \
         "$(echo /wheels/cervix-*.whl)[cpu]"

FROM wheel AS install-gpu
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv --without-pip /opt/cervix \
    && /opt/pip/bin/pip --python /opt/cervix/bin/python install --no-cache-dir -c constraints.txt \
         "$(echo /wheels/cervix-*.whl)[gpu]"

FROM python AS runtime
RUN useradd --system --uid 10001 --create-home cervix
ENV PATH=/opt/cervix/bin:$PATH \
    CERVIX_MODEL=/model
WORKDIR /home/cervix
USER 10001
ENTRYPOINT ["cervix-batch"]
CMD ["--help"]

FROM runtime AS cpu
COPY --from=install-cpu /opt/cervix /opt/cervix

FROM runtime AS gpu
COPY --from=install-gpu /opt/cervix /opt/cervix
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Without --target: cpu.
FROM cpu
