import json
from pathlib import Path

import pytest
import torch
from tests.doubles import random_image
from tests.language.captioning_models import make_blip_folder, make_llava_folder

from attar.cli.main import main
from attar.data.images import read_image
from attar.data.sources import read_sources
from attar.errors import UsageError
from attar.language.answers import answers_path
from attar.language.captioner import Captioner, model_captions
from attar.language.config import CaptionConfig


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip_folder(tmp_path_factory.mktemp("captioners") / "blip")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        random_image(number, (40, 36)).save(folder / f"{number}.png")
    return folder


def config_of(model: Path, **options) -> CaptionConfig:
    return CaptionConfig(
        model=str(model), **{"beams": 2, "max_new_tokens": 6, "batch_size": 2, **options}
    )


def by_hand(folder: Path, image) -> str:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    with torch.no_grad():
        tokens = model.generate(
            **processor(images=image, return_tensors="pt"),
            num_beams=2,
            max_new_tokens=6,
            no_repeat_ngram_size=3,
        )
    return processor.decode(tokens[0], skip_special_tokens=True)


def test_captions_are_the_model_s_and_each_is_made_once(tmp_path, blip, photos) -> None:
    (photos / "copy.png").write_bytes((photos / "0.png").read_bytes())
    table, out = read_sources([photos]), tmp_path / "captions.csv"
    found = model_captions(table, out, config_of(blip))
    assert len(set(found.texts)) > 1, "it says something about the image"
    for at in (0, 5):
        assert found.texts[at] == by_hand(blip, read_image(table.paths[at]))
    names = dict(zip(table.names, found.texts, strict=True))
    assert names["copy.png"] == names["0.png"]
    log = answers_path(out)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 6
    marked = [{**line, "caption": f"kept {n}"} for n, line in enumerate(lines[:4])]
    cut = json.dumps(lines[5])[:20]
    log.write_text("".join(json.dumps(line) + "\n" for line in marked) + cut)
    again = model_captions(table, out, config_of(blip))
    kept = [text for text in again.texts if text.startswith("kept")]
    assert len(set(kept)) == 4, "these were not made again"
    missing = {line["key"]: line["caption"] for line in lines[4:]}
    for key, text in zip(table.keys, again.texts, strict=True):
        assert key not in missing or text == missing[key]
    model_captions(table, out, config_of(blip, beams=1))
    assert len(log.read_text().splitlines()) == 4 + 1 + 2 + 6, "another question"


def test_a_model_that_chats_answers_without_the_question(tmp_path, photos) -> None:
    folder = make_llava_folder(tmp_path / "llava")
    captioner = Captioner(config_of(folder))
    images = [read_image(path) for path in sorted(photos.glob("*.png"))]
    texts = captioner(images)
    assert texts == [llava_by_hand(folder, image) for image in images]
    assert len(set(texts)) > 1


def llava_by_hand(folder: Path, image) -> str:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    text = "user : <image> What does the image describe? assistant :"
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, num_beams=2, max_new_tokens=6, no_repeat_ngram_size=3)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return processor.decode(answer, skip_special_tokens=True)


def test_an_unreadable_image_has_no_caption(tmp_path, blip, photos, caplog) -> None:
    table = read_sources([photos])
    Path(table.paths[2]).write_bytes(b"gone in the meantime")
    found = model_captions(table, tmp_path / "captions.csv", config_of(blip))
    assert [text is None for text in found.texts] == [False, False, True, False, False, False]
    assert "1 images have no caption" in caplog.text


def test_the_command(tmp_path: Path, blip, photos, capfd) -> None:
    out = tmp_path / "captions.csv"
    words = ["caption", "--data", photos, "--source=model", "--model", blip, "--out", out]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in (*words, "--beams=1", "--max-new-tokens=5")])
    assert stopped.value.code == 0
    assert "6 of 6 images with a caption" in capfd.readouterr().out
    assert all(read_sources([out]).captions)


def test_what_cannot_work_is_refused(tmp_path: Path, photos, monkeypatch) -> None:
    table, out = read_sources([photos]), tmp_path / "captions.csv"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="cannot be loaded"):
        model_captions(table, out, config_of(tmp_path / "empty"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'attar\[caption\]'"):
        model_captions(table, out, config_of(tmp_path / "empty"))
