"""The chain model as a GGUF file, written with the `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path

from chain_model import POSITIONS

BYTE, CONTROL, NORMAL = 6, 3, 1  # token types of GGUF


def save_gguf(served: Path, file: Path) -> Path:
    """`served`: an exported chain model. Its pieces become those of a SentencePiece-like model."""
    import gguf
    from safetensors.numpy import load_file

    weights = load_file(served / "model.safetensors")
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(512)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(64)
    _add_tokenizer(writer, served)
    for name, tensor in weights.items():
        writer.add_tensor(_renamed(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer, served: Path) -> None:
    made = json.loads((served / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = made["model"]["vocab"]
    special = {token["content"]: token["id"] for token in made["added_tokens"]}
    merged = {"".join(pair): i for i, pair in enumerate(made["model"]["merges"])}
    pieces = sorted({**vocab, **special}.items(), key=lambda item: item[1])
    texts, scores, kinds = [], [], []
    for piece, _ in pieces:
        texts.append(piece.replace(" ", "▁"))
        scores.append(-1.0 - merged.get(piece, 1000))  # the earliest merge first
        byte = piece.startswith("<0x")
        kinds.append(BYTE if byte else CONTROL if piece in special else NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    template = (served / "chat_template.jinja").read_text(encoding="utf-8")
    writer.add_chat_template(template)


def _renamed(name: str) -> str:
    for old, new in (
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
        ("model.layers", "blk"), ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"),
        ("mlp.", "ffn_"), ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"), ("_proj", ""),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name
