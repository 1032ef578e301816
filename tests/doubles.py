"""Small real models in real folders, such as a user would have downloaded."""

import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import default_bpe
from PIL import Image
from safetensors.torch import save_file

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def random_image(seed: int = 0, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Return an RGB image of smooth colours, `size` = (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def make_openclip_folder(
    path: Path,
    image_model: str = "mobilenetv3_small_050",
    embed_dim: int = 64,
    *,
    image_size: int = 64,
    context_length: int = 16,
    custom_text: bool = False,
    text_cfg: dict | None = None,
) -> Path:
    """Save an OpenCLIP model with random weights, a timm image tower and a tiny text tower."""
    config = {
        "embed_dim": embed_dim,
        "custom_text": custom_text,
        "vision_cfg": {
            "timm_model_name": image_model,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": None,
            "image_size": image_size,
        },
        "text_cfg": text_cfg
        or {
            "context_length": context_length,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    preprocess = {
        "size": [image_size, image_size],
        "mode": "RGB",
        **IMAGENET,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    path.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (path / "open_clip_config.json").write_text(json.dumps(document))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{path}", pretrained_text=False)
        _spread(model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path / "open_clip_model.safetensors")
    return path


def _spread(model: torch.nn.Module) -> None:
    # Untouched BatchNorm statistics (0 and 1) hide a model that was left in training mode.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)


def make_openclip_folder_with_bert(path: Path) -> Path:
    """Save an OpenCLIP model whose text tower is a transformers BERT; the folder can be moved."""
    from transformers import BertConfig

    path.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["a", "photo", "of", "the", "dog", "cat", "house", "horse"]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(
        vocab_size=len(words), hidden_size=32, max_position_embeddings=16, **sizes
    ).save_pretrained(path)
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    text_cfg = {
        "hf_model_name": str(path),
        "hf_tokenizer_name": str(path),
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 12,
    }
    return make_openclip_folder(path, text_cfg=text_cfg)


def clip_tokenizer():
    """Return transformers' CLIP tokenizer, built from the BPE file that open_clip ships."""
    from transformers import CLIPTokenizer

    reference = open_clip.SimpleTokenizer()
    vocab = dict(reference.encoder)
    for theirs, ours in (
        ("<start_of_text>", "<|startoftext|>"),
        ("<end_of_text>", "<|endoftext|>"),
    ):
        vocab[ours] = vocab.pop(theirs)
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    return CLIPTokenizer(vocab=vocab, merges=merges)


def make_hf_clip_folder(path: Path, kind: str = "clip", embed_dim: int = 32) -> Path:
    """Save a tiny CLIP or SigLIP with random weights, its tokenizer and its image processor."""
    import transformers

    tower = {
        "hidden_size": embed_dim,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **tower,
        "vocab_size": 49408,
        "max_position_embeddings": 16,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    vision = {**tower, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "siglip":
            config = transformers.SiglipConfig(text_config=text, vision_config=vision)
            model = transformers.SiglipModel(config)
            processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        else:
            config = transformers.CLIPConfig(
                text_config=text,
                vision_config=vision,
                projection_dim=embed_dim,
            )
            model = transformers.CLIPModel(config)
            processor = transformers.CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            )
    model.save_pretrained(path)
    processor.save_pretrained(path)
    clip_tokenizer().save_pretrained(path)
    return path
