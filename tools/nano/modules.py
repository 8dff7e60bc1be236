"""PyTorch definitions of the official networks: same tensor names, same shapes, same arithmetic, every dimension from the constructor.

`SanmEncoder` (linguistic), `S3Encoder` (semantic), `Step1` (language model), `Flow`, `HiFT`, `CamPlus` load the official
checkpoints by name and reproduce their values (tests/tools/test_nano_modules.py).
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


# ---------------------------------------------------------------------------------------------------------------- linguistic encoder
class SanmLayer(nn.Module):
    def __init__(self, inputs, width, heads, hidden, kernel=11):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(inputs, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.self_attn = nn.ModuleDict(dict(
            linear_q_k_v=nn.Linear(inputs, 3 * width), linear_out=nn.Linear(width, width),
            fsmn_block=nn.Conv1d(width, width, kernel, groups=width, padding=(kernel - 1) // 2, bias=False)))
        self.feed_forward = nn.ModuleDict(dict(w_1=nn.Linear(width, hidden), w_2=nn.Linear(hidden, width)))
        self.residual = inputs == width

    def forward(self, x, rows, cached, dropout=0.0):
        """x [B, C, 9, d]; rows [B, C, 9] and cached [B, C, 16] say which rows exist."""
        B, C, W, _ = x.shape
        at = self.self_attn
        q, k, v = at["linear_q_k_v"](self.norm1(x)).chunk(3, -1)
        d = v.shape[-1]
        value = v * rows[..., None]
        memory = at["fsmn_block"](value.reshape(B * C, W, d).transpose(1, 2)).transpose(1, 2).reshape(B, C, W, d) + value

        def look_back(t):   # the first four rows of the four windows before
            f = F.pad(t[:, :, :4], (0, 0, 0, 0, 4, 0))
            return torch.stack([f[:, i:i + C] for i in range(4)], 2).reshape(B, C, 16, d)

        split = lambda t: t.reshape(B * C, -1, self.heads, d // self.heads).transpose(1, 2)
        mask = torch.cat([cached, rows], 2).reshape(B * C, 1, 1, 16 + W)
        y = F.scaled_dot_product_attention(split(q), split(torch.cat([look_back(k), k], 2)), split(torch.cat([look_back(v), v], 2)), attn_mask=mask)
        y = at["linear_out"](y.transpose(1, 2).reshape(B, C, W, d)) + memory
        y = F.dropout(y, dropout, self.training)
        x = x + y if self.residual else y
        h = self.feed_forward["w_2"](F.dropout(F.relu(self.feed_forward["w_1"](self.norm2(x))), dropout, self.training))
        return x + F.dropout(h, dropout, self.training)


class SanmEncoder(nn.Module):
    """Streaming Paraformer encoder in its exact parallel form: every 240 ms window of an utterance at once."""

    def __init__(self, width=512, heads=4, hidden=2048, blocks=50, inputs=560):
        super().__init__()
        self.width, self.inputs = width, inputs
        self.encoder = nn.ModuleDict(dict(
            encoders0=nn.ModuleList([SanmLayer(inputs, width, heads, hidden)]),
            encoders=nn.ModuleList([SanmLayer(width, width, heads, hidden) for _ in range(blocks - 1)]),
            after_norm=nn.LayerNorm(width, eps=1e-12)))

    def forward(self, feats, lengths, dropout=0.0):
        """feats [B, T, 560] after CMVN, lengths [B] -> [B, T, width]."""
        B, T, D = feats.shape
        pad = -T % 4
        half = D // 2
        position = torch.arange(1, T + 1, dtype=torch.float32)[:, None]
        angle = position * torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))[None]
        x = feats * self.width ** 0.5 + torch.cat([angle.sin(), angle.cos()], 1)
        valid = torch.arange(T)[None] < lengths[:, None]
        x = F.pad(x * valid[..., None], (0, 0, 5, pad))
        C = (T + pad) // 4
        window = x.unfold(1, 9, 4).transpose(2, 3).contiguous()
        rows = F.pad(valid, (5, pad), value=True).unfold(1, 9, 4).clone()
        if pad:
            rows[:, -1, 9 - pad:] = False
        index = torch.arange(C)
        cached = (index[:, None] - 4 + torch.arange(16)[None] // 4 >= 0)[None].expand(B, C, 16)
        for layer in [*self.encoder["encoders0"], *self.encoder["encoders"]]:
            window = layer(window, rows, cached, dropout)
        return self.encoder["after_norm"](window[:, :, 5:].reshape(B, C * 4, -1)[:, :T])


# ------------------------------------------------------------------------------------------------------------------ semantic encoder
class S3Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict(dict(query=nn.Linear(width, width), key=nn.Linear(width, width, bias=False),
                                       value=nn.Linear(width, width), out=nn.Linear(width, width)))
        self.attn_ln, self.mlp_ln = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, mask, dropout=0.0):
        B, T, d = x.shape
        y = self.attn_ln(x)
        split = lambda t: t.reshape(B, T, self.heads, d // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(*(split(self.attn[n](y)) for n in ("query", "key", "value")), attn_mask=mask)
        x = x + F.dropout(self.attn["out"](y.transpose(1, 2).reshape(B, T, d)), dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_ln(x)), dropout, self.training)


class S3Encoder(nn.Module):
    """CosyVoice speech_tokenizer_v1 (25 Hz): two strided convolutions, transformer blocks, codebook on L2-normalised vectors."""

    def __init__(self, width=1280, heads=20, blocks=6, codes=4096, mels=128, context=1500):
        super().__init__()
        self.encoder = nn.ModuleDict(dict(conv1=nn.Conv1d(mels, width, 3, 2, 1), conv2=nn.Conv1d(width, width, 3, 2, 1),
                                          blocks=nn.ModuleList([S3Block(width, heads) for _ in range(blocks)])))
        rate = torch.exp(-math.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
        angle = torch.arange(context)[:, None] * rate[None]
        self.register_buffer("positional_embedding", torch.cat([angle.sin(), angle.cos()], 1))
        self.register_buffer("embed", torch.zeros(codes, width))

    def forward(self, mel, lengths, dropout=0.0):
        """mel [B, 128, T], lengths [B] in mel frames -> hidden [B, ceil(ceil(T/2)/2), width], mask of valid rows."""
        keep = lambda t, n: t * (torch.arange(t.shape[-1])[None] < n[:, None])[:, None]
        x = F.gelu(self.encoder["conv1"](keep(mel, lengths)))
        lengths = (lengths - 1) // 2 + 1
        x = F.gelu(self.encoder["conv2"](keep(x, lengths))).transpose(1, 2)
        lengths = (lengths - 1) // 2 + 1
        x = x + self.positional_embedding[:x.shape[1]]
        valid = torch.arange(x.shape[1])[None] < lengths[:, None]
        for block in self.encoder["blocks"]:
            x = block(x, valid[:, None, None], dropout)
        return x, valid

    def quantise(self, hidden):
        """-> (L2-normalised vectors, ids)."""
        h = F.normalize(hidden, dim=-1, eps=1e-12)
        return h, (2 * h @ self.embed.T - (self.embed ** 2).sum(1)).argmax(-1)


# ------------------------------------------------------------------------------------------------------------------- language model
def alibi_slopes(heads: int) -> torch.Tensor:
    c = 1 << (heads.bit_length() - 1)
    head = [2.0 ** (-8.0 * (h + 1) / c) for h in range(c)]
    return torch.tensor(head + [2.0 ** (-4.0 * (2 * h + 1) / c) for h in range(heads - c)], dtype=torch.float64).float()


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        r = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return x * r.to(x.dtype) * self.weight


class Step1Layer(nn.Module):
    def __init__(self, hidden, inner, heads, groups, eps):
        super().__init__()
        d = hidden // heads
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.heads, self.groups = heads, groups
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.self_attn = nn.ModuleDict(dict(q_proj=linear(hidden, hidden), k_proj=linear(hidden, groups * d),
                                            v_proj=linear(hidden, groups * d), o_proj=linear(hidden, hidden)))
        self.mlp = nn.ModuleDict(dict(gate_proj=linear(hidden, inner), up_proj=linear(hidden, inner), down_proj=linear(inner, hidden)))

    def forward(self, x, bias, cache=None, dropout=0.0):
        B, T, H = x.shape
        y = self.input_layernorm(x)
        a = self.self_attn
        split = lambda t, n: t.reshape(B, T, n, H // self.heads).transpose(1, 2)
        q, k, v = split(a["q_proj"](y), self.heads), split(a["k_proj"](y), self.groups), split(a["v_proj"](y), self.groups)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(B, T, H)
        x = x + F.dropout(a["o_proj"](y), dropout, self.training)
        y = self.post_attention_layernorm(x)
        m = self.mlp
        return x + F.dropout(m["down_proj"](F.silu(m["gate_proj"](y)) * m["up_proj"](y)), dropout, self.training)


class Step1(nn.Module):
    """Step-1: RMSNorm, grouped-query attention with the square-root ALiBi bias, SwiGLU, no positions, untied head."""

    def __init__(self, vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_attention_groups,
                 rms_norm_eps=1e-5, **_):
        super().__init__()
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding(vocab_size, hidden_size),
            layers=nn.ModuleList([Step1Layer(hidden_size, intermediate_size, num_attention_heads, num_attention_groups, rms_norm_eps)
                                  for _ in range(num_hidden_layers)]),
            norm=RmsNorm(hidden_size, rms_norm_eps)))
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
        self.slopes = alibi_slopes(num_attention_heads)

    def hidden(self, ids, cache=None, dropout=0.0):
        """ids [B, T] -> [B, T, H] after the final norm; `cache` is a list of one list per layer and grows."""
        T = ids.shape[1]
        past = cache[0][0].shape[2] if cache and cache[0] else 0
        i, j = torch.arange(past, past + T)[:, None], torch.arange(past + T)[None]
        bias = -self.slopes[:, None, None] * (i - j).clamp(min=0).float().sqrt()[None]
        bias = bias.masked_fill((j > i)[None], float("-inf"))[None].to(self.lm_head.weight.dtype)
        x = F.dropout(self.model["embed_tokens"](ids), dropout, self.training)
        for n, layer in enumerate(self.model["layers"]):
            x = layer(x, bias, cache[n] if cache is not None else None, dropout)
        return self.model["norm"](x)

    def forward(self, ids, cache=None):
        return self.lm_head(self.hidden(ids, cache))

    @torch.no_grad()
    def greedy(self, ids, limit, stops=(3,), allow=None):
        """Most likely continuation as a list; `allow` is an additive mask over the vocabulary."""
        cache, out, x = [[] for _ in self.model["layers"]], [], torch.tensor([ids])
        for _ in range(limit):
            logits = self.forward(x, cache)[0, -1] if x.shape[1] == 1 else self.lm_head(self.hidden(x, cache)[:, -1])[0]
            token = int((logits if allow is None else logits + allow).argmax())
            out.append(token)
            if token in stops:
                break
            x = torch.tensor([[token]])
        return out


# --------------------------------------------------------------------------------------------------------------------- flow matching
class RelPosLayer(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        at = nn.Module()
        for n in ("q", "k", "v", "out"):
            setattr(at, "linear_" + n, nn.Linear(width, width))
        at.linear_pos = nn.Linear(width, width, bias=False)
        at.pos_bias_u, at.pos_bias_v = (nn.Parameter(torch.randn(heads, width // heads) * 0.02) for _ in range(2))
        self.self_attn = at
        self.feed_forward = nn.ModuleDict(dict(w_1=nn.Linear(width, hidden), w_2=nn.Linear(hidden, width)))
        self.norm_mha, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, table, mask):
        B, T, W = x.shape
        at, h, d = self.self_attn, self.heads, x.shape[-1] // self.heads
        y = self.norm_mha(x)
        q = at.linear_q(y).reshape(B, T, h, d)
        k, v = (l(y).reshape(B, T, h, d).transpose(1, 2) for l in (at.linear_k, at.linear_v))
        p = at.linear_pos(table).reshape(1, -1, h, d).transpose(1, 2)
        plain = (q + at.pos_bias_u).transpose(1, 2) @ k.transpose(-1, -2)
        shifted = (q + at.pos_bias_v).transpose(1, 2) @ p.transpose(-1, -2)            # [B, h, T, 2T-1], column r = T-1 … -(T-1)
        i = torch.arange(T)
        index = (T - 1 - (i[:, None] - i[None]))
        shifted = shifted.gather(-1, index[None, None].expand(B, h, T, T))
        score = ((plain + shifted) / d ** 0.5).masked_fill(~mask[:, None, None], float("-inf"))
        y = (score.softmax(-1) @ v).transpose(1, 2).reshape(B, T, W)
        x = x + at.linear_out(y)
        return x + self.feed_forward["w_2"](F.silu(self.feed_forward["w_1"](self.norm_ff(x))))


class FlowEncoder(nn.Module):
    def __init__(self, inputs, width, heads, hidden, blocks):
        super().__init__()
        self.width = width
        self.embed = nn.ModuleDict(dict(out=nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width))))
        self.encoders = nn.ModuleList([RelPosLayer(width, heads, hidden) for _ in range(blocks)])
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x, mask):
        T = x.shape[1]
        x = self.embed["out"](x) * self.width ** 0.5
        r = torch.arange(T - 1, -T, -1, dtype=torch.float32)[:, None]
        omega = torch.exp(torch.arange(0, self.width, 2, dtype=torch.float32) * -(math.log(10000.0) / self.width))
        table = torch.zeros(2 * T - 1, self.width)
        table[:, 0::2], table[:, 1::2] = (r * omega).sin(), (r * omega).cos()
        for layer in self.encoders:
            x = layer(x, table, mask)
        return self.after_norm(x)


class Block1D(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.Mish())

    def forward(self, x, mask):
        y = self.block[0](x * mask)
        if bool((mask == 1).all()):
            return self.block[2](self.block[1](y))
        B, C, T = y.shape                                              # GroupNorm over the frames that exist
        g, m = y.reshape(B, 8, C // 8, T), mask[:, None]
        n = m.sum(-1, keepdim=True) * (C // 8)
        mean = (g * m).sum((2, 3), keepdim=True) / n
        var = (((g - mean) * m) ** 2).sum((2, 3), keepdim=True) / n
        y = ((g - mean) * (var + 1e-5).rsqrt()).reshape(B, C, T) * self.block[1].weight[:, None] + self.block[1].bias[:, None]
        return self.block[2](y) * mask


class Resnet1D(nn.Module):
    def __init__(self, inputs, outputs, time):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, outputs))
        self.block1, self.block2, self.res_conv = Block1D(inputs, outputs), Block1D(outputs, outputs), nn.Conv1d(inputs, outputs, 1)

    def forward(self, x, mask, t):
        h = self.block1(x, mask) + self.mlp(t)[:, :, None]
        return self.block2(h, mask) + self.res_conv(x * mask)


class Projection(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x):
        return F.gelu(self.proj(x))


class Transformer1D(nn.Module):
    def __init__(self, width, heads, head_dim):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        linear = lambda: nn.Linear(width, inner, bias=False)
        self.attn1 = nn.ModuleDict(dict(to_q=linear(), to_k=linear(), to_v=linear(), to_out=nn.ModuleList([nn.Linear(inner, width)])))
        self.ff = nn.ModuleDict(dict(net=nn.ModuleList([Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])))

    def forward(self, x, mask):
        B, T, _ = x.shape
        y = self.norm1(x)
        split = lambda t: t.reshape(B, T, self.heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(*(split(self.attn1[n](y)) for n in ("to_q", "to_k", "to_v")), attn_mask=mask)
        x = x + self.attn1["to_out"][0](y.transpose(1, 2).reshape(B, T, -1))
        return x + self.ff["net"][2](self.ff["net"][0](self.norm3(x)))


class Resample1D(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


class Estimator(nn.Module):
    """The velocity network: a 1-D U-Net with transformer blocks."""

    def __init__(self, inputs=320, outputs=80, channels=(256, 256), blocks=4, mid_blocks=12, heads=8, head_dim=64):
        super().__init__()
        time = channels[0] * 4
        self.inputs = inputs
        self.time_mlp = nn.ModuleDict(dict(linear_1=nn.Linear(inputs, time), linear_2=nn.Linear(time, time)))
        level = lambda i, o: [Resnet1D(i, o, time), nn.ModuleList([Transformer1D(o, heads, head_dim) for _ in range(blocks)])]
        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width = inputs
        for n, c in enumerate(channels):
            last = n == len(channels) - 1
            self.down_blocks.append(nn.ModuleList(level(width, c) + [nn.Conv1d(c, c, 3, padding=1) if last else Resample1D(nn.Conv1d(c, c, 3, 2, 1))]))
            width = c
        for _ in range(mid_blocks):
            self.mid_blocks.append(nn.ModuleList(level(width, width)))
        back = list(channels[::-1]) + [channels[0]]
        for n in range(len(back) - 1):
            last = n == len(back) - 2
            c = back[n + 1]
            self.up_blocks.append(nn.ModuleList(level(2 * back[n], c) + [nn.Conv1d(c, c, 3, padding=1) if last else Resample1D(nn.ConvTranspose1d(c, c, 4, 2, 1))]))
        self.final_block, self.final_proj = Block1D(back[-1], back[-1]), nn.Conv1d(back[-1], outputs, 1)

    def forward(self, x, mask, mu, t, speaker, cond):
        """x, mu, cond [B, 80, F]; mask [B, 1, F]; t [B]; speaker [B, 80] -> velocity [B, 80, F]."""
        half = self.inputs // 2
        f = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
        e = 1000.0 * t[:, None] * f[None]
        t = self.time_mlp["linear_2"](F.silu(self.time_mlp["linear_1"](torch.cat([e.sin(), e.cos()], 1))))
        x = torch.cat([x, mu, speaker[:, :, None].expand(-1, -1, x.shape[-1]), cond], 1)

        def stage(x, mask, resnet, transformers):
            x = resnet(x, mask, t).transpose(1, 2)
            attend = None if bool((mask == 1).all()) else mask[:, :, None].bool()
            for block in transformers:
                x = block(x, attend)
            return x.transpose(1, 2)

        skips, masks = [], [mask]
        for resnet, transformers, down in self.down_blocks:
            x = stage(x, masks[-1], resnet, transformers)
            skips.append((x, masks[-1]))
            x = down(x * masks[-1])
            if isinstance(down, Resample1D):
                masks.append(masks[-1][:, :, ::2])
        for resnet, transformers in self.mid_blocks:
            x = stage(x, masks[-1], resnet, transformers)
        for resnet, transformers, up in self.up_blocks:
            skip, m = skips.pop()
            x = stage(torch.cat([x[:, :, :skip.shape[-1]], skip], 1), m, resnet, transformers)
            x = up(x * m)
        return self.final_proj(self.final_block(x, mask) * mask) * mask


class Flow(nn.Module):
    """Tokens -> mel by conditional flow matching (names of flow.pt)."""

    def __init__(self, vocab_size=5120, input_size=512, width=512, heads=8, hidden=2048, blocks=6, speaker=192, rate=41.666666666666664,
                 estimator=None, cfg_rate=0.7):
        super().__init__()
        self.rate, self.cfg_rate = rate, cfg_rate
        self.input_embedding = nn.Embedding(vocab_size, input_size)
        self.encoder = FlowEncoder(input_size, width, heads, hidden, blocks)
        self.encoder_proj = nn.Linear(width, 80)
        model = []
        for _ in range(4):
            model += [nn.Conv1d(80, 80, 3, padding=1), nn.GroupNorm(1, 80), nn.Mish()]
        self.length_regulator = nn.ModuleDict(dict(model=nn.Sequential(*model, nn.Conv1d(80, 80, 1))))
        self.spk_embed_affine_layer = nn.Linear(speaker, 80)
        self.decoder = nn.ModuleDict(dict(estimator=Estimator(**(estimator or {}))))

    def frames(self, tokens: int) -> int:
        return int(tokens / self.rate * 22050 / 256)

    @staticmethod
    def stretch(h, frames):
        """[1, T, 80] -> [1, 80, frames], linear with half-pixel centres."""
        return F.interpolate(h.transpose(1, 2), size=frames, mode="linear") if frames and h.shape[1] else h.new_zeros(1, 80, 0)

    def mu(self, token, prompt_tokens, prompt_frames, frames):
        """token [1, P+T] -> [1, 80, prompt_frames + frames]."""
        mask = torch.ones(1, token.shape[1], dtype=torch.bool)
        h = self.encoder_proj(self.encoder(self.input_embedding(token.clamp(min=0)), mask))
        x = torch.cat([self.stretch(h[:, :prompt_tokens], prompt_frames), self.stretch(h[:, prompt_tokens:], frames)], 2)
        return self.length_regulator["model"](x)

    def speaker(self, embedding):
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1, eps=1e-12))

    @torch.no_grad()
    def forward(self, token, prompt_token, prompt_feat, embedding, z, steps=10):
        """-> mel [1, 80, frames(token)]. z [1, 80, prompt frames + frames] is the initial noise."""
        prompt_frames, frames = prompt_feat.shape[1], self.frames(token.shape[1])
        mu = self.mu(torch.cat([prompt_token, token], 1), prompt_token.shape[1], prompt_frames, frames)
        cond = torch.zeros_like(mu)
        cond[:, :, :prompt_frames] = prompt_feat.transpose(1, 2)
        speaker, mask = self.speaker(embedding), torch.ones(1, 1, mu.shape[2])
        span = 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * math.pi)
        x, t, dt = z, span[0], span[1] - span[0]
        zero = torch.zeros_like
        for k in range(1, steps + 1):
            if self.cfg_rate > 0:
                pair = lambda a, b: torch.cat([a, b])
                v = self.decoder["estimator"](pair(x, x), pair(mask, mask), pair(mu, zero(mu)), t.expand(2), pair(speaker, zero(speaker)), pair(cond, zero(cond)))
                v = (1 + self.cfg_rate) * v[:1] - self.cfg_rate * v[1:]
            else:
                v = self.decoder["estimator"](x, mask, mu, t.expand(1), speaker, cond)
            x, t = x + dt * v, t + dt
            if k < steps:
                dt = span[k + 1] - t
        return x[:, :, prompt_frames:]


# --------------------------------------------------------------------------------------------------------------------------- vocoder
def normed(conv):
    return torch.nn.utils.weight_norm(conv)


class Snake(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        a = self.alpha[:, None]
        return x + torch.sin(a * x) ** 2 / (a + 1e-9)


class SnakeResBlock(nn.Module):
    def __init__(self, channels, kernel, dilations):
        super().__init__()
        conv = lambda d: normed(nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel * d - d) // 2))
        self.convs1, self.convs2 = nn.ModuleList(conv(d) for d in dilations), nn.ModuleList(conv(1) for _ in dilations)
        self.activations1, self.activations2 = (nn.ModuleList(Snake(channels) for _ in dilations) for _ in range(2))

    def forward(self, x):
        for c1, c2, a1, a2 in zip(self.convs1, self.convs2, self.activations1, self.activations2):
            x = x + c2(a2(c1(a1(x))))
        return x


class HiFT(nn.Module):
    """Mel -> wave at 22.05 kHz: harmonic source, two upsamplings, inverse STFT (names of hift.pt)."""

    def __init__(self, base=512, cond=512, rates=(8, 8), up_kernels=(16, 16), kernels=(3, 7, 11), dilations=((1, 3, 5),) * 3,
                 source_kernels=(7, 11), source_dilations=((1, 3, 5),) * 2, harmonics=8):
        super().__init__()
        self.rates, self.kernels, self.harmonics = rates, kernels, harmonics
        self.hop = math.prod(rates) * 4
        net = []
        for n in range(5):
            net += [normed(nn.Conv1d(80 if n == 0 else cond, cond, 3, padding=1)), nn.ELU()]
        self.f0_predictor = nn.ModuleDict(dict(condnet=nn.Sequential(*net), classifier=nn.Linear(cond, 1)))
        self.m_source = nn.ModuleDict(dict(l_linear=nn.Linear(harmonics + 1, 1)))
        self.conv_pre = normed(nn.Conv1d(80, base, 7, padding=3))
        self.ups = nn.ModuleList(normed(nn.ConvTranspose1d(base >> i, base >> (i + 1), k, u, (k - u) // 2)) for i, (u, k) in enumerate(zip(rates, up_kernels)))
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (k, d) in enumerate(zip(source_kernels, source_dilations)):
            u = math.prod(rates[i + 1:])
            width = base >> (i + 1)
            self.source_downs.append(nn.Conv1d(18, width, 1) if u == 1 else nn.Conv1d(18, width, 2 * u, u, u // 2))
            self.source_resblocks.append(SnakeResBlock(width, k, d))
        self.resblocks = nn.ModuleList(SnakeResBlock(base >> (i + 1), k, d) for i in range(len(rates)) for k, d in zip(kernels, dilations))
        self.conv_post = normed(nn.Conv1d(base >> len(rates), 18, 7, padding=3))

    def f0(self, mel):
        return self.f0_predictor["classifier"](self.f0_predictor["condnet"](mel).transpose(1, 2)).squeeze(-1).abs()

    def source(self, f0, phase, noise):
        """f0 [B, F], phase [B, 9, 1], noise [B, 9, 256 F] -> [B, 1, 256 F]."""
        up = f0.repeat_interleave(self.hop, 1)[:, None]
        k = torch.arange(1, self.harmonics + 2, dtype=torch.float64)[None, :, None]
        cycles = torch.cumsum(up.double() * k / 22050, -1) % 1
        phase = phase.clone()
        phase[:, 0] = 0
        sine = 0.1 * torch.sin(2 * math.pi * cycles.float() + phase)
        voiced = (up > 10).float()
        wave = voiced * sine + (voiced * 0.003 + (1 - voiced) * 0.1 / 3) * noise
        return torch.tanh(self.m_source["l_linear"](wave.transpose(1, 2))).transpose(1, 2)

    def decode(self, mel, source):
        window = torch.hann_window(16)
        st = torch.view_as_real(torch.stft(source[:, 0], 16, 4, 16, window, return_complex=True))
        st = torch.cat([st[..., 0], st[..., 1]], 1)
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[i](self.source_downs[i](st))
            n = len(self.kernels)
            x = sum(self.resblocks[i * n + j](x) for j in range(n)) / n
        x = self.conv_post(F.leaky_relu(x, 0.01))
        magnitude, phase = x[:, :9].exp().clamp(max=100), torch.sin(x[:, 9:])
        wave = torch.istft(torch.complex(magnitude * phase.cos(), magnitude * phase.sin()), 16, 4, 16, window)
        return wave.clamp(-0.99, 0.99)

    def forward(self, mel, phase, noise, f0=None):
        return self.decode(mel, self.source(self.f0(mel) if f0 is None else f0, phase, noise))


# ------------------------------------------------------------------------------------------------------------------- speaker encoder
class NormRelu(nn.Module):
    def __init__(self, channels, relu=True, affine=True):
        super().__init__()
        self.batchnorm, self.relu = nn.BatchNorm1d(channels, affine=affine), relu

    def forward(self, x):
        x = self.batchnorm(x)
        return F.relu(x) if self.relu else x


class FcmBlock(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        conv = lambda s: nn.Conv2d(channels, channels, 3, (s, 1), 1, bias=False)
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(stride), nn.BatchNorm2d(channels), conv(1), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, (stride, 1), bias=False), nn.BatchNorm2d(channels)) if stride != 1 else nn.Sequential()

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class CamDense(nn.Module):
    def __init__(self, inputs, bottleneck, growth, kernel, dilation, reduction):
        super().__init__()
        self.nonlinear1, self.nonlinear2 = NormRelu(inputs), NormRelu(bottleneck)
        self.linear1 = nn.Conv1d(inputs, bottleneck, 1, bias=False)
        self.cam_layer = nn.ModuleDict(dict(
            linear_local=nn.Conv1d(bottleneck, growth, kernel, padding=(kernel - 1) // 2 * dilation, dilation=dilation, bias=False),
            linear1=nn.Conv1d(bottleneck, bottleneck // reduction, 1), linear2=nn.Conv1d(bottleneck // reduction, growth, 1)))

    def forward(self, x):
        u = self.nonlinear2(self.linear1(self.nonlinear1(x)))
        cam = self.cam_layer
        segment = F.avg_pool1d(u, 100, 100, ceil_mode=True).repeat_interleave(100, -1)[..., :u.shape[-1]]
        gate = torch.sigmoid(cam["linear2"](F.relu(cam["linear1"](u.mean(-1, keepdim=True) + segment))))
        return torch.cat([x, cam["linear_local"](u) * gate], 1)


class CamPlus(nn.Module):
    """CAM++ speaker encoder, [B, T, 80] mean-subtracted filter bank -> [B, 192]."""

    def __init__(self, init=128, growth=32, factor=4, layers=(12, 24, 16), dilations=(1, 2, 2), outputs=192, head=32, reduction=2):
        super().__init__()
        self.head = nn.ModuleDict(dict(
            conv1=nn.Conv2d(1, head, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(head),
            layer1=nn.Sequential(FcmBlock(head, 2), FcmBlock(head, 1)), layer2=nn.Sequential(FcmBlock(head, 2), FcmBlock(head, 1)),
            conv2=nn.Conv2d(head, head, 3, (2, 1), 1, bias=False), bn2=nn.BatchNorm2d(head)))
        x = nn.ModuleDict()
        unit = lambda i, o, k=1, s=1, p=0: nn.ModuleDict(dict(linear=nn.Conv1d(i, o, k, s, p, bias=False)))
        x["tdnn"] = unit(head * 10, init, 5, 2, 2)
        x["tdnn"]["nonlinear"] = NormRelu(init)
        width = init
        for b, (count, dilation) in enumerate(zip(layers, dilations), 1):
            block = nn.ModuleDict()
            for i in range(count):
                block[f"tdnnd{i + 1}"] = CamDense(width, growth * factor, growth, 3, dilation, reduction)
                width += growth
            x[f"block{b}"] = block
            x[f"transit{b}"] = unit(width, width // 2)
            x[f"transit{b}"]["nonlinear"] = NormRelu(width)
            width //= 2
        x["out_nonlinear"] = NormRelu(width)
        x["dense"] = unit(2 * width, outputs)
        x["dense"]["nonlinear"] = NormRelu(outputs, relu=False, affine=False)
        self.xvector, self.blocks = x, len(layers)

    def forward(self, feats):
        h = self.head
        x = F.relu(h["bn1"](h["conv1"](feats.transpose(1, 2)[:, None])))
        x = F.relu(h["bn2"](h["conv2"](h["layer2"](h["layer1"](x)))))
        x = x.flatten(1, 2)
        v = self.xvector
        x = v["tdnn"]["nonlinear"](v["tdnn"]["linear"](x))
        for b in range(1, self.blocks + 1):
            for layer in v[f"block{b}"].values():
                x = layer(x)
            t = v[f"transit{b}"]
            x = t["linear"](t["nonlinear"](x))
        x = v["out_nonlinear"](x)
        x = torch.cat([x.mean(-1), x.std(-1, unbiased=True)], 1)
        return v["dense"]["nonlinear"](v["dense"]["linear"](x[..., None])[..., 0])


# ------------------------------------------------------------------------------------------------------------------------ end of turn
class TurnEndNet(nn.Module):
    """The latest states of the linguistic encoder and the prosody beside them -> logit that the utterance is complete."""

    ROWS, PROSODY = 32, 9

    def __init__(self, width=160, inner=48, memory=64, hidden=32):
        super().__init__()
        self.add_module("in", nn.Linear(width + self.PROSODY, inner))
        self.gru = nn.GRU(inner, memory, batch_first=True)
        self.hidden, self.out = nn.Linear(memory + 1, hidden), nn.Linear(hidden, 1)

    def forward(self, seen, rows, seconds, dropout=0.0):
        """seen [B, 32, width + 9], the utterance's end at the end; rows [B] of them exist; seconds [B] -> [B]."""
        there = (torch.arange(self.ROWS, device=seen.device)[None] >= self.ROWS - rows[:, None])[..., None]
        drop = lambda x, share=dropout: F.dropout(x, share, self.training)
        seen = torch.cat([drop(seen[..., :-self.PROSODY]), drop(seen[..., -self.PROSODY:], dropout / 2)], -1)
        h = F.relu(getattr(self, "in")(seen)) * there
        last = self.gru(drop(h))[1][0]
        x = torch.cat([last, 0.5 * torch.log1p(seconds)[:, None]], 1)
        return self.out(drop(F.relu(self.hidden(drop(x)))))[:, 0]


class TurnEnd(nn.Module):
    """Several of them, whose logits are averaged; the last `melodies` hear the prosody alone. Not of the official models; the engine's is services/tokenizer/model/turn_end.hpp."""

    ROWS, PROSODY = TurnEndNet.ROWS, TurnEndNet.PROSODY
    MELODY = dict(inner=32, memory=48, hidden=24)

    def __init__(self, width=160, count=2, melodies=1, **sizes):
        super().__init__()
        self.nets = nn.ModuleList([TurnEndNet(width, **sizes) for _ in range(count)] + [TurnEndNet(width, **self.MELODY) for _ in range(melodies)])
        for net in self.nets[count:]:     # trained with nothing in the place of the states, this stays so
            nn.init.zeros_(getattr(net, "in").weight[:, :width])

    def forward(self, seen, rows, seconds):
        return torch.stack([net(seen, rows, seconds) for net in self.nets]).mean(0)
