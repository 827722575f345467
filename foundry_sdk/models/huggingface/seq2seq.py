"""An encoder-decoder of the transformers library as a ``LanguageModel``."""

from torch import Tensor

from foundry_sdk.batch import Batch
from foundry_sdk.models.huggingface.model import HFModel


class HFSeq2Seq(HFModel):
    """T5 and its relatives: the encoder reads ``input_ids``, the decoder ``decoder_input_ids``."""

    encoder_decoder = True

    def forward(self, batch: Batch) -> Tensor:
        """Return hidden states (sequences, labels per sequence, H) of the decoder.

        Where the head is not plain, logits. The decoder begins with the config's own start token,
        as it does when it generates: a loader knows only the tokenizer's padding, which is the
        same for T5 and not for each of its relatives.

        Raises:
            ValueError: the batch has no ``decoder_input_ids``, or several documents per row.
        """
        if batch.decoder_input_ids is None:
            raise ValueError(
                "an encoder-decoder model needs decoder_input_ids: finetune it on prompts and "
                "responses (train_loader: {name: finetuning}, decoder_only_format: false)"
            )
        if batch.sequence_ids is not None:
            raise ValueError(
                "the batch has several documents per row, which an encoder-decoder model cannot "
                "keep apart; leave packing_ratio out"
            )
        encoded = self.encode(batch.input_ids, batch.attention_mask)
        tokens = batch.decoder_input_ids.clone()
        tokens[:, 0] = self.first_token()
        return self.decode(tokens, encoded, batch.attention_mask)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return hidden states (B, S, H) of the encoder."""
        encoded: Tensor = self.model.get_encoder()(
            input_ids=input_ids, attention_mask=attention_mask
        )[0]
        return encoded

    def decode(self, tokens: Tensor, encoded: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return what ``forward`` returns, for ``tokens`` int64 (B, T) after ``encoded`` prompts.

        Args:
            tokens: the decoder's input; padding on its right needs no mask.
            encoded: from ``encode``.
            attention_mask: bool (B, S) of the prompts; None = no padding.
        """
        if self._head is None:
            logits: Tensor = self.model(
                encoder_outputs=(encoded,),
                attention_mask=attention_mask,
                decoder_input_ids=tokens,
                use_cache=False,
            ).logits
            return logits
        decoded: Tensor = self.model.decoder(
            input_ids=tokens,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )[0]
        return decoded

    def first_token(self) -> int:
        """Return the token that the decoder begins with."""
        return int(self.model.config.decoder_start_token_id)

    def max_sequence_length(self) -> int | None:
        """Return None: prompt and response have limits of their own."""
        return None
