"""The loop as a whole; the defects of public implementations are in `test_defects`."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from models import metrics
from models.autoencoder_training import TrainingInputs
from models.config import LossConfig, RqvaeConfig, TagConfig, TrainingConfig, multi_resolution
from models.mlp import ResidualMlp, rotate_between
from models.moc import fit_moc
from models.rqvae import Rqvae, fit_rqvae
from models.tags import TagTable
from models.tokenizers import from_files, to_files
from tests.models.catalog import clustered_embeddings
from tests.models.test_tokenizers import SMALL

TRAINING = TrainingConfig(
    steps=120,
    warmup_steps=30,
    batch_size=256,
    learning_rate=5e-3,
    decoder_steps=10,
    evaluate_every=30,
    mine_every=10,
)
CONFIG = RqvaeConfig(codebook_sizes=(16, 8, 8), latent_dim=8, hidden=(32,), training=TRAINING)


@pytest.fixture(scope="module")
def rows():
    return clustered_embeddings(2000)


def fitted_bytes(quantizer):
    return to_files(quantizer, {})["model.safetensors"]


def with_losses(**weights):
    return dataclasses.replace(CONFIG, losses=LossConfig(**weights))


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_run_ends_with_the_same_bytes(rows, stop_after):
    undisturbed = []
    whole = fit_rqvae(CONFIG, rows, None, TrainingInputs(checkpoint=undisturbed.append))[0]
    assert len(undisturbed) == 3

    class KilledError(Exception):
        pass

    saved = []

    def checkpoint(state):
        saved.append(state)
        if len(saved) == stop_after:
            raise KilledError

    with pytest.raises(KilledError):
        fit_rqvae(CONFIG, rows, None, TrainingInputs(checkpoint=checkpoint))
    again = fit_rqvae(CONFIG, rows, None, TrainingInputs(resume=saved[-1]))[0]
    assert fitted_bytes(again) == fitted_bytes(whole)


def test_a_checkpoint_of_another_shape_is_refused(rows):
    saved = []
    fit_rqvae(CONFIG, rows, None, TrainingInputs(checkpoint=saved.append))
    wider = dataclasses.replace(CONFIG, latent_dim=9)
    with pytest.raises(ValueError, match="another model than the configuration describes"):
        fit_rqvae(wider, rows, None, TrainingInputs(resume=saved[0]))


def test_training_improves_on_its_start(rows):
    seen = []
    quantizer, last = fit_rqvae(CONFIG, rows, lambda *look: seen.append(look))
    assert [(step, steps) for step, steps, _ in seen] == [(60, 120), (90, 120), (120, 120)]
    assert last["error"] < seen[0][2]["error"]
    codes = quantizer.encode(rows)
    assert metrics.one_minus_r2(rows, quantizer.decode(codes)) < 0.5
    assert min(x["used_codes"] for x in metrics.code_use(codes, (16, 8, 8))) >= 8


def test_training_stops_early_and_keeps_the_best(rows):
    looks = []
    patient = dataclasses.replace(
        TRAINING, steps=2000, evaluate_every=5, patience=3, learning_rate=1.0, decoder_steps=0
    )
    config = dataclasses.replace(CONFIG, training=patient)
    _, last = fit_rqvae(config, rows, lambda *look: looks.append(look))
    assert len(looks) < 300
    scores = [scalars["error"] + scalars["colliding"] for _, _, scalars in looks]
    assert last["colliding"] == pytest.approx(looks[int(np.argmin(scores))][2]["colliding"])
    assert min(scores) not in scores[-3:]


def test_every_loss_and_estimator_changes_the_result(rows):
    results = {
        name: fitted_bytes(fit_rqvae(config, rows)[0])
        for name, config in {
            "all": with_losses(balance=0.1),
            "no balance": with_losses(balance=0.0),
            "no separation": with_losses(balance=0.1, separation=0.0),
            "uniqueness": with_losses(balance=0.1, uniqueness=2.0),
            "no commitment": with_losses(balance=0.1, commitment=0.0),
            "rotation": dataclasses.replace(CONFIG, estimator="rotation"),
            "residual MLP": dataclasses.replace(CONFIG, shortcut=True),
            "four coarse axes": dataclasses.replace(CONFIG, coarse_dim=4),
            "whitening": dataclasses.replace(CONFIG, whitening=1.0),
        }.items()
    }
    assert len(set(results.values())) == len(results)


def test_uniqueness_lowers_collisions():
    rows = clustered_embeddings(3000, seed=5)
    long = dataclasses.replace(TRAINING, steps=400)

    def colliding(**weights):
        losses = LossConfig(**({"separation": 0.0} | weights), paired_rows=0.5)
        config = dataclasses.replace(
            CONFIG, losses=losses, training=long, codebook_sizes=(32, 32, 32)
        )
        return metrics.collisions(fit_rqvae(config, rows)[0].encode(rows))["b"]

    without = colliding()
    assert colliding(uniqueness=10.0) < 0.8 * without
    assert colliding(separation=1.0) < 0.8 * without


@pytest.mark.parametrize(
    "sizes", [(4, 4), (32, 16, 8, 4), multi_resolution(64, 8), (128, 4)], ids=str
)
def test_levels_and_sizes_of_all_kinds(rows, sizes):
    config = dataclasses.replace(CONFIG, codebook_sizes=sizes)
    codes = fit_rqvae(config, rows)[0].encode(rows)
    assert codes.shape == (len(rows), len(sizes))
    assert (codes.max(axis=0) < sizes).all()


def test_a_large_codebook(rows):
    tiny = dataclasses.replace(TRAINING, steps=40)
    config = dataclasses.replace(CONFIG, codebook_sizes=(8192, 4), training=tiny)
    assert fit_rqvae(config, rows)[0].codebook_sizes == (8192, 4)


def test_streamed_batches_take_the_place_of_sampled_ones(rows):
    served = []

    def stream(batch_size, seed):
        random = np.random.default_rng(seed)
        for number in itertools.count():
            served.append(number)
            yield rows[random.integers(1000, 2000, batch_size)]

    quantizer, _ = fit_rqvae(CONFIG, rows[:1000], None, TrainingInputs(stream=stream))
    assert len(served) == TRAINING.steps
    resident = fit_rqvae(CONFIG, rows[:1000])[0]
    assert fitted_bytes(quantizer) != fitted_bytes(resident)
    tags = TagTable.from_paths([["a"]] * 1000, 1, 1)
    with pytest.raises(ValueError, match="streamed rows have no tags"):
        TrainingInputs(stream=stream, tags=tags)


def test_fitting_leaves_torchs_own_generator_alone(rows):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    fit_rqvae(CONFIG, rows)
    assert torch.equal(torch.rand(1), expected)


class TestTags:
    config = dataclasses.replace(
        CONFIG,
        tags=TagConfig(alignment=1.0, prediction=1.0, rare=5, hidden=16),
        training=dataclasses.replace(TRAINING, holdout=0.2, steps=300),
    )

    @pytest.fixture(scope="class")
    def tagged(self):
        random = np.random.default_rng(3)
        centres = random.normal(size=(4, 3, 24))
        top, below = random.integers(4, size=2000), random.integers(3, size=2000)
        rows = centres.mean(axis=1)[top] * 2 + centres[top, below]
        rows += 0.3 * random.normal(size=rows.shape)
        paths = [
            [f"t{a}", f"b{b}"][: 1 if n % 10 == 0 else 2]
            for n, (a, b) in enumerate(zip(top, below, strict=True))
        ]
        return rows.astype("f4"), paths, TagTable.from_paths(paths, 3, rare=5)

    @pytest.fixture(scope="class")
    def fitted(self, tagged) -> tuple[Rqvae, dict]:
        return fit_rqvae(self.config, tagged[0], None, TrainingInputs(tags=tagged[2]))

    def test_predicts_paths_with_confidence(self, tagged, fitted):
        rows, paths, table = tagged
        found = fitted[0].predict_tags(rows)
        assert found.names == table.names
        assert found.tags.shape == found.confidence.shape == (2000, 2)
        known = table.ids >= 0
        assert (found.tags == table.ids)[known].mean() > 0.9
        assert ((found.confidence > 0) & (found.confidence <= 1)).all()
        assert found.names[1][found.tags[1, 1]] == " > ".join(paths[1])

    def test_reports_accuracy_on_held_out_items(self, fitted):
        assert fitted[1]["tag_accuracy_1"] > 0.9
        assert fitted[1]["tag_accuracy_2"] > 0.8

    def test_classifiers_survive_saving(self, tagged, fitted):
        again = from_files(to_files(fitted[0], {}))
        before, after = fitted[0].predict_tags(tagged[0]), again.predict_tags(tagged[0])
        assert before.tags.tobytes() == after.tags.tobytes()
        assert before.confidence.tobytes() == after.confidence.tobytes()
        assert before.names == after.names

    @pytest.mark.parametrize("off", ["alignment", "prediction"])
    def test_each_loss_changes_the_codebooks(self, tagged, fitted, off):
        tags = dataclasses.replace(self.config.tags, **{off: 0.0})
        config = dataclasses.replace(self.config, tags=tags)
        other = fit_rqvae(config, tagged[0], None, TrainingInputs(tags=tagged[2]))[0]
        assert not np.array_equal(other.codebooks[0], fitted[0].codebooks[0])

    def test_tokenizers_without_tags_predict_none(self, rows):
        with pytest.raises(ValueError, match="fitted without tags"):
            fit_rqvae(CONFIG, rows)[0].predict_tags(rows)

    def test_moc_refuses_tags(self, tagged):
        with pytest.raises(ValueError, match="moc has no prefixes"):
            fit_moc(SMALL["moc"], tagged[0], None, TrainingInputs(tags=tagged[2]))


def test_the_first_level_keeps_to_the_widest_axes(rows):
    """Its codewords are zero beyond `coarse_dim`; the axes before it hold most of the latents."""
    config = dataclasses.replace(CONFIG, coarse_dim=3)
    quantizer = fit_rqvae(config, rows)[0]
    first, second, _ = quantizer.codebooks
    assert first[:, :3].any(axis=0).all() and not first[:, 3:].any()
    assert second[:, 3:].any()
    latents = quantizer.latents(rows)
    spread = latents.var(axis=0)
    assert spread[:3].mean() > spread[3:].mean()


def test_rotating_between_networks_changes_nothing_but_the_latents(rows):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = ResidualMlp((24, 9, 6), True), ResidualMlp((6, 9, 24), True)
        rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    given = torch.from_numpy(rows[:50])
    with torch.no_grad():
        latents, decoded = encoder(given), decoder(encoder(given))
        rotate_between(encoder, decoder, rotation)
        torch.testing.assert_close(encoder(given), latents @ rotation)
        torch.testing.assert_close(decoder(encoder(given)), decoded)
