# naflex-serve on a CPU, without torch: docker build -f docker/serve.Dockerfile -t naflex-serve .
#   docker run -p 8000:8000 -v ./artifacts/siglip:/artifact:ro naflex-serve
FROM python:3.12-slim

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY naflex_export naflex_export
COPY docker/serve.txt docker/serve.txt
RUN pip install --no-cache-dir --no-deps . \
    && pip install --no-cache-dir -r docker/serve.txt \
    && useradd --create-home --uid 10001 naflex

USER 10001
WORKDIR /home/naflex
EXPOSE 8000
# Beyond loopback, since a container's own is reached by nobody; what is published is docker run's to say.
ENTRYPOINT ["naflex-serve", "/artifact", "--host", "0.0.0.0", "--port", "8000"]
