# One image for every service: `docker build --target live -t itb .`; the command picks the service
# (`docker run itb collector`). Targets: live (no trainer's stack), trainer, bus (the server).
# BASE is any image with Python >= 3.11 as `python3` and its venv module.
ARG BASE=python:3.11-slim-bookworm

# --- what all targets have in common -------------------------------------------------------------
FROM ${BASE} AS base
ENV PATH=/opt/itb/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/kernels \
    NUMBA_CPU_NAME=generic \
    HOME=/tmp

# --- installing: never part of an image that runs ------------------------------------------------
FROM base AS installer
RUN apt-get update -q && apt-get install -q -y --no-install-recommends g++ libc6-dev binutils \
    && if ! python3 -c "import pathlib, sysconfig; \
            pathlib.Path(sysconfig.get_paths()['include'], 'Python.h').stat()" 2>/dev/null; then \
        apt-get install -q -y --no-install-recommends python3-dev; \
    fi
COPY requirements-live.lock /build/
RUN python3 -m venv /opt/itb \
    && /opt/itb/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --no-compile --require-hashes --no-deps -r /build/requirements-live.lock
COPY deploy/slim.py /build/

# --- our own code, as every target has it --------------------------------------------------------
FROM installer AS code
COPY . /app
# Versions by importlib.metadata. The feature kernels become an extension module, so that a live
# service needs no Numba. One time for all files: Numba's cache names it.
RUN cd /app && /opt/itb/bin/python -c \
        "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')" \
    && /opt/itb/bin/python -m deploy.compiled shared/features \
    && strip --strip-unneeded shared/features/compiled.*.so \
    && rm -rf build *.egg-info requirements-*.lock \
    && mkdir bin \
    && printf '#!/opt/itb/bin/python\nimport sys\nfrom deploy.cli import main\nsys.exit(main())\n' \
        > bin/itb \
    && chmod 755 bin/itb \
    && find . -exec touch -d 2020-01-01T00:00:00Z {} +

FROM installer AS live-installer
RUN python3 /build/slim.py /opt/itb --live

# --- what all images are that run ----------------------------------------------------------------
FROM base AS running
# Data of a volume that is new belongs to whom the folder below it belongs to.
RUN echo "itb:x:10001:10001:itb:/tmp:/usr/sbin/nologin" >> /etc/passwd \
    && echo "itb:x:10001:" >> /etc/group \
    && for name in data models bus journal token run/keys keys/redis keys/collector keys/featurizer \
            keys/predictor keys/notifier keys/trader keys/dashboard keys/auditor keys/itb; do \
        mkdir -p "/$name" && chown 10001:10001 "/$name"; done
ENV PYTHONPATH=/app \
    PATH=/app/bin:/opt/itb/bin:$PATH \
    ITB_DATA_FOLDER=/data \
    ITB_MODEL_FOLDER=/models
WORKDIR /tmp
ENTRYPOINT ["/opt/itb/bin/python", "-m", "deploy.container"]
# Asks whatever runs here whether it is ready: each service by its own readiness.
HEALTHCHECK --interval=3s --timeout=6s --start-period=90s --retries=3 \
    CMD ["/opt/itb/bin/python", "-m", "deploy.container", "ready"]

FROM running AS live
COPY --from=live-installer /opt/itb /opt/itb
COPY --from=code /app /app
# Byte code of what services import: a start compiles nothing.
RUN env -u PYTHONDONTWRITEBYTECODE python -m deploy.container prepare-image
USER 10001:10001

# The server: its binary is part of the same environment. redis-cli is for people.
FROM live AS bus
USER 0
RUN apt-get update -q && apt-get install -q -y --no-install-recommends redis-tools \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY deploy/redis-cli.sh /usr/local/bin/redis-cli
USER 10001:10001

FROM installer AS trainer-installer
COPY requirements-demo.lock /build/
RUN /opt/itb/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --no-compile --require-hashes --no-deps -r /build/requirements-demo.lock \
    && python3 /build/slim.py /opt/itb

FROM running AS trainer
ENV LD_LIBRARY_PATH=/opt/itb/lib/openmp
COPY --from=trainer-installer /opt/itb /opt/itb
COPY --from=code /app /app
RUN python -m deploy.openmp /opt/itb/lib/openmp
# Byte code, and Numba's own compiled kernels.
RUN env -u PYTHONDONTWRITEBYTECODE NUMBA_CACHE_DIR=/app/kernels \
    python -m deploy.container prepare-image
USER 10001:10001
