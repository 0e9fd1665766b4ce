"""References between keys equal those that OmegaConf resolves."""

import pytest
from omegaconf import OmegaConf

from postrain.config.arguments import resolved
from postrain.config.references import with_references
from postrain.errors import ConfigError

VALUES = {"data": {"seed": 3, "rate": 0.5, "on": True, "none": None, "texts": ["a", {"b": 1}]}, "empty": ""}


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "${data.seed}",
        "${data.rate}",
        "${data.on}",
        "${data.none}",
        "${empty}",
        "${data.texts}",
        "${data.texts.1.b}",
        "${data}",
        "${second}",
        "run-${data.seed}",
        "${.next}",
        r"\${data.seed}",
        ["${data.seed}", {"deep": "${data.rate}"}],
    ],
)
def test_reference_has_the_value_that_omegaconf_finds(value):
    config = {**VALUES, "first": value, "second": "${data.seed}", "next": 7}
    assert with_references(config) == resolved(OmegaConf.create(config))


@pytest.mark.parametrize("value", ["${data.sed}", "${missing}", "${first}"])
def test_reference_that_leads_nowhere_is_one_line(value):
    with pytest.raises(ConfigError):
        with_references({**VALUES, "first": value, "missing": "???"})
