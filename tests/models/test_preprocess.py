from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from finode.errors import InputError
from finode.models import preprocess
from finode.models.preprocess import load_input, to_tensor
from finode.wire.directory import Color, InputSpec

PLAIN = InputSpec(shape=(2, 3))
GRAY = InputSpec(shape=(1, 4, 6), color=Color.GRAY)
RGB = InputSpec(shape=(3, 4, 6), color=Color.RGB, mean=(0.1, 0.2, 0.3), deviation=(0.5, 1.0, 2.0))
BGR = InputSpec(shape=(3, 4, 6), color=Color.BGR, scale=1.0)

PIXELS = np.random.default_rng(5).integers(0, 256, (4, 6, 3)).astype(np.uint8)


def saved(path: Path, array: npt.NDArray[Any]) -> Path:
    np.save(path, array)
    return path


# ---- images


def test_rgb_image_is_scaled_and_normalized_per_channel(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS).save(path)
    tensor = load_input(path, RGB)
    assert tensor.shape == (1, 3, 4, 6)
    for channel, (mean, deviation) in enumerate(zip(RGB.mean, RGB.deviation, strict=True)):
        np.testing.assert_allclose(tensor[0, channel], (PIXELS[:, :, channel] / 255 - mean) / deviation)


def test_bgr_turns_the_channels_around(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    Image.fromarray(PIXELS).save(path)
    np.testing.assert_array_equal(load_input(path, BGR)[0], PIXELS.transpose(2, 0, 1)[::-1])


def test_gray_takes_gray_and_color_images(tmp_path: Path) -> None:
    gray, color = tmp_path / "g.png", tmp_path / "c.png"
    Image.fromarray(PIXELS[:, :, 0]).save(gray)
    Image.fromarray(np.repeat(PIXELS[:, :, :1], 3, axis=2)).save(color)
    np.testing.assert_allclose(load_input(gray, GRAY)[0, 0], PIXELS[:, :, 0] / 255)
    np.testing.assert_allclose(load_input(color, GRAY), load_input(gray, GRAY), atol=1.01 / 255)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".PNG"])
def test_every_kind_of_image_is_resized(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (60, 20), (255, 0, 128)).save(path)
    tensor = load_input(path, BGR)
    assert tensor.shape == (1, 3, 4, 6)
    np.testing.assert_allclose(tensor[0].mean(axis=(1, 2)), [128, 0, 255], atol=8)


def test_palette_and_transparent_images(tmp_path: Path) -> None:
    for mode in ("P", "RGBA", "LA", "1", "CMYK"):
        path = tmp_path / (f"{mode}.jpg" if mode == "CMYK" else f"{mode}.png")
        Image.fromarray(PIXELS).convert("L" if mode == "LA" else "RGB").convert(mode).save(path)
        assert load_input(path, RGB).shape == (1, 3, 4, 6)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS.transpose(1, 0, 2).copy())
    exif = image.getexif()
    exif[0x0112] = 5  # stored transposed
    image.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(load_input(tmp_path / "x.png", BGR)[0], PIXELS.transpose(2, 0, 1)[::-1])


def test_an_image_for_a_service_of_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS).save(path)
    with pytest.raises(InputError, match=r"takes arrays \(give a \.npy or \.json of the shape \(2, 3\)"):
        load_input(path, PLAIN)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_damaged_images_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(np.tile(PIXELS, (20, 20, 1))).save(path)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:10], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"x{suffix} is not an image"):
            load_input(path, RGB)


def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"bomb\.png"):
        load_input(path, RGB)


def test_the_pixel_limit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "MAX_IMAGE_PIXELS", 20)
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="6 x 4 pixels, over the limit of 20"):
        load_input(tmp_path / "x.png", RGB)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="8 bits per channel"):
        load_input(tmp_path / "x.png", GRAY)


