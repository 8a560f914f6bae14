"""A tiny forward, before any training, that proves that an attention does what its name says.

probe(model_or_config, said)    → None, or ModelError with the reason
check_reading(model)            → None, or ModelError: it cannot be called as training does
check_generation(model, said)   → None, or ModelError: a key-value cache changes the answer

transformers fails silently here: some models never call the function that their config names, a
function without a registered mask sees none, and T5's `position_bias` is easily overlooked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, PreTrainedModel

from autoglm.errors import ModelError
from autoglm.modeling.attention.dense import Call, dense, visible
from autoglm.modeling.attention.registry import Chosen, find, use

TOLERANCE = 1e-5  # of the largest dense value, per attention call, fp32
NUM_TOKENS, NUM_PADDED = 24, 9
NUM_PROMPT, NUM_GENERATED = 96, 4
PROBED_LAYERS = 4


def probe(model_or_config: Any, said: str | Mapping[str, Any]) -> None:
    """Two short rows, with and without padding, through the model itself, every call compared.

    A config is made into a model of random weights and at most four layers. Leaves the model as
    it was. transformers' own `sdpa` and `eager` are not looked at.
    Raises: ModelError model.attention_failed (raises, wrong shape, not a number),
    model.attention_not_called, model.attention_no_mask, model.attention_ignores_bias,
    model.attention_differs; and what `use` raises.
    """
    chosen = find(said)
    if chosen.function is None:
        return
    model = model_or_config
    if not isinstance(model, nn.Module):
        model = _model_of(model_or_config)
    with _attention(model, said), _one_thread(), torch.no_grad():
        for is_padded in (True, False):
            inputs, is_padded = _inputs(model, is_padded=is_padded)
            spy = _Spy(model=model, chosen=chosen, is_padded=is_padded)
            with spy:
                model(**inputs)
            if spy.num_calls == 0:
                raise ModelError(
                    f"{_kind(model)} never calls attention {chosen.name!r}: it computes its own.",
                    code="model.attention_not_called",
                    next_step="Use attention: eager, or another backbone.",
                )


def check_reading(model: Any) -> None:
    """Two short rows and their mask, and nothing else, as training calls it.

    Raises: ModelError model.cannot_read for one that raises (T5 wants its decoder's tokens too), or
    gives no state for each token.
    """
    inputs, _ = _inputs(model, is_padded=True)
    alone = {name: x for name, x in inputs.items() if not name.startswith("decoder_")}
    try:
        with torch.no_grad():
            states = model(**alone)[0]
    except Exception as error:
        raise _cannot_read(model, f"{type(error).__name__}: {error}".rstrip(".")) from error
    ids = alone.get("input_ids")
    if ids is not None and states.shape[:2] != ids.shape:
        raise _cannot_read(model, f"states {tuple(states.shape)} of {tuple(ids.shape)} tokens")


def _cannot_read(model: Any, why: str) -> ModelError:
    return ModelError(
        f"{_kind(model)} does not read rows of tokens by themselves: {why}.",
        code="model.cannot_read",
        next_step="Take a backbone that is an encoder or a decoder alone.",
    )


def check_generation(model: Any, said: str | Mapping[str, Any]) -> None:
    """Two prompts, one padded at the left, with and without a key-value cache: the last token's
    logits, every key kept, and then greedy answers with the attention as it is.

    Raises: ModelError model.attention_cache when the former differ by more than `TOLERANCE` of the
    largest, or in the latter tokens do, or logits by more than 0.1 % of the largest; ValueError for
    a model that cannot generate.
    """
    if not (hasattr(model, "can_generate") and model.can_generate()):
        raise ValueError(f"{_kind(model)} cannot generate.")
    ids = _token_ids(model, _fitting(model, NUM_PROMPT, NUM_GENERATED))
    mask = torch.ones_like(ids)
    mask[1, :NUM_PADDED] = 0
    with _attention(model, said), torch.no_grad():
        with _keeping_everything(find(said)):
            whole, step = _last_logits(model, ids, mask)
        _refuse_cache(said, whole, step, TOLERANCE)
        with_cache, without = (_answer(model, ids, mask, has_cache) for has_cache in (True, False))
    is_same = torch.equal(with_cache.sequences, without.sequences)
    whole, step = (torch.stack(answers.logits) for answers in (without, with_cache))
    _refuse_cache(said, whole, step, 1e-3 if is_same else 0.0)


def _refuse_cache(
    said: str | Mapping[str, Any], without: Tensor, with_cache: Tensor, tolerance: float
) -> None:
    largest, worst = float(without.abs().max()), float((with_cache - without).abs().max())
    # `not <=`: what is no number does not agree.
    if not worst <= tolerance * largest:
        raise ModelError(
            f"attention {find(said).name!r} answers otherwise with a key-value cache than without "
            f"one: logits differ by {worst:.1e} of {largest:.1e}.",
            code="model.attention_cache",
            next_step="What a query reads must not depend on the queries beside it.",
        )


def _last_logits(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last token: read with all before it at once, and alone behind their cache."""
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False)
    before = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
    cache = before.past_key_values
    step = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True)
    return whole.logits[:, -1], step.logits[:, -1]


