# The package and its commands: docs/install.md, "In a container".
FROM python:3.11-slim

ARG EXTRAS=fast,serve,chat,gcs,plot
COPY . /gpt_neo
RUN pip install --no-cache-dir -c /gpt_neo/constraints.txt "/gpt_neo[$EXTRAS]" && rm -r /gpt_neo
WORKDIR /work
ENTRYPOINT ["gpt-neo"]
CMD ["--help"]
