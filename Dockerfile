# CPU:   docker build -t toolagent_pl .
# CUDA:  docker build -t toolagent_pl --build-arg TORCH=cu130 .
#        docker run --gpus all -v "$PWD:/work" toolagent_pl fit --trainer.accelerator=gpu
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH=cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY toolagent_pl toolagent_pl
# PyTorch from its own index, with the CUDA libraries that it needs; what follows finds it there and leaves it alone.
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" -c constraints.txt torch \
 && pip install --no-cache-dir -c constraints.txt .
WORKDIR /work
ENTRYPOINT ["toolagent_pl"]
CMD ["--help"]
