# clarad in a container: docker build -t clarad . (compose.yaml runs it, with PostgreSQL).
#
# The base needs Debian's useradd, Python 3.11 or newer, and pip. To build without a registry and
# without an index, name a base that is there, and put the wheels into wheelhouse/ beside this file:
#     docker build -t clarad --build-arg BASE=clarad-sandbox --network none \
#         --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/source/wheelhouse .
# The context has no git repository, so CLARAD_VERSION says which version it is (`make image`).
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG CLARAD_VERSION
COPY . /source
RUN if [ -n "$CLARAD_VERSION" ]; then echo "$CLARAD_VERSION" >/source/clarad/VERSION; fi \
    && python3 -m venv --without-pip /opt/clarad \
    && pip="python3 -m pip --python /opt/clarad/bin/python --disable-pip-version-check" \
    && $pip install --no-cache-dir --require-hashes --requirement /source/packaging/requirements.lock \
    && $pip install --no-cache-dir --no-deps /source

FROM ${BASE}
COPY --from=build /opt/clarad /opt/clarad
# What a model is told it is: CLARA_RESPONDER_COMMAND can read it, and a mount can replace it.
COPY packaging/personality.txt /etc/clarad/personality.txt
RUN useradd --uid 10001 --home-dir /var/lib/clarad --shell /usr/sbin/nologin clarad \
    && install --directory --owner clarad --group clarad --mode 700 /var/lib/clarad \
    && install --directory /etc/clarad/hooks \
    && chmod 644 /etc/clarad/personality.txt
ENV PATH=/opt/clarad/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CLARA_STATE_DIR=/var/lib/clarad \
    CLARA_HOOKS_DIR=/etc/clarad/hooks \
    CLARA_SCHEDULER_DIR=/etc/clarad \
    CLARA_GATEWAY_HOST=0.0.0.0 \
    CLARA_LOG_FORMAT=json
USER clarad
WORKDIR /etc/clarad
VOLUME /var/lib/clarad
EXPOSE 18789
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["clarad", "status"]
ENTRYPOINT ["clarad"]
CMD ["run"]
