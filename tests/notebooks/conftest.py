"""Gives every test file of a notebook the fixtures `run` and `project`."""

from notebook_runs import project, run  # noqa: F401