@contextmanager
def _keeping_everything(chosen: Chosen) -> Iterator[None]:
    """Inside, the attention drops no key, if it can be told so."""
    everything = None if chosen.function is None else chosen.keeping_everything
    if everything is not None:
        AttentionInterface.register(chosen.implementation, everything)
    try:
        yield
    finally:
        if everything is not None:
            AttentionInterface.register(chosen.implementation, chosen.bound)


def _answer(model: Any, ids: Tensor, mask: Tensor, has_cache: bool) -> Any:
    return model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        use_cache=has_cache,
        max_new_tokens=NUM_GENERATED,
        min_new_tokens=NUM_GENERATED,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )


@dataclass(kw_only=True)
class _Spy:
    """Stands where the attention was registered, looks at every call and passes it on."""

    model: nn.Module
    chosen: Chosen
    is_padded: bool
    num_calls: int = 0
    layers: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> None:
        self.layers = {id(module): name for name, module in self.model.named_modules()}
        AttentionInterface.register(self.chosen.implementation, self)

    def __exit__(self, *_error: object) -> None:
        AttentionInterface.register(self.chosen.implementation, self.chosen.bound)

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
    ) -> Any:
        self.num_calls += 1
        layer = self.layers.get(id(module), type(module).__name__)
        call = Call(
            module=module, layer=layer, query=query, key=key, value=value, mask=mask, rest=rest
        )
        if mask is None and self.is_padded:
            raise ModelError(
                f"{layer}: attention {self.chosen.name!r} gets no mask though a row is padded.",
                code="model.attention_no_mask",
                next_step="Give the function a `mask_function`, or leave that to registry.use.",
            )
        output = self._output(self.chosen.bound, call)
        for tried in (call.in_fp32(), call.in_fp32().drawn()):
            everything = self.chosen.keeping_everything
            if everything is None:
                self._check_influence(tried)
            else:
                self._check_dense(everything, tried)
        return output, None

    def _output(self, function: Callable[..., Any], call: Call) -> Tensor:
        """(batch, query, head, dim). Raises: ModelError model.attention_failed."""
        where = f"{call.layer}: attention {self.chosen.name!r}"
        try:
            output = function(
                call.module, call.query, call.key, call.value, call.mask, **call.rest
            )[0]
            shape = tuple(output.shape)
        except Exception as error:
            raise ModelError(
                f"{where} raises {type(error).__name__}: {str(error).rstrip('.')}.",
                code="model.attention_failed",
                next_step=_shapes(call),
            ) from error
        if shape != call.output_shape:
            raise ModelError(
                f"{where} gives shape {shape}, expected {call.output_shape} (batch, query, head, "
                "size).",
                code="model.attention_failed",
                next_step="Transpose heads and queries at the end, as sdpa_attention_forward does.",
            )
        _, sees = dense(call.in_fp32())
        if not torch.isfinite(output.masked_fill(~sees, 0)).all():
            raise ModelError(
                f"{where} gives what is no number for a query that sees keys.",
                code="model.attention_failed",
            )
        return output  # type: ignore[no-any-return]

    def _check_dense(self, everything: Callable[..., Any], call: Call) -> None:
        found = self._output(everything, call)
        difference = _difference(found, call)
        if difference <= TOLERANCE:
            return
        without_bias = call.with_rest(position_bias=None)
        without_mask, without_both = (
            replace(c, mask=None).with_rest(is_causal=False) for c in (call, without_bias)
        )
        if call.position_bias is not None and _difference(found, without_bias) <= TOLERANCE:
            self._refuse_bias(call)
        if min(_difference(found, c) for c in (without_mask, without_both)) <= TOLERANCE:
            self._refuse_mask(call)
        raise ModelError(
            f"{call.layer}: attention {self.chosen.name!r} differs from dense attention by "
            f"{difference:.1e} of the largest value when every key is kept; {TOLERANCE:.0e} is "
            "allowed.",
            code="model.attention_differs",
            next_step="If it drops keys, say how to keep all: function.everything = {option: …}; "
            "if it never equals dense attention: function.is_sparse = True.",
        )

    def _check_influence(self, call: Call) -> None:
        """For one that never equals dense attention: what is masked has no influence, bias has."""
        bound = self.chosen.bound
        found = self._output(bound, call)
        _, sees = dense(call)
        hidden = ~visible(call).any(dim=(1, 2))[:, None, :, None]  # (batch, 1, key, 1)
        far = replace(call, key=call.key + 3.0 * hidden, value=call.value + 3.0 * hidden)
        moved = (self._output(bound, far) - found).masked_fill(~sees, 0).abs().max()
        if float(moved) > TOLERANCE * float(found.masked_fill(~sees, 0).abs().max()):
            self._refuse_mask(call)
        bias = call.position_bias
        if bias is not None and not torch.equal(bias, bias.flip(-1)):
            other = self._output(bound, call.with_rest(position_bias=bias.flip(-1)))
            if torch.equal(other, found):
                self._refuse_bias(call)

    def _refuse_mask(self, call: Call) -> NoReturn:
        raise ModelError(
            f"{call.layer}: attention {self.chosen.name!r} ignores its mask: padding, or what is "
            "to come, leaks into the answer.",
            code="model.attention_no_mask",
            next_step="Let no weight fall where attention_mask is False.",
        )

    def _refuse_bias(self, call: Call) -> NoReturn:
        raise ModelError(
            f"{call.layer}: attention {self.chosen.name!r} ignores position_bias, from which "
            f"{_kind(self.model)} knows where a token stands.",
            code="model.attention_ignores_bias",
            next_step="Add kwargs['position_bias'] to the scores.",
        )


