# The service: docker build -t florence_tagger .
# The converter: docker build --target convert -t florence_tagger-convert .
#
# Without the GPU's driver: docker build --build-arg DRIVERS= -t florence_tagger .
#
# Why this base: of Debian's suites forky alone has a recent Intel driver (intel-opencl-icd and libze-intel-gpu1 26.27); bookworm has
# intel-opencl-icd 22.43 and no libze-intel-gpu1, trixie neither.
ARG BASE=debian:forky-slim

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/*.log
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1


FROM python AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt constraints.txt /tmp/
# Wheels only: what has none would need a compiler.
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --disable-pip-version-check --only-binary :all: -c /tmp/constraints.txt -r /tmp/requirements.txt


FROM build AS convert
# PyPI's PyTorch brings CUDA along. PyTorch's own index of CPU wheels does not: give its URL.
ARG PIP_EXTRA_INDEX_URL
COPY convert/requirements.txt /tmp/convert.txt
RUN pip install --no-cache-dir --disable-pip-version-check --only-binary :all: -c /tmp/constraints.txt -r /tmp/convert.txt
WORKDIR /app
COPY LICENSE THIRD_PARTY.md ./
COPY florence_tagger florence_tagger
COPY convert convert
RUN useradd --system --uid 10001 --user-group --no-create-home tagger \
    && install --directory --owner=tagger --group=tagger /models /cache
ENV HF_HOME=/cache/huggingface
USER 10001
VOLUME ["/models", "/cache"]
ENTRYPOINT ["python", "-m", "convert"]
CMD ["--help"]


FROM build AS trimmed
# What serving never loads: pip; the Hugging Face client, which tokenizers needs for downloads only, and what that alone needs;
# pygments, which rich needs for source code only; the test suites; OpenVINO's NPU plugin, its headers and all frontends but that
# for its own format; of imagecodecs' 45 codecs those that TIFF files have not. Symbols are stripped from Python's extension modules
# only: stripped libraries of wheels (*.libs) don't load.
ARG CODECS="shared|shared_cython|imcd|ccitt|deflate|zlib|zstd|lzma|webp|jpeg2k|jpeg8|jpegsof3|ljpeg|lerc|png" \
    CODEC_LIBRARIES="deflate|jpeg|lcms2|Lerc|lzma|openjp2|png16|sharpyuv|webp|webpdemux|zstd"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/* \
    && pip uninstall --yes --quiet hf-xet huggingface_hub annotated-doc anyio certifi filelock fsspec h11 httpcore httpx idna \
        pygments pyyaml shellingham tqdm typer pip \
    && cd /opt/venv/lib/python3*/site-packages \
    && rm -rf openvino/include openvino/cmake openvino/libs/libopenvino_intel_npu_* \
    && find openvino/libs -name 'libopenvino_*_frontend.so*' ! -name '*_ir_frontend*' -delete \
    && find imagecodecs -regextype posix-extended -name '*.so' ! -regex '.*/_('"${CODECS}"')\.abi3\.so' -delete \
    && find imagecodecs.libs -regextype posix-extended -type f ! -regex '.*/lib('"${CODEC_LIBRARIES}"')-[^/]*' -delete \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . \( -path ./openvino -o -name '*.libs' \) -prune -o -type f -name '*.so' -exec strip --strip-unneeded {} +


FROM python AS serve
ARG DRIVERS="intel-opencl-icd libze-intel-gpu1 libze1"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ocl-icd-libopencl1 ${DRIVERS} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/*.log
COPY --from=trimmed /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE THIRD_PARTY.md ./
COPY florence_tagger florence_tagger
COPY ov_models/florence-2-tiny ov_models/florence-2-tiny
# The host's render group owns the GPU and seldom has this number: docker run --group-add adds the host's.
RUN groupadd --system --force render \
    && useradd --system --uid 10001 --user-group --groups render,video --no-create-home tagger \
    && install --directory --owner=tagger --group=tagger /cache \
    && install --directory /models
# The GPU's driver keeps compiled kernels below XDG_CACHE_HOME, OpenVINO its compiled models in FLORENCE_CACHE_DIR,
# gunicorn its control socket below HOME.
ENV FLORENCE_CACHE_DIR=/cache/openvino \
    XDG_CACHE_HOME=/cache \
    HOME=/tmp
USER 10001
VOLUME ["/models", "/cache"]
EXPOSE 5011
# Compiling for a GPU may take minutes at the first start.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5m --retries=3 CMD ["python", "-c", \
    "import http.client, os, sys; \
    service = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('FLORENCE_PORT') or 5011), timeout=4); \
    service.request('GET', '/health-check'); sys.exit(service.getresponse().status != 200)"]
CMD ["python", "-m", "florence_tagger", "serve"]

ARG SOURCE="" REVISION=""
LABEL org.opencontainers.image.title="florence_tagger" \
      org.opencontainers.image.description="Counts the objects in pictures and videos with Florence-2 on OpenVINO." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
