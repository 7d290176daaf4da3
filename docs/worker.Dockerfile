# Image for the workers of Dataflow, Flink or Spark; see running.md. Not built or run here.
# Python and Beam must be those of the machine that runs `python -m pipelines.build`.
FROM apache/beam_python3.11_sdk:2.77.0

WORKDIR /opt/mixtures
COPY pyproject.toml README.md ./
COPY decontam ./decontam
COPY pipelines ./pipelines
RUN pip install --no-cache-dir ".[gcs,s3]" && python -c "import pipelines.stages"

# The entry point of the base image starts Beam's worker.