def _shapes(call: Call) -> str:
    query, key = tuple(call.query.shape), tuple(call.key.shape)
    grouped = " (heads share keys)" if query[1] != key[1] else ""
    return f"It was called with query {query} and key {key}{grouped}."


def _difference(found: Tensor, call: Call) -> float:
    """The largest, as a share of the largest dense value. A query that sees nothing is left out."""
    wanted, sees = dense(call)
    wanted, found = wanted.masked_fill(~sees, 0), found.float().masked_fill(~sees, 0)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@contextmanager
def _attention(model: Any, said: str | Mapping[str, Any]) -> Iterator[None]:
    """Inside, the model is in eval mode and uses this attention; afterwards all is as before."""
    was_training = model.training
    parts = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    before = [(part.config, part.config._attn_implementation) for part in parts]
    model.eval()
    try:
        model.set_attn_implementation(use(said))
        yield
    finally:
        # From the outermost in: setting a config's attention sets that of its inner ones too.
        for config, implementation in before:
            config._attn_implementation = implementation
        model.train(was_training)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The probe's tensors are tiny: on a busy machine a second thread only waits for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _model_of(config: Any) -> Any:
    """A model of random weights: the config's, with few layers and a small vocabulary."""
    small = copy.deepcopy(config)
    if hasattr(small, "vocab_size"):
        small.vocab_size = min(small.vocab_size, 128)
        small.pad_token_id = None if small.pad_token_id is None else 0
    num_layers = getattr(small, "num_hidden_layers", 0)
    if num_layers > PROBED_LAYERS:
        small.num_hidden_layers = PROBED_LAYERS
        if getattr(small, "layer_types", None):
            small.layer_types = small.layer_types[:PROBED_LAYERS]
    with torch.random.fork_rng():
        return AutoModel.from_config(small)


def _inputs(model: Any, *, is_padded: bool) -> tuple[dict[str, Tensor], bool]:
    """Two rows for the model, the second padded at the right if asked, and whether one is."""
    config = model.config
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(2, config.num_channels, height, width, generator=generator)
        return {"pixel_values": pixels.to(model.device, model.dtype)}, False
    ids = _token_ids(model, _fitting(model, NUM_TOKENS, 0))
    mask = torch.ones_like(ids)
    if is_padded:
        mask[1, -NUM_PADDED:] = 0
        ids[1, -NUM_PADDED:] = getattr(_text_config(model), "pad_token_id", None) or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "is_encoder_decoder", False):
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return inputs, is_padded


def _token_ids(model: Any, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    highest = min(_text_config(model).vocab_size, 1000)
    ids = torch.randint(min(10, highest - 2), highest, (2, length), generator=generator)
    return ids.to(model.device)


def _text_config(model: Any) -> Any:
    """The innermost config that knows the vocabulary: a wrapper's own may not."""
    parts = (m for m in model.modules() if isinstance(m, PreTrainedModel))
    return next(part.config for part in parts if hasattr(part.config, "vocab_size"))


def _fitting(model: Any, length: int, more: int) -> int:
    """As many tokens as the position tables have room for (RoBERTa keeps two rows for itself)."""
    room = getattr(_text_config(model), "max_position_embeddings", None) or 0
    # XLNet says -1: it has no table.
    return min(length, room - more - 4) if room > 0 else length


def _kind(model: Any) -> str:
    return type(getattr(model, "backbone", model)).__name__
