"""What a user may choose about descriptions and captions; free of torch so that the CLI starts
fast.
"""

from dataclasses import dataclass
from pathlib import Path

from attar.errors import UsageError, unknown_name

INSTRUCTIONS: dict[str, str] = {
    "paper": "Use a single sentence to describe the appearance and shape of {cls}. "
    "Only describe the shape and appearance.",
    "succinct": "Use a single sentence to broadly describe the appearance and shape of {cls}. "
    "Don't give too much details. Only describe the shape and appearance.",
    "detailed": "Use a single sentence and short, simple, descriptive phrases to describe the "
    "detailed appearance and detailed shape of {cls}.",
    "distinct": "Use a single sentence to describe the unique, distinctive appearance and shape of "
    "{cls}. Only describe the unique, distinctive shape and appearance.",
}
"""Li et al. 2023: the instruction of section 5 and its three ablations (Table 7), by name."""

SLOT = "{cls}"
"""Where the class name goes in an instruction, as the paper writes it."""


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Where descriptions come from, and how a language model is asked for them."""

    file: Path | None = None
    """With `--source file`: text with one sentence a line, in the order of the classes, or JSON
    {class: [descriptions]}."""
    pin: tuple[str, ...] = ()
    """With `--source wordnet`: CLASS=WNID takes this meaning, e.g. "crane=n02012849"."""
    model: str | None = None
    """With `--source llm`: the model's name at the endpoint."""
    endpoint: str = "http://localhost:11434/v1"
    """OpenAI-compatible address before "/chat/completions": Ollama, vLLM, a vendor. The key, if it
    needs one, is read from the environment: ATTAR_LLM_API_KEY, else OPENAI_API_KEY."""
    instruction: str = "paper"
    """paper, succinct, detailed, distinct, or your own text with "{cls}" for the class."""
    temperature: float | None = None
    """Randomness of the answers; the server's default when not given."""
    max_tokens: int | None = None
    """Longest answer in tokens; the server's default when not given."""
    parallel: int = 8
    """Requests under way at once."""
    timeout: float = 120.0
    """Seconds for one answer."""
    attempts: int = 6
    """How often a class is asked about before it is named as failed."""
    backoff: float = 1.0
    """Seconds before the second attempt; doubled each time, up to a minute."""

    def __post_init__(self) -> None:
        for name in ("parallel", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; give 1 or more")
        if self.timeout <= 0 or self.backoff < 0:
            raise UsageError(
                f"--timeout {self.timeout} and --backoff {self.backoff}: give seconds above 0"
            )
        if self.instruction not in INSTRUCTIONS and SLOT not in self.instruction:
            if " " in self.instruction:
                raise UsageError(
                    f"--instruction {self.instruction!r} lacks {SLOT}, the place of the class"
                )
            raise unknown_name("instruction", self.instruction, INSTRUCTIONS)

    @property
    def instruction_text(self) -> str:
        """The instruction in words, with "{cls}" for the class."""
        return INSTRUCTIONS.get(self.instruction, self.instruction)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How a captioning model is asked; the defaults are those of Li et al. but for the length."""

    model: str | None = None
    """With `--source model`: a folder or hub name that transformers loads as image-text-to-text."""
    prompt: str | None = None
    """Words that the model is given with the image; models that chat get "What does the image
    describe?" when nothing is said."""
    batch_size: int = 16
    """Images captioned at once."""
    beams: int = 5
    """Width of the beam search."""
    max_new_tokens: int = 32
    """Longest caption in tokens."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is {getattr(self, name)}; give 1 or more")
