# One image for every command: `docker run frontrow worker`, `docker run frontrow migrate` and so on.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/frontrow
# The dependencies first: they change less often than the code, and their layer is kept.
COPY requirements/base.txt requirements/build.txt requirements/
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
 && /opt/frontrow/bin/pip install --require-hashes --only-binary :all: -r requirements/base.txt
COPY pyproject.toml LICENSE ./
COPY domain domain
COPY infra infra
COPY resolvers resolvers
COPY schema schema
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /opt/frontrow/bin/pip install --no-deps --no-index /wheel/*.whl

FROM python:3.11-slim
RUN groupadd --gid 10001 frontrow \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/frontrow --shell /usr/sbin/nologin frontrow \
 && install --directory --owner=frontrow --group=frontrow /var/lib/frontrow
COPY --from=build /opt/frontrow /opt/frontrow
ENV PATH=/opt/frontrow/bin:$PATH PYTHONUNBUFFERED=1
# The embedded default keeps its SQLite file in the working directory.
WORKDIR /var/lib/frontrow
VOLUME /var/lib/frontrow
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8000
# For `serve`; run the other commands with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["frontrow"]
CMD ["serve", "--host", "0.0.0.0"]
