"""A prompt and its answer → token ids, as a chat with the model will read and write them.

template of the folder   ‹user› prompt ‹assistant› | answer ‹end›
without one               prompt                   | answer ‹eos›

What stands before the bar is tokenised alone, since that is all there is when an answer is asked
for; what stands behind it is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm.errors import ModelError

SAMPLE_PROMPT, SAMPLE_ANSWER = "How are you?", "Very well."


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """`ids` are read (all but the last token); at `first` and behind it, `answer` is answered."""

    ids: list[int]
    answer: list[int]

    @property
    def first(self) -> int:
        return len(self.ids) - len(self.answer)


class Chat:
    """How the model in `folder` is asked. At most `max_length` tokens: the beginning of the prompt
    goes first, then the template's marks before it; an answer that does not fit alone loses its
    end, and one token stays before it.

    Raises: ModelError model.no_end_token, when nothing says how an answer ends.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        self._max_length = max_length
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._around: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.has_template = bool(self._around.chat_template)
        self._lead, mark = self._frame() if self.has_template else ("", None)
        end = self._tokenizer.token_to_id(mark or self._around.eos_token or "")
        if end is None:
            raise ModelError(
                f"the tokenizer in {folder} names no token that ends an answer.",
                code="model.no_end_token",
                next_step="Set eos_token in its tokenizer_config.json.",
            )
        self.end_id = int(end)

    def turns(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Turn]:
        """In order."""
        asked = [self._asked(prompt) for prompt in prompts]
        before = self._tokenizer.encode_batch(
            [text for text, _ in asked], add_special_tokens=not self.has_template
        )
        behind = self._tokenizer.encode_batch(
            [self._lead + answer for answer in answers], add_special_tokens=False
        )
        spans = [span for _, span in asked]
        return [
            self._turn(self._read(encoding, span), [*answer.ids, self.end_id])
            for encoding, span, answer in zip(before, spans, behind, strict=True)
        ]

    def _turn(self, read: tuple[list[int], list[int]], answer: list[int]) -> Turn:
        """`read` are the tokens before the answer, and which of them are the prompt's own."""
        ids, own = read
        answer = answer[: self._max_length - 1]
        num_over = max(0, len(ids) + len(answer) - self._max_length)
        gone = set(own[:num_over])
        kept = [token for place, token in enumerate(ids) if place not in gone]
        kept = kept[max(0, len(kept) + len(answer) - self._max_length) :]
        return Turn(ids=[*kept, *answer[:-1]], answer=answer)

    def _read(self, encoding: Any, span: tuple[int, int]) -> tuple[list[int], list[int]]:
        ids, (start, end) = list(encoding.ids), span
        if not self.has_template and ids[-1:] == [self.end_id]:
            ids.pop()  # of tokenizers that close every text
        if not ids:
            return [self.end_id], []
        places = enumerate(encoding.offsets[: len(ids)])
        return ids, [place for place, (a, b) in places if start <= a < b <= end]

    def _asked(self, prompt: str) -> tuple[str, tuple[int, int]]:
        """What is read before the answer, and where in it the prompt stands."""
        if not self.has_template:
            return prompt, (0, len(prompt))
        text = self._rendered(prompt)
        own = prompt if prompt in text else prompt.strip()  # some templates strip
        start = text.rfind(own)
        return text, (start, start + len(own)) if start >= 0 else (0, 0)

    def _rendered(self, prompt: str, answer: str | None = None) -> str:
        chat = [{"role": "user", "content": prompt}]
        if answer is not None:
            chat.append({"role": "assistant", "content": answer})
        rendered: str = self._around.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=answer is None
        )
        return rendered

    def _frame(self) -> tuple[str, str | None]:
        """What the template puts before an answer, beyond the prompt's part, and the token with
        which it closes one; None where it does not.
        """
        before, whole = self._rendered(SAMPLE_PROMPT), self._rendered(SAMPLE_PROMPT, SAMPLE_ANSWER)
        if not whole.startswith(before):
            return "", None
        lead, _, tail = whole[len(before) :].partition(SAMPLE_ANSWER)
        special = {i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        closing = self._tokenizer.encode(tail, add_special_tokens=False)
        found = (t for i, t in zip(closing.ids, closing.tokens, strict=True) if i in special)
        return lead, next(found, None)
