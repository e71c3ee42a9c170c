import sys

import pytest

from schemas.config import EncoderConfig, fingerprint
from semid_transforms.encoder_identity import identify_encoder


def test_an_encoder_is_known_by_its_files_and_what_changes_vectors(tiny_model, other_model):
    def identified(**settings):
        return identify_encoder(EncoderConfig(**{"model": tiny_model, **settings})).fingerprint

    same = identified()
    assert identified(batch_size=7, rows_per_part=64) == same
    assert len({same, identified(model=other_model), identified(max_length=16)}) == 3
    assert identified(normalize=False) != same
    with pytest.raises(ValueError, match="no folder /nowhere"):
        identify_encoder(EncoderConfig(model="/nowhere"))


def test_int8_is_another_encoder_and_the_other_paths_are_one(tiny_model, monkeypatch):
    """The fingerprint of the others is what every published generation was made with."""
    one = identify_encoder(EncoderConfig(tiny_model))
    published = fingerprint({"files": one.sha256, "max_length": None, "normalize": True})
    for settings in ({"precision": "bfloat16"}, {"backend": "openvino"}, {"backend": "torch"}):
        assert identify_encoder(EncoderConfig(tiny_model, **settings)) == one
    assert one.fingerprint == published
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    int8 = identify_encoder(EncoderConfig(tiny_model, precision="int8"))
    assert int8.fingerprint != published
    assert int8.sha256 == one.sha256
    assert int8.name == f"{tiny_model}, int8"


def test_int8_without_its_packages_is_refused(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ValueError, match=r"int8 needs nncf: pip install 'semid\[int8\]'"):
        identify_encoder(EncoderConfig(tiny_model, precision="int8"))
