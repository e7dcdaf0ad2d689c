"""Find and load a finished causal LM for reading: evaluation, comparison, export.

Training goes through `align.policy`; this is for models that nothing will train any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.checkpoint_files import step_of
from align.config_errors import UserError
from align.files import read_object
from align.model_safety import check_weights, code_options, weight_options
from align.tokenizer_identity import FILE, check_trained_with


def find_model(path: str | Path, field: str = "model") -> Path:
    """Folder of a model: the path itself, or `final` or the newest checkpoint of a run directory.

    A model folder has config.json or adapter_config.json. UserError when there is none.
    """
    path = Path(path)
    if not path.is_dir():
        fix = "check the path; a run that has finished holds final/"
        raise UserError(field, str(path), "no such folder", fix)
    checkpoints = sorted(path.glob("checkpoint-*"), key=step_of, reverse=True)
    for folder in (path, path / "final", *checkpoints):
        if (folder / "config.json").is_file() or is_adapter(folder):
            return folder
    raise UserError(
        field, str(path), "holds no model (config.json or adapter_config.json)",
        "give a model folder or a run directory that contains final/",
    )  # fmt: skip


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def only_adapter(path: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter and no whole model beside it."""
    return is_adapter(path) and not (Path(path) / "config.json").is_file()


def adapter_base(folder: str | Path) -> str:
    """The model that an adapter names as its base; "None" where it names none."""
    return str(read_object(Path(folder) / "adapter_config.json").get("base_model_name_or_path"))


def run_dir_of(path: str | Path) -> Path:
    """Run directory that a model belongs to: the parent of final/ or checkpoint-*, else itself."""
    path = Path(path)
    inner = path.name == "final" or path.name.startswith("checkpoint-")
    return path.resolve().parent if inner else path


def read_tokenizer(path: str | Path, field: str = "model") -> Any:
    """The tokenizer of a folder or hub id, as it was saved; UserError if it comes with code.

    AutoTokenizer goes by the model type in config.json and rebuilds a tokenizer of one's own beside
    a Qwen2 model as Qwen2Tokenizer, with other ids (transformers 5.24). A tokenizer that was saved
    as what its tokenizer.json says and nothing more is therefore read as that.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    saved = read_object(Path(path) / "tokenizer_config.json")
    generic = saved.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    options = code_options(path, field)
    if generic and (Path(path) / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(path))
    return AutoTokenizer.from_pretrained(str(path), **options)


def load_causal_lm(
    path: str | Path,
    *,
    device: Any = None,
    dtype: Any = "float32",
    merge: bool = True,
    chat_template: str | None = None,
    need_template: bool = True,
    field: str = "model",
) -> tuple[Any, Any]:
    """Model in eval mode without gradients, and its tokenizer with a pad token.

    path: as in `find_model`. An adapter is loaded on its base and, with merge, merged into it.
    dtype: a torch dtype or its name; "auto" keeps what is stored. chat_template: as in
    `align.chat.prepare_tokenizer`; need_template False accepts a tokenizer that has none.
    UserError if it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from align.chat import prepare_tokenizer

    folder = find_model(path, field)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    try:
        if is_adapter(folder):
            from peft import AutoPeftModelForCausalLM

            check_adapter_base(folder, field)
            options = adapter_options(folder, field)
            model: Any = AutoPeftModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, **options
            )
            model = model.merge_and_unload() if merge else model
        else:
            options = weight_options(folder, field)
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **options)
        tokenizer = read_tokenizer(tokenizer_folder(folder), field)
    except (OSError, ValueError, KeyError) as e:
        reason = f"cannot be loaded as a causal language model ({str(e).splitlines()[0]})"
        raise UserError(field, str(folder), reason, "check that the folder is complete") from e
    model.to(device or default_device()).eval().requires_grad_(False)
    if chat_template or tokenizer.chat_template or need_template:
        return model, prepare_tokenizer(tokenizer, chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def default_device() -> Any:
    """An accelerator where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def max_positions(model: Any) -> int | None:
    """Longest row that a model's position embeddings allow, or None where nothing limits it."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def tokenizer_folder(folder: Path) -> str:
    """The model's own folder, or that of its base where an adapter came without a tokenizer."""
    if (folder / "tokenizer_config.json").is_file() or not is_adapter(folder):
        return str(folder)
    return adapter_base(folder)


def adapter_options(folder: str | Path, field: str) -> dict[str, Any]:
    """Options for loading an adapter on its base; UserError if either brings what is refused."""
    check_weights(folder, field)
    return code_options(folder, field) | weight_options(adapter_base(folder), field)


def check_adapter_base(folder: str | Path, field: str) -> None:
    """Raise UserError if an adapter's base has another tokenizer now than it was trained with.

    A base that has no tokenizer of its own says nothing.
    """
    try:
        base = read_tokenizer(adapter_base(folder), field)
    except (OSError, ValueError, KeyError, TypeError):
        return
    if (Path(folder) / FILE).is_file():
        check_trained_with(folder, base, field)

