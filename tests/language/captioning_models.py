"""Captioning models with random weights, saved as transformers would download them."""

from pathlib import Path

import torch

WORDS = "a photo of the dog cat house red blue tree sky with and on in is what does image describe"


def _vocabulary(special: list[str]) -> list[str]:
    return [*special, *WORDS.split(), "?", ":", "user", "assistant"]


def make_blip_folder(path: Path) -> Path:
    """Save a BLIP of one layer; its captions depend on the image."""
    import transformers

    path.mkdir(parents=True)
    words = _vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"])
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    tower = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.BlipConfig(
            text_config={
                **tower,
                "hidden_size": 32,
                "encoder_hidden_size": 32,
                "vocab_size": len(words),
                "bos_token_id": 5,
                "eos_token_id": 2,
                "sep_token_id": 3,
                "pad_token_id": 0,
                "max_position_embeddings": 64,
            },
            vision_config={**tower, "hidden_size": 32, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
        model = transformers.BlipForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
        model.save_pretrained(path)
    transformers.BlipProcessor(
        transformers.BlipImageProcessor(size={"height": 32, "width": 32}),
        transformers.BertTokenizer(str(path / "vocab.txt"), additional_special_tokens=["[DEC]"]),
    ).save_pretrained(path)
    return path


def make_llava_folder(path: Path) -> Path:
    """Save a LLaVA of one layer, which is asked in a conversation."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = _vocabulary(["<pad>", "<unk>", "<s>", "</s>", "<image>"])
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    template = (
        "{% for message in messages %}user : {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )
    tower = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(
                **tower, hidden_size=32, image_size=32, patch_size=8
            ),
            text_config=transformers.LlamaConfig(
                **tower,
                hidden_size=32,
                num_key_value_heads=2,
                vocab_size=len(words),
                pad_token_id=0,
                bos_token_id=2,
                eos_token_id=3,
                initializer_range=1.0,
            ),
            image_token_index=4,
            vision_feature_layer=-1,
        )
        transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(path)
    return path