# ---- arrays


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "<i8", "|i1", "|u1", "<u2"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (5, 2, 3)])
def test_arrays_of_numbers_are_taken_as_they_are(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    tensor = load_input(saved(tmp_path / "x.npy", array), PLAIN)
    assert tensor.dtype == np.float64
    np.testing.assert_array_equal(tensor, array.astype(np.float64).reshape(-1, 2, 3))


def test_fortran_order_is_understood(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(load_input(saved(tmp_path / "x.npy", array), PLAIN)[0], array)


def test_json_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([[1, 2, 3], [4.5, 5, 6]]))
    np.testing.assert_array_equal(load_input(path, PLAIN), [[[1, 2, 3], [4.5, 5, 6]]])


@pytest.mark.parametrize(
    "layout",
    [
        PIXELS,
        PIXELS[np.newaxis],
        np.dstack([PIXELS, PIXELS[:, :, :1]]),  # with an alpha channel, which is dropped
        PIXELS.transpose(2, 0, 1)[::-1],
        PIXELS.transpose(2, 0, 1)[np.newaxis, ::-1],
    ],
)
def test_bytes_for_an_image_service_are_images(layout: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(to_tensor(layout, BGR), PIXELS.transpose(2, 0, 1)[np.newaxis, ::-1])


@pytest.mark.parametrize(
    ("shape", "batch"), [((4, 6), 1), ((4, 6, 1), 1), ((2, 4, 6), 2), ((2, 4, 6, 1), 2), ((9, 9), 1)]
)
def test_gray_bytes(shape: tuple[int, ...], batch: int) -> None:
    array = np.full(shape, 51, dtype=np.uint8)
    np.testing.assert_allclose(to_tensor(array, GRAY), np.full((batch, 1, 4, 6), 0.2))


def test_floats_for_an_image_service_are_ready_tensors() -> None:
    array = np.full((3, 4, 6), 7.5)
    np.testing.assert_array_equal(to_tensor(array, RGB)[0], array)


@pytest.mark.parametrize(
    ("array", "spec", "words"),
    [
        (np.zeros((3, 3)), PLAIN, r"has the shape \(3, 3\); expected \(2, 3\) or \(batch, 2, 3\)"),
        (np.zeros((0, 2, 3)), PLAIN, "has the shape"),
        (np.zeros(()), PLAIN, "has the shape"),
        (np.zeros((1, 1, 2, 3)), PLAIN, "has the shape"),
        (np.zeros((5, 4, 6), dtype=np.uint8), RGB, "has the shape"),
        (np.zeros((0, 6), dtype=np.uint8), RGB, "has the shape"),
        (np.zeros(7, dtype=np.uint8), RGB, "has the shape"),
        (np.asarray([[1, np.nan, 0], [0, 0, 0]]), PLAIN, "NaN or infinite"),
        (np.asarray([[1, np.inf, 0], [0, 0, 0]]), PLAIN, "NaN or infinite"),
        (np.zeros((2, 3), dtype=bool), PLAIN, "type bool"),
        (np.zeros((2, 3), dtype=complex), PLAIN, "type complex128"),
        (np.full((2, 3), "a"), PLAIN, "type <U1"),
    ],
)
def test_wrong_arrays_are_refused(array: npt.NDArray[Any], spec: InputSpec, words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_tensor(array, spec, "x.npy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2", "not valid JSON"),
        ('{"a": 1}', "holds dict"),
        ("3", "holds int"),
        ("[[1, 2], [3]]", "not of equal length"),
        ('[["a", "b", "c"], ["d", "e", "f"]]', "numbers are needed"),
        ("[[true, true, true], [false, false, false]]", "numbers are needed"),
        ("[[1, NaN, 3], [4, 5, 6]]", "NaN or infinite"),
        ("[[1e999, 0, 3], [4, 5, 6]]", "NaN or infinite"),
        ("[[null, 0, 3], [4, 5, 6]]", "numbers are needed"),
        ("[" * 100_000, "not valid JSON"),
        ("[" * 200 + "]" * 200, "x.json"),
        ("[[123456789012345678901234567890, 0, 3], [4, 5, 6]]", "numbers are needed"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_wrong_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=words):
        load_input(path, PLAIN)


def test_damaged_and_dangerous_npy_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    whole = saved(path, np.zeros((50, 2, 3))).read_bytes()
    huge = whole.replace(b"(50, 2, 3), }          ", b"(9000000000, 900, 3), }")
    assert len(huge) == len(whole)
    assert huge != whole
    for data in (b"", b"text", whole[:20], whole[:-100], huge):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"x\.npy"):
            load_input(path, PLAIN)
    np.save(path, np.asarray([{"an": "object"}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"not a valid \.npy file of numbers"):
        load_input(path, PLAIN)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((2, 3)))
    with pytest.raises(InputError, match="archive"):
        load_input(path, PLAIN)


def test_missing_oversized_and_unknown_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_input(tmp_path / "none.npy", PLAIN)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match="not a file"):
        load_input(tmp_path / "folder.npy", PLAIN)
    with pytest.raises(InputError, match=r"unknown kind of input '\.csv'"):
        load_input(tmp_path / "x.csv", PLAIN)
    monkeypatch.setattr(preprocess, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="over the limit of 100"):
        load_input(saved(tmp_path / "x.npy", np.zeros((9, 2, 3))), PLAIN)
