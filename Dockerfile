# The broker alone. Build: docker build --tag agentwrit .

FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/agentwrit
COPY requirements/broker.txt requirements/broker.txt
RUN /opt/agentwrit/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/broker.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/agentwrit/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
RUN groupadd --gid 10001 agentwrit \
    && useradd --uid 10001 --gid agentwrit --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin agentwrit \
    && install --directory --mode 0700 --owner agentwrit --group agentwrit /data
COPY --from=build /opt/agentwrit /opt/agentwrit
ENV PATH="/opt/agentwrit/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    AGENTWRIT_HOST=0.0.0.0 \
    AGENTWRIT_PORT=8080 \
    AGENTWRIT_DATA_DIR=/data \
    AGENTWRIT_LOG_FORMAT=json
USER 10001:10001
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-m", "agentwrit.broker", "health"]
ENTRYPOINT ["agentwrit"]
CMD ["serve"]
