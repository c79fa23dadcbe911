# The service with the models in ov_models. For an Intel GPU: docker run --device /dev/dri --group-add <group of the device>
ARG BASE=debian:bookworm-slim
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv intel-opencl-icd \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.txt constraints.txt ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt
COPY florence_tagger florence_tagger
COPY ov_models ov_models

RUN useradd --system tagger
USER tagger
EXPOSE 5011
HEALTHCHECK --start-period=60s CMD ["/opt/venv/bin/python", "-c", \
    "import os, urllib.request as r; r.urlopen('http://localhost:' + os.environ.get('FLORENCE_PORT', '5011') + '/health-check')"]
CMD ["/opt/venv/bin/python", "-m", "florence_tagger", "serve"]
