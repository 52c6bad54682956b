"""Prompts that choose among the objects of an image: the second part of late fusion.

late_objects.py describes the whole.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .late_scores import Rescorer, both
from .layers import Attention, Mlp, layer_norm, linear


class PromptLayer(nn.Module):
    """Pre-norm layer: objects and the presence token attend to each other and to the prompt.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = Attention(width, heads)
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """Update the presence token and the objects.

        Args:
            x: (P, 1 + Q, C).
            prompt: (P, L, C) prompt tokens.
            mask: (P, 1, 1, L) bool, True where a prompt token is valid.

        Returns:
            (P, 1 + Q, C).
        """
        y = layer_norm(self.norm1, x)
        x = x + self.cross_attn(y, prompt, prompt, mask)
        y = layer_norm(self.norm2, x)
        x = x + self.self_attn(y, y, y)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


class PromptDecoder(nn.Module):
    """Compares prompts with the objects of their images.

    The similarity of an object's embedding and a phrase's is learned against all phrases at once
    (``embed_objects``, ``embed_text``). A few attention layers correct it for what only the whole
    prompt tells: exemplars, attributes, other objects of the image. They also decide whether the
    image shows the concept at all.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.
        context: Tokens of a phrase, which come first in a prompt.
        space: Channels of the embeddings that are compared.
        rescoring: Width of the hidden layers of a ``Rescorer``; 0 for none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        depth: int,
        context: int,
        space: int = 128,
        rescoring: int = 0,
    ) -> None:
        super().__init__()
        self.context = context
        self.object_embed = Mlp(width, hidden, space)
        self.text_embed = Mlp(width, hidden, space)
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.presence_token = nn.Embedding(1, width)
        self.object_in = nn.Linear(width, width)
        self.prompt_in = nn.Linear(width, width)
        self.similarity_in = nn.Linear(2, width)
        self.exemplar_embed = Mlp(width, hidden, space)
        self.exemplar_vote = nn.Linear(width, 1)
        self.exemplar_scale = nn.Parameter(torch.tensor(2.3))
        self.exemplar_bias = nn.Parameter(torch.tensor(-4.0))
        self.layers = nn.ModuleList(PromptLayer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.presence = Mlp(width, width, 1)
        self.rescorer = Rescorer(rescoring) if rescoring else None
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def embed_objects(self, queries: Tensor) -> Tensor:
        """Embed objects for comparison with phrases.

        Args:
            queries: (..., C).

        Returns:
            (..., D) of length 1.
        """
        return F.normalize(self.object_embed(queries).float(), dim=-1)

    def embed_text(self, features: Tensor, valid: Tensor) -> Tensor:
        """Embed phrases for comparison with objects.

        Args:
            features: (P, L, C) text features.
            valid: (P, L) bool, True where a token is valid.

        Returns:
            (P, D) of length 1.
        """
        weight = valid[..., None].to(features.dtype)
        return self.embed_pooled((features * weight).sum(1) / weight.sum(1).clamp(min=1))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Embed phrases whose text features are averaged already.

        Args:
            pooled: (P, C).

        Returns:
            (P, D) of length 1.
        """
        return F.normalize(self.text_embed(pooled).float(), dim=-1)

    def similarity(self, objects: Tensor, text: Tensor) -> Tensor:
        """Logits of each object being what each phrase names.

        Args:
            objects: (..., Q, D) from ``embed_objects``.
            text: (..., P, D) from ``embed_text``.

        Returns:
            (..., Q, P).
        """
        return self.scale.exp() * (objects @ text.transpose(-1, -2)) + self.bias

    def forward(
        self, queries: Tensor, prompt: Tensor, mask: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts about B images.

        Args:
            queries: (B, Q, C) objects of the images.
            prompt: (P, L, C) prompt tokens: ``context`` of the text, then exemplars and the class
                token.
            mask: (P, L) bool, True where a prompt token is valid.
            images: (P,) index of each prompt's image.

        Returns:
            (P, Q) logits of each object being meant, and (P,) logits of presence.
        """
        words = slice(0, self.context)
        embedded = self.embed_objects(queries)
        text = self.embed_text(prompt[:, words], mask[:, words])
        every = torch.arange(len(prompt), device=prompt.device)
        similar = self.similarity(embedded, text)[images, :, every]
        shown = self._compare_exemplars(
            embedded, prompt[:, self.context :], mask[:, self.context :], images
        )
        return self.choose(queries[images], similar, shown, prompt, mask)

    def choose(
        self, queries: Tensor, similar: Tensor, shown: Tensor, prompt: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Correct similarities by the whole prompt.

        Args:
            queries: (P, Q, C) objects of each prompt's image, or (1, Q, C) of one image.
            similar: (P, Q) from ``similarity``.
            shown: (P, Q) from ``count_votes``.
            prompt: (P, L, C) prompt tokens.
            mask: (P, L) bool, True where a prompt token is valid.

        Returns:
            As ``forward``.
        """
        x = linear(self.object_in, queries)
        x = x + self.similarity_in(torch.stack([similar, shown], -1) / 4)
        first = self.presence_token.weight.expand(x.shape[0], 1, -1).to(x.dtype)
        x = torch.cat([first, x], 1)
        tokens = linear(self.prompt_in, prompt)
        for layer in self.layers:
            x = layer(x, tokens, mask[:, None, None, :])
        x = layer_norm(self.norm, x)
        meant = similar + shown + linear(self.score, x[:, 1:]).squeeze(-1).float()
        return meant, self.presence(x[:, 0]).squeeze(-1).float()

    def score_objects(
        self, meant: Tensor, found: Tensor, presence: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The final logits of objects and presence.

        Args:
            meant: (P, Q) logits from ``forward`` or ``choose``.
            found: (P, Q) logits of each query being an object.
            presence: (P,) logits from ``forward`` or ``choose``.
            boxes: (P, Q, 4) cxcywh boxes of the queries, or (1, Q, 4) of one image.

        Returns:
            (P, Q) logits of each query being an object that is meant, and (P,) logits of presence.
        """
        if self.rescorer is None:
            return both(meant, found), presence
        logits, present = self.rescorer(meant, found, presence, boxes)
        return logits, present

    def presence_bias(self) -> Tensor:
        """The bias of the logits of presence, (1,)."""
        last = self.presence if self.rescorer is None else self.rescorer.presence
        return cast(Tensor, last.layers[-1].bias)

    def object_bias(self) -> Tensor:
        """The bias of the logits of objects, (1,)."""
        if self.rescorer is None:
            return self.score.bias
        return cast(Tensor, self.rescorer.objects.layers[-1].bias)

    def embed_exemplars(self, shown: Tensor) -> Tensor:
        """Embed exemplars for comparison with objects.

        Args:
            shown: (P, E, C) prompt tokens after those of the text.

        Returns:
            (P, E, D) of length 1.
        """
        return F.normalize(self.exemplar_embed(shown).float(), dim=-1)

    def count_votes(self, products: Tensor, shown: Tensor, valid: Tensor) -> Tensor:
        """Sum the exemplars' votes.

        An exemplar votes for objects that are similar to it; its sign is learned from its label.

        Args:
            products: (P, Q, E) scalar products of objects and exemplars.
            shown: (P, E, C) prompt tokens after those of the text.
            valid: (P, E) bool, True where a prompt token is valid.

        Returns:
            (P, Q).
        """
        similar = self.exemplar_scale.exp() * products
        vote = self.exemplar_vote(shown).float().squeeze(-1) * valid
        return (F.softplus(similar + self.exemplar_bias) * vote[:, None]).sum(-1)

    def _compare_exemplars(
        self, objects: Tensor, shown: Tensor, valid: Tensor, images: Tensor
    ) -> Tensor:
        """Sum of the votes of each prompt's exemplars: (P, Q)."""
        like = self.embed_exemplars(shown)
        every = torch.arange(len(shown), device=shown.device)
        products = (objects @ like.flatten(0, 1).T).unflatten(-1, like.shape[:2])
        return self.count_votes(products[images, :, every], shown, valid)
