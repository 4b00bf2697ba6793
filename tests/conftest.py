"""For every test: no network access, fixed seeds, and the shapes in signatures checked on each call."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

# Before any test imports the project: its modules are instrumented as they are read.
jaxtyping.install_import_hook("tangentlora", "shape_checks.check")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the tests' tensors live: cpu, cuda or cuda:1")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Take back what the command line's `main` tells the logging module."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - code of others draws from the global generator
    torch.manual_seed(0)
