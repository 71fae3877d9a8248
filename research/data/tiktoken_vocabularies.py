"""What a tiktoken file does not say: the pattern that splits a text before merging and the special tokens, by vocabulary.

A vocabulary is known by how many tokens its file has; a folder's tokenizer_config.json may give the special tokens in
`added_tokens_decoder`, and the pattern in `pat_str` for one that is not in this table.

| vocabulary | tokens  | published in                                                                                  |
| ---------- | ------- | --------------------------------------------------------------------------------------------- |
| gpt2       | 50,256  | openai/tiktoken (r50k_base); Whisper's English models                                         |
| p50k       | 50,280  | openai/tiktoken (p50k_base)                                                                   |
| whisper    | 50,257  | openai/whisper, multilingual models of 99 languages: a placeholder is the last of its tokens  |
| cl100k     | 100,256 | openai/tiktoken (cl100k_base)                                                                 |
| llama3     | 128,000 | meta-llama/llama3, special tokens as renamed by Llama 3.1                                     |
| glm4       | 151,329 | THUDM/glm-4-9b                                                                                |
| qwen       | 151,643 | Qwen/Qwen-7B, on text in the Unicode form NFC                                                 |
| o200k      | 199,998 | openai/tiktoken (o200k_base)                                                                  |
"""

from dataclasses import dataclass

from research.data.vocab_merges import QWEN_PATTERN

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTED}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_END = "<|endoftext|>"
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
    "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
)  # fmt: skip
_GLM4 = (
    _END, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
_LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk te fa lv "
    "bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa "
    "lb my bo tl mg as tt haw ln ha ba jw su"
)
_WHISPER = (
    _END, "<|startoftranscript|>", *(f"<|{code}|>" for code in _LANGUAGES.split()), "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", *(f"<|{hundredths / 100:.2f}|>" for hundredths in range(0, 3001, 2)),
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """`special`: the ids of special tokens by text; `before`: those that a prompt begins with; `normalizer`: the Unicode form that a text
    is brought to first."""

    name: str
    tokens: int
    pattern: str
    special: dict[str, int]
    before: tuple[str, ...] = ()
    normalizer: str | None = None


def _numbered(first: int, names: tuple[str, ...]) -> dict[str, int]:
    return {name: first + number for number, name in enumerate(names)}


KNOWN = (
    Vocabulary("gpt2", 50_256, GPT2_PATTERN, {_END: 50_256}),
    Vocabulary("p50k", 50_280, GPT2_PATTERN, {_END: 50_256}),
    Vocabulary("whisper", 50_257, GPT2_PATTERN, _numbered(50_257, _WHISPER)),
    Vocabulary("cl100k", 100_256, CL100K_PATTERN, {**_numbered(100_257, (_END, *_FIM)), "<|endofprompt|>": 100_276}),
    Vocabulary("llama3", 128_000, CL100K_PATTERN, _numbered(128_000, _LLAMA3), ("<|begin_of_text|>",)),
    Vocabulary("glm4", 151_329, CL100K_PATTERN, _numbered(151_329, _GLM4), ("[gMASK]", "<sop>")),
    Vocabulary(
        "qwen", 151_643, QWEN_PATTERN,
        _numbered(151_643, (_END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))), normalizer="NFC",
    ),
    Vocabulary("o200k", 199_998, O200K_PATTERN, {_END: 199_999, "<|endofprompt|>": 200_018}),
)  # fmt: skip
