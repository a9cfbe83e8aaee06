# The package and its commands. CPU:  docker build -t gpt-neo .        docker run -it -v $PWD:/work gpt-neo sample ...
# GPU:  docker build -t gpt-neo --build-arg EXTRAS=serve,gcs,gpu .     docker run --gpus all ...
FROM python:3.11-slim

ARG EXTRAS=serve,gcs
COPY . /gpt_neo
RUN pip install --no-cache-dir -c /gpt_neo/constraints.txt "/gpt_neo[$EXTRAS]" && rm -r /gpt_neo
WORKDIR /work
ENTRYPOINT ["gpt-neo"]
CMD ["--help"]
