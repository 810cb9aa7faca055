from __future__ import annotations

from pathlib import Path

import pytest

from finode.errors import InputError
from finode.models.service_files import load_labels, load_preprocess
from finode.wire.directory import Color, InputSpec


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["cat\ndog\n", " cat \r\ndog", '["cat", "dog"]', "\ufeffcat\ndog\n\n"])
def test_labels(tmp_path: Path, text: str) -> None:
    assert load_labels(written(tmp_path, text)) == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "2 or more classes"),
        ("cat", "2 or more classes"),
        ("cat\n\ndog", "each with a name"),
        ("cat\ndog\ncat", "'cat' stands there twice"),
        ("[1, 2]", "strings only"),
        ('["a", ', "not valid JSON"),
    ],
)
def test_wrong_labels(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_labels(written(tmp_path, text))


def test_unreadable_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_labels(tmp_path / "none")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_labels(path)
    path.write_bytes(b"x" * (1 << 20) + b"y")
    with pytest.raises(InputError, match="has over"):
        load_labels(path)


def test_preprocess_becomes_an_input_spec(tmp_path: Path) -> None:
    text = 'size = [4, 6]\ncolor = "bgr"\nscale = 1\nmean = 0.5\ndeviation = [1, 2, 3]\n'
    settings = load_preprocess(written(tmp_path, text))
    assert settings.spec((3, 4, 6)) == InputSpec(
        shape=(3, 4, 6), color=Color.BGR, scale=1.0, mean=(0.5, 0.5, 0.5), deviation=(1.0, 2.0, 3.0)
    )


@pytest.mark.parametrize(
    ("shape", "color"), [((1, 4, 4), Color.GRAY), ((3, 4, 4), Color.RGB), ((2, 4, 4), Color.NONE), ((16,), Color.NONE)]
)
def test_color_follows_from_the_channels(tmp_path: Path, shape: tuple[int, ...], color: Color) -> None:
    spec = load_preprocess(written(tmp_path, "")).spec(shape)
    assert (spec.color, spec.scale) == (color, 1 / 255)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size = ", "not valid TOML"),
        ("sizes = [4, 4]", "unknown key 'sizes'"),
        ("size = [4]", r"size is \[4\]"),
        ("size = [4, -4]", "size is"),
        ("size = [5, 5]", r"size is \[5, 5\], but the model takes inputs of \(3, 4, 4\)"),
        ('color = "pink"', "color is 'pink'; it must be one of none, gray, rgb, bgr"),
        ('color = "gray"', "does not fit a model"),
        ("scale = [1, 2]", "scale is one number"),
        ("scale = 0", "scale is a positive number"),
        ('mean = "a"', "mean is 'a'"),
        ("mean = [true]", "mean is"),
        ("mean = [1, 2]", "one value per channel"),
        ("mean = nan", "mean is finite"),
        ("deviation = 0", "deviation is positive"),
    ],
)
def test_wrong_preprocess(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=words):
        load_preprocess(path).spec((3, 4, 4))
