"""Names of the files through which a run's parent and worker talk, inside the run's scratch folder."""

JOB = "job.json"
SOURCE = "source.ipynb"
EXECUTED = "executed.ipynb"
