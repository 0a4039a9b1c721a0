# modelhost in a container with little memory, in two variants:
#
#   docker build -t modelhost .                                    bundled: models/ inside, prepared
#   docker build -t modelhost --build-arg MODELS=my-models .       the same with your own (a folder of the context)
#   docker build -t modelhost:runtime --target runtime .           no models: they come as a volume at /models
#
#   docker run --memory 256m --memory-swap 256m -p 127.0.0.1:8080:8080 -e MODELHOST_SECURITY_INSECURE=true modelhost
#
# Without the last setting it wants API keys: -e MODELHOST_SECURITY_KEYS_FILE=/run/secrets/keys, and the file mounted.
# Settings: -e MODELHOST_SECTION_KEY=value, or a modelhost.toml mounted at /app/modelhost.toml. docs/deploying.md has
# the rest: volumes, what happens on another CPU, Kubernetes. `podman build` and `buildah bud` want
# `--format docker`, since OCI images know no health check.
#
# Bundled is what a build without a target makes: it serves at once, and a volume at /models takes the models' place.

# --- what is installed: a virtual environment, without what serving does not import ------------------
FROM python:3.11-slim-bookworm AS build
# Only for `strip`; it stays in this stage.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils >/dev/null
WORKDIR /build
# Without a pip of its own: nothing in the image installs anything.
RUN python -m venv --without-pip /opt/modelhost
# The lock by itself first, so that an edit of the source leaves this layer, the large one, as it is.
COPY lock/serve.txt lock/serve.txt
RUN python -m pip --python /opt/modelhost/bin/python install --no-cache-dir --no-compile --require-hashes -r lock/serve.txt
# What is left out, with its size; `modelhost serve` and `prepare` import none of it, which a test holds them to:
#   34 MB  libonnxruntime.so, for programs in C: the Python module has ONNX Runtime in itself
#    4 MB  onnxruntime's tools that convert and quantize models
#   12 MB  numpy's tests, headers, Fortran interface and stubs
#    2 MB  protobuf and flatbuffers, which only those tools of onnxruntime import
#    8 MB  sources beside compiled modules
#   20 MB  debugging symbols; of the modules that have many, and no others: stripping is no gain elsewhere, and the
#          libraries of numpy do not survive it
RUN cd /opt/modelhost/lib/python3.11/site-packages \
 && rm -rf onnxruntime/capi/libonnxruntime.so.* \
      onnxruntime/transformers onnxruntime/quantization onnxruntime/tools onnxruntime/datasets onnxruntime/backend \
      google flatbuffers numpy/f2py numpy/distutils numpy/_core/include numpy/_core/lib numpy/random/lib \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.cpp' \) -delete \
 && strip --strip-unneeded uvloop/*.so httptools/parser/*.so csimdjson*.so
COPY pyproject.toml README.md LICENSE ./
COPY modelhost modelhost
# --no-deps and --no-build-isolation: everything, the build tools too, has come from the lock. The
# build tools have done their work then.
RUN python -m pip --python /opt/modelhost/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation . \
 && python -m pip --python /opt/modelhost/bin/python uninstall --yes --quiet \
      hatchling editables pathspec pluggy tomlkit trove-classifiers \
 && rm -rf /opt/modelhost/include /opt/modelhost/bin/[Aa]ctivate*
# Bytecode for a fast start. Unchecked: the files never change, so no start need compare times.
RUN /opt/modelhost/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/modelhost/lib

