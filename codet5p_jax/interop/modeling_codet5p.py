"""CodeT5+ 110M embedding and 220M bimodal for `transformers` 5, over its T5.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)

Written by codet5p_jax, which never imports it.
"""

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration


class CodeT5pEmbeddingConfig(T5Config):
    """T5's encoder, `embed_dim`, the width of the embedding, and `pooling`: "first" or "mean"."""

    model_type = "codet5p_embedding"
    embed_dim: int = 256
    pooling: str = "first"


class CodeT5pBimodalConfig(T5Config):
    """T5, `embed_dim`, the width of the embedding, and `pooling`: "first" or "mean"."""

    model_type = "codet5p_bimodal"
    embed_dim: int = 256
    pooling: str = "first"


def _embed(model, input_ids, attention_mask):
    """Unit vectors [batch, embed_dim] of the first token, `<s>`, or of the mean of all tokens."""
    states = model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    if model.config.pooling == "first":
        pooled = states[:, 0]
    else:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * real).sum(1) / real.sum(1).clamp(min=1)
    return nn.functional.normalize(model.proj(pooled), dim=-1)


class CodeT5pEmbeddingModel(T5EncoderModel):
    """Unit vectors of text and code; their dot products say what belongs together."""

    config_class = CodeT5pEmbeddingConfig

    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(config.d_model, config.embed_dim)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        """Unit vectors [batch, embed_dim]."""
        return _embed(self, input_ids, attention_mask)


class CodeT5pBimodalModel(T5ForConditionalGeneration):
    """T5 with the projection of the embedding model and a head that matches text and code."""

    config_class = CodeT5pBimodalConfig

    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(config.d_model, config.embed_dim)
        self.itm_head = nn.Linear(config.d_model, 2)
        self.post_init()

    def embed(self, input_ids, attention_mask=None):
        """Unit vectors [batch, embed_dim] of what the encoder reads."""
        return _embed(self, input_ids, attention_mask)

    def match(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None):
        """[batch, 2], logits of no match and match: the encoder reads text, the decoder code that
        begins with `[ENC]` and ends with `</s>`, whose state decides."""
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if decoder_attention_mask is None:
            decoder_attention_mask = torch.ones_like(decoder_input_ids)
        states = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
        ).last_hidden_state
        positions = torch.arange(states.shape[1], device=states.device)
        last = (decoder_attention_mask * positions).argmax(dim=1)
        return self.itm_head(states[torch.arange(len(states)), last])
