"""A small vocabulary and a small real model, shared by the tests of the objectives."""

import jax
import numpy as np
import pytest

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.models import CodeT5p, init_params
from tests.objectives.helpers import SPECIAL, small_config


@pytest.fixture(scope="session")
def special() -> SpecialTokens:
    return SPECIAL


@pytest.fixture(scope="session")
def model() -> CodeT5p:
    return CodeT5p(small_config())


@pytest.fixture(scope="session")
def params(model):
    return init_params(model.specs, jax.random.key(0))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
