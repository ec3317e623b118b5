"""The nested dictionary itself: encoding, decoding at a level, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .codes import Codes
from .config import SAEConfig
from .kernel import CountActive, GroupDecode, JumpReLU, NestedLoss, Pattern, SparseEncode, make_pattern
from .select import Selector

THRESHOLD_MEMORY = 0.9
"""Share of the old value that batchtopk's running threshold keeps at each step."""


@dataclass(frozen=True)
class Losses:
    """Losses of one batch.

    Attributes:
        total: What is minimised (differentiable).
        level_fvu: [n_levels], squared error over the variance of the training tokens.
        l0: Active latents per token.
        codes: The batch's codes, without gradient.
        kept_errors: [rows, n_levels, d], errors of the first rows, without gradient; for the revival.
        pattern: Places of the entries.
    """

    total: Tensor
    level_fvu: Tensor
    l0: float
    codes: Codes
    kept_errors: Tensor
    pattern: Pattern


class MatryoshkaSAE(nn.Module):
    """A sparse dictionary whose first n latents, for each level n, are a dictionary of their own.

    Tokens are centred and scaled (`mean`, `scale`), encoded as a = (u - b_dec) . encoder + b_enc, cut down to a few
    active latents, and rebuilt as b_dec plus the sum of unit-norm decoder rows. `folded()` moves centring and scale
    into the weights, as checkpoints hold them.

    Attributes:
        config: Shape.
        encoder: [n_latents, d_in].
        b_enc: [n_latents].
        decoder: [n_latents, d_in], rows of norm one.
        b_dec: [d_in].
        threshold: [n_latents]; activations must exceed it (jumprelu, and batchtopk outside training).
        mean, scale: [d_in] and scalar; 0 and 1 once folded.

    References: B. Bussmann et al., 2025, arXiv 2503.17547 (nested dictionaries); L. Gao et al., 2024, arXiv
    2406.04093 (top-k, revival of dead latents).
    """

    mean: Tensor
    scale: Tensor
    level_widths: Tensor

    def __init__(self, config: SAEConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        n, d = config.n_latents, config.d_in
        draw = torch.Generator().manual_seed(seed)
        directions = F.normalize(torch.randn(n, d, generator=draw), dim=1)
        self.encoder = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.decoder = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(d))
        self.threshold = nn.Parameter(torch.zeros(n), requires_grad=config.activation == "jumprelu")
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("level_widths", torch.tensor(config.levels), persistent=False)
        self._select = Selector()

    @property
    def levels(self) -> tuple[int, ...]:
        """Widths at which the dictionary may be cut."""
        return self.config.levels

    def normalize(self, x_td: Tensor) -> Tensor:
        """Return tokens centred and scaled as in training, in the type of the weights."""
        if x_td.ndim != 2 or x_td.shape[1] != self.config.d_in:
            raise InputError(
                f"got tokens of shape {tuple(x_td.shape)}; this dictionary reads [n, {self.config.d_in}]. Was it "
                "trained at another site?"
            )
        return (x_td.to(self.encoder.dtype) - self.mean) / self.scale

    @torch.no_grad()
    def encode(self, x_td: Tensor, *, screen: torch.dtype | None = None) -> Codes:
        """Return the active latents of tokens.

        Args:
            x_td: Raw tokens [n, d_in].
            screen: Type in which candidates are searched, see `Selector.top_k`.

        Raises:
            InputError: wrong width, or NaN.

        Cost: one product [n, d_in] x [d_in, n_latents] and a selection; memory for 16 MB of pre-activations.
        """
        u = self.normalize(x_td)
        # One pass that cannot overflow by accident: an infinite or NaN entry makes the sum so.
        if not torch.isfinite(u.sum(dtype=torch.float64)):
            raise InputError(
                "the tokens hold NaN or infinite values; capture them again, or leave those rows out."
            )
        codes = self._chosen(u - self.b_dec, training=False, screen=screen)
        return Codes(codes.offsets, codes.cols, codes.vals, codes.n_latents).active()

    def _chosen(self, centred: Tensor, *, training: bool, screen: torch.dtype | None) -> Codes:
        c = self.config
        if c.activation == "topk":
            return self._select.top_k(centred, self.encoder, self.b_enc, k=c.k, screen=screen)
        if c.activation == "batchtopk" and training:
            return self._select.batch_top_k(centred, self.encoder, self.b_enc, k=c.k)
        return self._select.above(centred, self.encoder, self.b_enc, threshold_n=self.threshold)

    @torch.no_grad()
    def decode(self, codes: Codes, *, level: int | None = None) -> Tensor:
        """Return reconstructed tokens [n, d_in] from the first `level` latents (default: all).

        Raises:
            InputError: the dictionary was not trained to be cut there.
        """
        from .kernel import weighted_rows

        cut = codes.below(self.config.level(level))
        return self.denormalize(weighted_rows(self.decoder, cut.cols, cut.offsets, cut.vals) + self.b_dec)

    def denormalize(self, u_td: Tensor) -> Tensor:
        """Return tokens in the units of the site."""
        return u_td * self.scale + self.mean

    @torch.no_grad()
    def reconstruct_levels(self, codes: Codes) -> Iterator[tuple[int, Tensor]]:
        """Yield (level, reconstruction [n, d_in]) from coarse to fine; together they cost as much as one decode."""
        pattern = self.pattern(codes, self.level_widths)
        parts = GroupDecode.apply(codes.vals, self.decoder, pattern)
        out = self.b_dec.expand(codes.n_tokens, -1).clone()
        for i, level in enumerate(self.levels):
            out += parts[:, i]
            yield level, self.denormalize(out)

    def forward(self, x_td: Tensor) -> Tensor:
        """Return the reconstruction of raw tokens, without gradients (for those see `losses`)."""
        return self.decode(self.encode(x_td))

    def pattern(self, codes: Codes, levels: Tensor) -> Pattern:
        """Return the places of codes, grouped by levels."""
        return make_pattern(codes.offsets, codes.cols, n_latents=self.config.n_latents, levels=levels)

    def losses(
        self,
        u_td: Tensor,
        *,
        levels: Tensor | None = None,
        weights: tuple[float, ...] | None = None,
        l1: float = 0.0,
        jump_width: float = 0.1,
        jump_weight: float = 0.1,
        screen: torch.dtype | None = None,
        n_keep: int = 0,
    ) -> Losses:
        """Return the losses of a batch, differentiable with respect to all weights.

        Args:
            u_td: Normalised tokens (see `normalize`): mean zero and unit variance per channel on average, so that
                a squared error per entry is a share of variance.
            levels: Widths of the nested dictionaries (default: the trained ones).
            weights: Weight of each, summing to one.
            l1: Weight of the mean absolute activation over the mean token norm.
            jump_width: Window in which jumprelu's thresholds learn.
            jump_weight: Weight of (L0 / k - 1) squared, jumprelu only.
            screen: See `Selector.top_k`.
            n_keep: Rows whose errors are returned.

        Cost: the encoder's product; everything else is of the size of the active entries.
        """
        c = self.config
        levels = self.level_widths if levels is None else levels
        weights = c.level_weights if weights is None else weights
        centred = u_td - self.b_dec
        with torch.no_grad():
            if c.activation == "jumprelu":
                codes = self._select.above(
                    centred.detach(), self.encoder, self.b_enc, threshold_n=self.threshold - jump_width / 2
                )
            else:
                codes = self._chosen(centred.detach(), training=True, screen=screen)
        pattern = self.pattern(codes, levels)
        pre = SparseEncode.apply(u_td.detach(), self.encoder, self._bias(), codes.vals, pattern)
        extra = u_td.new_zeros(())
        if c.activation == "jumprelu":
            threshold = self.threshold[codes.cols]
            vals = JumpReLU.apply(pre, threshold, jump_width)
            count = CountActive.apply(pre.detach(), threshold, jump_width).sum() / len(u_td)
            extra = extra + jump_weight * (count / c.k - 1).square()
        else:
            vals = F.relu(pre)
        size = u_td.numel()
        loss, sums, kept = NestedLoss.apply(
            vals, self.decoder, self.b_dec, u_td.detach(), pattern, tuple(w / size for w in weights), n_keep
        )
        if l1:
            extra = extra + l1 * vals.sum() / (len(u_td) * c.d_in**0.5)
        found = Codes(codes.offsets, codes.cols, vals.detach(), c.n_latents)
        with torch.no_grad():
            l0 = float((found.vals > 0).sum()) / len(u_td)
            if c.activation == "batchtopk":
                self._follow_threshold(found)
        return Losses(loss + extra, sums / size, l0, found, kept, pattern)

    def _bias(self) -> Tensor:
        """Return the bias on uncentred tokens: its gradient reaches b_dec through the encoder, as it must.

        (u - b_dec) . W + b_enc = u . W + (b_enc - b_dec . W); the encoder's own share of that gradient is the
        outer product of the two biases' gradients.
        """
        return self.b_enc - self.encoder @ self.b_dec

    def _follow_threshold(self, codes: Codes) -> None:
        positive = codes.vals[codes.vals > 0]
        if len(positive):
            lowest = positive.min()
            first = not bool(self.threshold.any())
            self.threshold.data.copy_(
                lowest if first else torch.lerp(lowest, self.threshold.data[0], THRESHOLD_MEMORY)
            )

    def aux_loss(
        self,
        losses: Losses,
        u_td: Tensor,
        *,
        dead: Tensor,
        k: int,
        whole: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> Tensor:
        """Return how badly the dead latents of each level explain what that level leaves unexplained.

        Args:
            losses: Of the batch, with `kept_errors` for its first rows.
            u_td: Those rows, normalised.
            dead: int64, latents that have been silent for long.
            k: Dead latents used per token.
            whole: From what these rows are to be divided by to that of the whole batch, where others hold the rest of
                its rows; the losses of all parts then add up to that of the batch.

        References: L. Gao et al., 2024, arXiv 2406.04093, section A.2; here level by level.
        """
        encoder, decoder = self.encoder[dead], self.decoder[dead]
        bias = self._bias()[dead]
        k = min(k, len(dead))
        with torch.no_grad():
            codes = self._select.top_k(u_td, encoder, bias, k=k)
        widths = torch.searchsorted(dead, self.level_widths)
        pattern = make_pattern(codes.offsets, codes.cols, n_latents=len(dead), levels=widths)
        vals = F.relu(SparseEncode.apply(u_td, encoder, bias, codes.vals, pattern))
        parts = GroupDecode.apply(vals, decoder, pattern)
        errors = losses.kept_errors
        has_dead = widths.diff(prepend=widths.new_zeros(1)) > 0
        left = (errors - parts).square().sum((0, 2)) / whole(errors.square().sum((0, 2))).clamp_min(1e-12)
        return left[has_dead].mean()

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take out of the decoder's gradient what would only change the norms of its rows."""
        grad = self.decoder.grad
        assert grad is not None
        along = (grad * self.decoder).sum(1, keepdim=True)
        grad.addcmul_(self.decoder, along, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give the decoder's rows norm one."""
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def folded(self) -> MatryoshkaSAE:
        """Return the same dictionary on raw tokens, centring and scale being part of its weights.

        u = (x - mean) / scale gives a = (x - b) . encoder + scale b_enc, all over scale, with b = mean + scale b_dec:
        with activations counted in raw units (times scale), encoder and decoder stay as they are.
        """
        out = MatryoshkaSAE(self.config).to(self.encoder.dtype)
        out.load_state_dict(self.state_dict())
        out.b_enc.mul_(self.scale)
        out.threshold.mul_(self.scale)
        out.b_dec.copy_(self.mean + self.scale * self.b_dec)
        out.mean.zero_()
        out.scale.fill_(1.0)
        return out.to(self.encoder.device)
