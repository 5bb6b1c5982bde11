"""A failed assertion of a support module tells its values, as one of a test does."""

import pytest

pytest.register_assert_rewrite("tests.unit")
