# The project on NVIDIA's PyTorch image, whose torch, Transformer Engine and apex stay as they are:
#
#   docker build --build-arg NGC_TAG=26.05-py3 --tag instruction-pretraining .
#   docker run --gpus all --ipc host --ulimit memlock=-1 --rm -it instruction-pretraining ipt doctor
#
# 26.05 brings Python 3.12, CUDA 13.2 (driver 595 or newer) and torch 2.12.0a0; 26.01 and later have numpy 2, which
# setup.py asks for.  tests/test_dockerfile.py runs the RUN lines that call tools/in_image.py.
ARG NGC_TAG=26.05-py3
FROM nvcr.io/nvidia/pytorch:${NGC_TAG}

ARG NGC_TAG
ARG PROJECT_VERSION=0.1.0
ARG MEGATRON_CORE_VERSION=0.19.2
ARG REVISION=unknown
ARG USER_ID=1000

# NVIDIA's images come with a user of their own under 1000, the usual id of who builds.
RUN other=$(getent passwd "${USER_ID}" | cut -d: -f1); \
    if [ -n "${other}" ]; then userdel "${other}"; fi; \
    useradd --create-home --shell /bin/bash --uid "${USER_ID}" ipt

WORKDIR /opt/instruction-pretraining

# What setup.py asks for comes before the source, so that a change of the source installs nothing again.
COPY tools/in_image.py tools/
RUN python tools/in_image.py freeze image.txt
COPY setup.py pyproject.toml README.md ./
RUN python tools/in_image.py install image.txt ".[prep,train,eval,report]" "megatron-core==${MEGATRON_CORE_VERSION}"

COPY LICENSE ./
COPY data_prep data_prep
COPY megatron_ipt megatron_ipt
COPY tools tools
COPY examples examples
# Editable: a checkout mounted here takes the place of this source without a new build.
RUN python tools/in_image.py install image.txt --no-deps --editable . \
    && python tools/in_image.py check image.txt --record versions.json \
        --label "instruction-pretraining=${PROJECT_VERSION}" --label "megatron-core=${MEGATRON_CORE_VERSION}"

# The exact versions of everything, the image's torch too, stand in /opt/instruction-pretraining/versions.json.
LABEL org.opencontainers.image.title="instruction-pretraining" \
      org.opencontainers.image.description="Instruction Pre-Training on Megatron: data preparation, blends, training" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${PROJECT_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/pytorch:${NGC_TAG}" \
      instruction-pretraining.megatron-core.version="${MEGATRON_CORE_VERSION}" \
      instruction-pretraining.ngc.tag="${NGC_TAG}"

HEALTHCHECK --interval=5m --timeout=1m --start-period=1m --retries=2 CMD ["ipt", "doctor"]

USER ipt
WORKDIR /home/ipt
