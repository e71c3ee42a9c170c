"""Values that any worker may take."""

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from pipelines.beam_options import build_options
from semid_transforms.spreading import Spread


@pytest.mark.parametrize("values", [[], ["a"], ["b", "a", "b", "c"]])
def test_every_value_arrives_once(values):
    with beam.Pipeline(options=build_options(["--direct_num_workers=1"])) as root:
        spread = root | Spread(values, str)
        assert spread.element_type is str
        assert_that(spread, equal_to(values))
