"""Tensor names and shapes of well-known models, for tests of the recipes; their weights are nobody's business here."""

from __future__ import annotations

from dataclasses import dataclass

from qconv.quantizers.recipes import ModelFacts, TensorInfo


@dataclass(frozen=True)
class Shapes:
    """A decoder in the manner of Llama; ``experts`` 0 means a dense feed-forward, ``fused`` one matrix for q, k and v and one for gate and up."""

    blocks: int
    width: int
    heads: int
    shared_heads: int
    feed_forward: int
    vocabulary: int
    head_width: int = 128
    experts: int = 0
    fused: bool = False
    tied: bool = False
    architecture: str = "llama"

    def facts(self) -> ModelFacts:
        """What the recipes know about it."""
        return ModelFacts(
            self.architecture, self.blocks, 0, (self.heads,), (self.shared_heads,), expert_count=self.experts
        )

    def tensors(self, source: str = "F16") -> list[TensorInfo]:
        """Every tensor, the order being that of a converter."""
        found = [TensorInfo("token_embd.weight", (self.vocabulary, self.width), source)]
        for block in range(self.blocks):
            for name, shape in self._block().items():
                kind = "F32" if len(shape) == 1 or name == "ffn_gate_inp" else source
                found.append(TensorInfo(f"blk.{block}.{name}.weight", shape, kind))
        found.append(TensorInfo("output_norm.weight", (self.width,), "F32"))
        if not self.tied:
            found.append(TensorInfo("output.weight", (self.vocabulary, self.width), source))
        return found

    def _block(self) -> dict[str, tuple[int, ...]]:
        queries, shared = self.heads * self.head_width, self.shared_heads * self.head_width
        width, hidden = self.width, self.feed_forward
        found: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,)}
        if self.fused:
            found |= {"attn_qkv": (queries + 2 * shared, width), "ffn_up": (2 * hidden, width)}
        else:
            found |= {"attn_q": (queries, width), "attn_k": (shared, width), "attn_v": (shared, width)}
        found["attn_output"] = (width, queries)
        if self.experts:
            stack = (self.experts,)
            found |= {"ffn_gate_inp": (self.experts, width), "ffn_down_exps": (*stack, width, hidden)}
            found |= {"ffn_gate_exps": (*stack, hidden, width), "ffn_up_exps": (*stack, hidden, width)}
        elif self.fused:
            found["ffn_down"] = (width, hidden)
        else:
            found |= {"ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden)}
        return found


LLAMA_7B = Shapes(32, 4096, 32, 32, 11008, 32000)
LLAMA_8B = Shapes(32, 4096, 32, 8, 14336, 128256)
LLAMA_70B = Shapes(80, 8192, 64, 8, 28672, 128256)
MIXTRAL = Shapes(32, 4096, 32, 8, 14336, 32000, experts=8)
# 128 experts in the manner of Qwen3-30B-A3B, heads as wide as width by heads
QWEN3_MOE = Shapes(48, 2048, 32, 4, 768, 151936, head_width=64, experts=128, architecture="qwen3moe")
PHI_3 = Shapes(32, 3072, 32, 32, 8192, 32064, head_width=96, fused=True, architecture="phi3")
SMOL = Shapes(30, 576, 9, 3, 1536, 49152, head_width=64, tied=True)
