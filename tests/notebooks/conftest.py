"""Fixtures of the notebooks' tests."""

from notebook_runs import project, run  # noqa: F401


def pytest_generate_tests(metafunc) -> None:
    """One test a claim, from the ``ALTERED`` of the test's file: see `answers`."""
    if "altered_claim" in metafunc.fixturenames:
        claims = metafunc.module.ALTERED
        metafunc.parametrize("altered_claim", claims, ids=[name for name, *_ in claims])
