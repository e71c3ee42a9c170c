import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
)

from models.logits_processor import SidLogitsProcessor, SidVocabulary
from models.sid import SidLayout
from models.trie_build import build_trie
from models.trie_decoder import TrieDecoder

SIZES = (8, 8, 8)
PAD, EOS, FIRST = 0, 1, 2
OFFSETS = (FIRST, FIRST + 8, FIRST + 16)


def decoder_of(rows, eligible=None, seed=0):
    layout = SidLayout(SIZES, 0)
    sids = np.random.default_rng(seed).choice(8**3, rows, replace=False)
    return TrieDecoder(build_trie([np.sort(sids)], layout), eligible=eligible)


def tiny_t5(seed=0):
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=FIRST + 24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
            decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
        )
    ).eval()  # fmt: skip


def tiny_gpt2(seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=FIRST + 24, n_positions=32, n_embd=16, n_layer=1, n_head=2,
            pad_token_id=PAD, eos_token_id=EOS, bos_token_id=PAD,
        )
    ).eval()  # fmt: skip


def generate(model, prompt, processor, beams):
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        logits_processor=LogitsProcessorList([processor]),
    )


@pytest.mark.parametrize("build", [tiny_t5, tiny_gpt2])
@pytest.mark.parametrize(("rows", "beams"), [(200, 6), (3, 6), (1, 2)])
def test_generate_returns_items_only(build, rows, beams):
    model, decoder = build(), decoder_of(rows)
    prompt = torch.randint(FIRST, FIRST + 24, (2, 5), generator=torch.Generator().manual_seed(1))
    length = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    processor = SidLogitsProcessor(decoder, SidVocabulary(OFFSETS, EOS, length))
    output = generate(model, prompt, processor, beams)
    leaves = processor.leaves(output.sequences, output.sequences_scores)
    for found in leaves.view(2, beams):
        real = found[found >= 0]
        assert len(set(real.tolist())) == len(real) == min(rows, beams)
    # Every sequence is a SID, then the end token.
    assert (processor.leaves(output.sequences) >= 0).all()
    assert (output.sequences[:, length + 3] == EOS).all()


@pytest.mark.parametrize("build", [tiny_t5, tiny_gpt2])
def test_the_best_sequence_is_the_best_item(build):
    model, decoder = build(3), decoder_of(40)
    prompt = torch.tensor([[4, 9, 11]])
    encoder = model.config.is_encoder_decoder
    length = 1 if encoder else prompt.shape[1]
    processor = SidLogitsProcessor(decoder, SidVocabulary(OFFSETS, EOS, length))
    output = generate(model, prompt, processor, 40)
    codes, _ = decoder.trie.layout.unpack(decoder.trie.leaf_sids())
    ids = torch.from_numpy(codes.astype(np.int64)) + torch.tensor(OFFSETS)
    ids = torch.cat([ids, torch.full((40, 1), EOS)], dim=1)
    with torch.no_grad():
        if encoder:
            start = torch.full((40, 1), PAD)
            logits = model(
                input_ids=prompt.expand(40, -1), decoder_input_ids=torch.cat([start, ids], 1)
            ).logits[:, :-1]
        else:
            logits = model(torch.cat([prompt.expand(40, -1), ids], 1)).logits[:, length - 1 : -1]
    steps = torch.log_softmax(logits, -1).gather(2, ids[..., None]).squeeze(2).sum(1)
    assert processor.leaves(output.sequences)[0] == steps.argmax()


def test_restriction_to_eligible_items():
    eligible = np.arange(50) % 5 == 0
    model, decoder = tiny_t5(), decoder_of(50, eligible)
    processor = SidLogitsProcessor(decoder, SidVocabulary(OFFSETS, EOS, 1))
    output = generate(model, torch.tensor([[3, 4]]), processor, 10)
    found = processor.leaves(output.sequences, output.sequences_scores)
    assert sorted(found.tolist()) == np.flatnonzero(eligible).tolist()


def test_a_beam_outside_the_trie_may_only_end():
    decoder = decoder_of(1)
    processor = SidLogitsProcessor(decoder, SidVocabulary(OFFSETS, EOS, 1))
    code = int(decoder.trie.tokens[0][0])
    wrong = torch.tensor([[PAD, OFFSETS[0] + (code + 1) % 8], [PAD, OFFSETS[0] + code]])
    scores = processor(wrong, torch.zeros(2, FIRST + 24))
    assert scores[0].isfinite().nonzero().flatten().tolist() == [EOS]
    assert scores[1].isfinite().nonzero().flatten().tolist() == [
        OFFSETS[1] + int(decoder.trie.tokens[1][0])
    ]
    assert processor.leaves(wrong).tolist() == [-1, -1]


def test_the_number_of_blocks_is_checked():
    with pytest.raises(ValueError, match="token_offsets has 2 blocks, the trie has 3 levels"):
        SidLogitsProcessor(decoder_of(1), SidVocabulary((2, 10), EOS, 1))


def test_a_vocabulary_too_small_is_named():
    processor = SidLogitsProcessor(decoder_of(5), SidVocabulary((2, 10, 25), EOS, 1))
    state = torch.tensor([[PAD, 0, 0]])
    with pytest.raises(ValueError, match=r"level 3 needs ids 25\.\.32, the model has 26"):
        processor(state, torch.zeros(1, FIRST + 24))