# --- the root: the base image without what installs, documents and tests -----------------------------
FROM python:3.11-slim-bookworm AS root
RUN python -m pip uninstall --yes --quiet --root-user-action ignore setuptools wheel pip \
 && cd /usr/local/lib/python3.11 \
 && rm -rf distutils ensurepip idlelib lib2to3 pydoc_data tkinter turtledemo turtle.py config-* lib-dynload/*test* \
      /usr/local/include /usr/local/share /usr/local/bin/idle* /usr/local/bin/2to3* /usr/local/bin/pydoc* \
 && find /usr/local -type d \( -name __pycache__ -o -name test -o -name tests \) -prune -exec rm -rf {} + \
 && printf 'modelhost:x:10001:\n' >> /etc/group \
 && printf 'modelhost:x:10001:10001::/nonexistent:/usr/sbin/nologin\n' >> /etc/passwd \
 && mkdir -p /models /app
# Debian's installers, Perl, what sets up users, disks and terminals, and the libraries that only those need. By dpkg, so
# that its list stays true for scanners, and without the packages' scripts, which want each other; it goes last itself.
RUN rm /var/lib/dpkg/info/*.prerm /var/lib/dpkg/info/*.postrm \
 && dpkg --purge --force-depends --force-remove-essential --force-remove-protected \
      $(dpkg-query -W -f '${Package}\n' adduser apt bsdutils debconf debian-archive-keyring e2fsprogs gpgv \
        libapt-pkg6.0 libaudit-common libaudit1 libblkid1 libcap-ng0 libext2fs2 libgcrypt20 libgnutls30 libgpg-error0 \
        libhogweed6 libidn2-0 libmount1 libnettle8 libp11-kit0 libpam-modules libpam-modules-bin libpam-runtime libpam0g \
        libsemanage-common libsemanage2 libsepol2 libsmartcols1 libss2 libtasn1-6 libunistring2 libxxhash0 login logsave \
        mount ncurses-bin openssl passwd perl-base sysvinit-utils util-linux util-linux-extra 2>/dev/null) >/dev/null 2>&1 \
 && cd / && find usr/share/doc -type f ! -name copyright -delete \
 && rm -rf usr/share/man usr/share/info usr/share/locale usr/share/perl* usr/share/dpkg usr/lib/dpkg usr/bin/dpkg* \
      usr/lib/*/gconv var/lib/apt var/lib/dpkg/info var/lib/dpkg/*-old var/cache/* var/log/*

# --- the standard library's bytecode -----------------------------------------------------------------
# The official image ships without any, and the user below could not write it: importing once, here, compiles what a
# start imports (some 300 ms of each start) and no more.
FROM python:3.11-slim-bookworm AS bytecode
RUN find /usr/local/lib -name __pycache__ -type d -prune -exec rm -rf {} +
COPY --from=build /opt/modelhost /opt/modelhost
RUN /opt/modelhost/bin/python -c "import modelhost.cli.serve, modelhost.api.app, modelhost.runtime.ort, \
uvicorn.lifespan.on, uvicorn.loops.uvloop, uvicorn.protocols.http.httptools_impl" \
 && cd /usr/local && mkdir /bytecode && find lib -name '*.pyc' | tar -cf - -T - | tar -xf - -C /bytecode

# --- runtime: the image without models ---------------------------------------------------------------
# Copied and not built upon: what was removed above is then not in a layer below. Three layers, of which an edit of
# the source changes the last, and an update of the base image the first.
FROM scratch AS runtime
COPY --from=root / /
COPY --from=bytecode /bytecode /usr/local
COPY --from=build /opt/modelhost /opt/modelhost
# 0.0.0.0, because the container's own network is what the host is reachable from. So it starts only with
# API keys, or where MODELHOST_SECURITY_INSECURE says that none are needed: see docs/security.md.
ENV PATH=/opt/modelhost/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MODELHOST_SERVER_HOST=0.0.0.0 \
    MODELHOST_SERVER_PORT=8080 \
    MODELHOST_MODELS_DIRECTORY=/models \
    MODELHOST_PREPARE_CACHE=/var/cache/modelhost
# The cache for what the host prepares by itself: mount a volume here to keep it. Its group is root's, for platforms
# that give containers a user of their own choice.
RUN mkdir -p /var/cache/modelhost && chown 10001:0 /var/cache/modelhost && chmod 775 /var/cache/modelhost \
 && python -c "import bz2, ctypes, lzma, sqlite3, ssl, uuid, zlib, modelhost.api.app, modelhost.runtime.ort"
WORKDIR /app
# By number, so that Kubernetes can see that it is not root (runAsNonRoot). It owns nothing but the cache.
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
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="modelhost" \
      org.opencontainers.image.description="Serves many ONNX models from little memory" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"

# --- bundled: with models, prepared here -------------------------------------------------------------
FROM runtime AS prepared
USER 0:0
ARG MODELS=models
COPY ${MODELS} /models
# Whole seconds, which layers keep: what is prepared belongs to a file of that size and time.
# Artifacts are for this ONNX Runtime and this machine's kind of CPU; another one prepares again, or serves from the heap.
RUN find /models -type f -exec touch -d "$(date +%Y-%m-%dT%H:%M:%S)" {} + \
 && modelhost prepare --cache /models/.modelhost && chmod -R go+rX /models

FROM runtime AS bundled
COPY --from=prepared /models /models
