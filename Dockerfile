# modelhost with the models of models/, for a container with little memory:
#
#   docker build -t modelhost .
#   docker run --memory 256m --memory-swap 256m -p 127.0.0.1:8080:8080 -e MODELHOST_SECURITY_INSECURE=true modelhost
#
# Without the last setting it wants API keys: -e MODELHOST_SECURITY_KEYS_FILE=/run/secrets/keys, and the file mounted.
# Your own models: -v /path/to/repository:/models:ro. Settings: -e MODELHOST_SECTION_KEY=value, or a
# modelhost.toml mounted at /app/modelhost.toml.

# --- what is installed, and how: none of it reaches the image but the virtual environment ----------
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
# Without a pip of its own: nothing in the image installs anything.
RUN python -m venv --without-pip /opt/modelhost
# The lock by itself first, so that an edit of the source leaves this layer, the large one, as it is.
COPY lock/serve.txt lock/serve.txt
RUN python -m pip --python /opt/modelhost/bin/python install --no-cache-dir --no-compile --require-hashes -r lock/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY modelhost modelhost
# --no-deps and --no-build-isolation: everything, the build tools too, has come from the lock. The
# build tools have done their work then.
RUN python -m pip --python /opt/modelhost/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation . \
 && python -m pip --python /opt/modelhost/bin/python uninstall --yes hatchling editables pathspec pluggy trove-classifiers
# Bytecode for a fast start. Unchecked: the files never change, so no start need compare times.
RUN /opt/modelhost/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/modelhost/lib

# --- the image -------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm
# The base image's own installers: nothing here installs anything any more.
RUN python -m pip uninstall --yes --quiet --root-user-action ignore setuptools wheel pip
COPY --from=build /opt/modelhost /opt/modelhost
ENV PATH=/opt/modelhost/bin:$PATH
WORKDIR /app
# The official image ships its standard library without bytecode, and the user below could not write
# any: importing once, here, compiles what a start imports (some 300 ms of each start) and no more.
RUN python -c "import modelhost.cli.serve, modelhost.api.app, modelhost.runtime.ort, \
uvicorn.lifespan.on, uvicorn.loops.uvloop, uvicorn.protocols.http.httptools_impl"
COPY models /models
# 0.0.0.0, because the container's own network is what the host is reachable from. So it starts only with
# API keys, or where MODELHOST_SECURITY_INSECURE says that none are needed: see docs/security.md.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MODELHOST_SERVER_HOST=0.0.0.0 \
    MODELHOST_SERVER_PORT=8080 \
    MODELHOST_MODELS_DIRECTORY=/models
# By number, so that Kubernetes can see that it is not root (runAsNonRoot). It owns nothing: the host
# writes no file.
USER 10001:10001
EXPOSE 8080
# A bare socket, since this runs inside the memory limit: 5 MB instead of the 20 of urllib with TLS.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python", "-ISc", "import os, socket\n\
s = socket.create_connection(('127.0.0.1', int(os.environ['MODELHOST_SERVER_PORT'])), 4)\n\
if os.environ.get('MODELHOST_SERVER_TLS_CERTIFICATE'):\n import ssl; s = ssl._create_unverified_context().wrap_socket(s)\n\
s.sendall(b'GET /v2/health/ready HTTP/1.0\\r\\n\\r\\n')\n\
raise SystemExit(b' 200 ' not in s.recv(64))"]
# SIGTERM, the default, ends the host: requests in flight get server.drain_timeout to finish.
CMD ["modelhost", "serve"]
