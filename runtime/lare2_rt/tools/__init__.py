"""The workbench: data sets, features, evaluation, evidence, benchmarks, the doctor. Detecting needs none of it."""
