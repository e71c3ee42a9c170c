import pytest

from schemas.config import JobConfig, parse
from schemas.resources import ResourceConfig

L4 = "type:nvidia-l4;count:1;install-nvidia-driver"


def resources(**links):
    return parse(JobConfig, {"resources": links}).resources


def test_nothing_is_asked_for_by_default():
    assert resources() == ResourceConfig()
    assert resources().link("embed").hints == {}


def test_a_link_asks_for_what_is_set():
    asked = resources(embed={"accelerator": L4, "min_ram": "16GB"}, place={"min_ram": "1.5GiB"})
    assert asked.link("embed").hints == {"accelerator": L4, "min_ram": "16GB"}
    assert asked.link("place").hints == {"min_ram": "1.5GiB"}
    assert asked.link("fit").hints == {}


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"encode": {}}, r"resources\.encode: unknown key"),
        ({"embed": {"gpu": 1}}, r"resources\.embed\.gpu: unknown key"),
        ({"embed": {"accelerator": "nvidia-l4"}}, r"resources\.embed: accelerator must name type"),
        ({"embed": {"accelerator": f"{L4}; x"}}, r"resources\.embed: accelerator must name type"),
        ({"fit": {"accelerator": "type:nvidia-l4;count:0"}}, r"accelerator must name type"),
        ({"place": {"min_ram": "8"}}, r"resources\.place: min_ram must be a number and"),
        ({"place": {"min_ram": "0GB"}}, r"resources\.place: min_ram must be a number and"),
        ({"index": {"accelerator": L4}}, r"resources\.index\.accelerator: unknown key"),
    ],
)
def test_bad_values_are_named(links, message):
    with pytest.raises(ValueError, match=message):
        resources(**links)


def test_beam_reads_what_is_accepted():
    from apache_beam.transforms.resources import parse_resource_hints

    hints = resources(embed={"accelerator": L4, "min_ram": "1.5GiB"}).link("embed").hints
    assert sorted(parse_resource_hints(hints).values()) == [b"1610612736", L4.encode()]
