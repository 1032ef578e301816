"""Captions by a model that describes images, through transformers."""

import importlib.util
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.device import pick_device
from attar.errors import UsageError
from attar.hub import cache_alone_without_hub
from attar.language.answers import AnswerLog, answers_path
from attar.language.captions import Captions
from attar.language.config import CaptionConfig
from attar.store.progress import Meter
from attar.teachers.loading import one_line

log = logging.getLogger(__name__)

QUESTION = "What does the image describe?"
"""What Li et al. 2023 ask their captioning model."""
_READERS = 2


def model_captions(table: ImageTable, out: Path, config: CaptionConfig) -> Captions:
    """Caption n images with a model; identical files are captioned once.

    Every caption is kept beside `out` (`OUT.answers.jsonl`) as it is made, so that a call made
    again goes on where it stopped. An image that cannot be read gets none and is counted.

    Raises:
        UsageError: transformers is missing, or the model cannot be loaded.
    """
    check_captioner(config)
    request = {
        "model": config.model,
        "prompt": config.prompt,
        "beams": config.beams,
        "max_new_tokens": config.max_new_tokens,
    }
    paths = dict(zip(table.keys, table.paths, strict=True))
    with AnswerLog(answers_path(out)) as answers:
        known = {a["key"]: a["caption"] for a in answers.matching(request) if a.get("caption")}
        todo = [key for key in paths if key not in known]
        if todo:
            captioner = Captioner(config)
            with Meter("captions", len(todo), "images") as meter:
                for start in range(0, len(todo), config.batch_size):
                    part = todo[start : start + config.batch_size]
                    images = {k: i for k, i in zip(part, _read(part, paths), strict=True) if i}
                    made = dict(zip(images, captioner(list(images.values())), strict=True))
                    answers.append([{"key": k, **request, "caption": t} for k, t in made.items()])
                    known |= made
                    meter.advance(len(part))
            log.info("captioned %d images: %s", len(todo), meter.summary)
    texts = tuple(known.get(key) or None for key in table.keys)
    if None in texts:
        log.warning("%d images have no caption", texts.count(None))
    return Captions(texts=texts)


def check_captioner(config: CaptionConfig) -> None:
    """Refuse what cannot work before an image is read (UsageError)."""
    if not config.model:
        raise UsageError(
            "--source model needs --model NAME, e.g. Salesforce/blip-image-captioning-base"
        )
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(
            f"captions by {config.model!r} need transformers: run pip install 'attar[caption]'"
        )


def _read(keys: Sequence[str], paths: dict[str, str]) -> list[Image.Image | None]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda key: _image(paths[key]), keys))


def _image(path: str) -> Image.Image | None:
    try:
        return read_image(Path(path))
    except Exception as error:  # one bad file among many must not end the work
        log.warning("%s cannot be read: %s", path, error)
        return None


class Captioner:
    """A model of transformers' image-text-to-text family (BLIP, GIT, LLaVA, Qwen-VL, …)."""

    def __init__(self, config: CaptionConfig) -> None:
        self._config = config
        self._device = pick_device()
        self._processor, self._model = _load(str(config.model), self._device)
        self._chats = bool(getattr(self._processor, "chat_template", None))
        tokenizer = getattr(self._processor, "tokenizer", None)
        if self._chats and tokenizer is not None:
            tokenizer.padding_side = "left"  # the answer follows the last token

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """Return one caption an image, in one line; "" where the model says nothing."""
        if not images:
            return []
        inputs = self._inputs(list(images)).to(self._device, self._model.dtype)
        output = self._model.generate(
            **inputs,
            max_new_tokens=self._config.max_new_tokens,
            num_beams=self._config.beams,
            no_repeat_ngram_size=3,
            do_sample=False,
        )
        asked = inputs.get("input_ids")
        if asked is not None and torch.equal(output[:, : asked.shape[1]], asked):
            output = output[:, asked.shape[1] :]
        said = self._processor.batch_decode(output, skip_special_tokens=True)
        return [" ".join(text.split()) for text in said]

    def _inputs(self, images: list[Image.Image]) -> Any:
        if not self._chats:
            text = {"text": [self._config.prompt] * len(images)} if self._config.prompt else {}
            return self._processor(images=images, return_tensors="pt", **text)
        content = [{"type": "image"}, {"type": "text", "text": self._config.prompt or QUESTION}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self._processor(
            images=[[image] for image in images],
            text=[prompt] * len(images),
            padding=True,
            return_tensors="pt",
        )


def _load(name: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = torch.float32 if device.type == "cpu" else "auto"  # else as it was saved
    try:
        with nullcontext() if Path(name).is_dir() else cache_alone_without_hub():
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"captioning model {name!r} cannot be loaded ({one_line(error)}); give a folder or hub "
            "name of a model that transformers loads as image-text-to-text"
        ) from error
    return processor, model.to(device).eval()
