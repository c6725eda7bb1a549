"""The tokenizer of a checkpoint folder: token ids are those of its tokenizer.json, whatever class is to load it.

transformers rebuilds many tokenizers from vocabulary and merges after a recipe of their class, which changes ids behind
special tokens, at the start of a text, and where a normaliser is involved. So the file is read with the library
`tokenizers` alone, and transformers' object is made around it for two things: the names of special tokens, and the
rendering of chat templates.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from mood_jax.errors import UserError

# Imported where it is used: it takes seconds, and torch with it where that is installed.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Settings of a tokenizer.json under which the same text has other ids the next time.
_RANDOM = {"dropout": "BPE dropout", "alpha": "sampling of pieces", "nbest_size": "sampling of pieces"}
_LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError)


@dataclass(frozen=True)
class Loaded:
    """`backend` gives ids; `tokenizer` has the names of special tokens and the chat template; `notes` say what was
    changed on the way."""

    backend: Tokenizer
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...]


def load(folder: Path) -> Loaded:
    """The tokenizer of a local checkpoint folder; code in the folder is never run and nothing is fetched.

    Raises:
        UserError: no such folder, no tokenizer in it, a broken one, or one that needs code of its own.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; give the folder of a Hugging Face checkpoint")
    if not any((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder}: no tokenizer in the folder ({', '.join(FILES)}); copy it there")
    config = read_json(folder / "tokenizer_config.json")
    if isinstance(config.get("auto_map"), dict) and config["auto_map"].get("AutoTokenizer"):
        raise UserError(
            f"{folder}: the tokenizer cannot be loaded (tokenizer_config.json asks for code of its own, which is never "
            "run); convert it to a standard fast tokenizer with a tokenizer.json and no auto_map"
        )
    if (folder / "tokenizer.json").is_file():
        backend, notes = steady(read_json(folder / "tokenizer.json"), f"{folder}/tokenizer.json")
        names = special_names(folder, config)
        notes += _add_listed(backend, folder, config)
        tokenizer = _around(backend, names, config)
    else:
        tokenizer = _rebuilt(folder)
        backend, notes = steady(content_of(tokenizer), str(folder))
    tokenizer.chat_template = chat_template(folder, config)
    return Loaded(backend, tokenizer, notes)


def content_of(tokenizer: Any) -> dict[str, Any]:
    """What the tokenizer.json of a fast tokenizer of transformers would hold."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def steady(content: dict[str, Any], source: str) -> tuple[Tokenizer, tuple[str, ...]]:
    """A tokenizer.json → a tokenizer that gives a text the same ids each time, all of them, and no padding.

    Raises:
        UserError: the content is no tokenizer.
    """
    content = {**content, "truncation": None, "padding": None}
    model = dict(content.get("model") or {})
    random = sorted({what for key, what in _RANDOM.items() if model.get(key)})
    for key in _RANDOM:
        if key in model:
            model[key] = None
    content["model"] = model
    notes = tuple(f"{what} of the tokenizer is switched off: the same text has the same ids" for what in random)
    try:
        return Tokenizer.from_str(json.dumps(content)), notes
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        raise UserError(f"{source}: the tokenizer cannot be loaded ({one_line(error)}); copy it again") from error


def special_names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The role of each special token ("bos_token") → its text.

    From tokenizer_config.json; special_tokens_map.json and the defaults of the class that the config names fill in.
    """
    found: dict[str, str] = {}
    for source in (config, read_json(folder / "special_tokens_map.json")):
        for name in NAMES:
            if name not in found and name in source:
                found[name] = _content(source[name], folder, name)
    import transformers

    kind = getattr(transformers, str(config.get("tokenizer_class")), None)
    if inspect.isclass(kind):
        parameters = inspect.signature(kind.__init__).parameters
        for name in NAMES:
            if name in parameters and isinstance(parameters[name].default, str):
                found.setdefault(name, parameters[name].default)
    return {name: text for name, text in found.items() if text}


def _content(value: Any, folder: Path, name: str) -> str:
    """A token's text; "" where the file says that there is none."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{folder}: {name} of the tokenizer is {value!r}; it must be a text")
    return value


def _add_listed(backend: Tokenizer, folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Adds the tokens that other files list and tokenizer.json lacks, and never gives one another id.

    Raises:
        UserError: a token would get another id than the one that is listed.
    """
    notes = []
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in sorted(_listed(folder, config).items()):
        there = backend.token_to_id(token.content)
        if there is None or (there == index and token.special and token.content not in known):
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
            there = backend.token_to_id(token.content)
            if there != index:
                raise UserError(
                    f"{folder}: tokenizer.json lacks the token {token.content!r}, which another file puts at id "
                    f"{index}; save the tokenizer again with the tokenizer.json that belongs to the checkpoint"
                )
            notes.append(f"the token {token.content!r} ({index}) is taken from another file than tokenizer.json")
        elif there != index:
            notes.append(f"the token {token.content!r} has id {there} in tokenizer.json (taken) and {index} elsewhere")
    return tuple(notes)


def _listed(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """The added tokens of added_tokens.json and tokenizer_config.json by id. Raises UserError for another form."""
    found: dict[int, AddedToken] = {}
    try:
        for text, index in read_json(folder / "added_tokens.json").items():
            found[int(index)] = AddedToken(text, normalized=False, special=False)
        for index, token in (config.get("added_tokens_decoder") or {}).items():
            about = {"content": token} if isinstance(token, str) else dict(token)
            flags = {
                k: v for k, v in about.items() if k in ("lstrip", "rstrip", "normalized", "single_word", "special")
            }
            found[int(index)] = AddedToken(about["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: the added tokens cannot be read ({one_line(error)}); copy the files again"
        ) from error
    return found


def _around(backend: Tokenizer, names: dict[str, str], config: dict[str, Any]) -> PreTrainedTokenizerBase:
    """transformers' object, for names and templates; ids are not asked of it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{name: text for name, text in names.items() if backend.token_to_id(text) is not None},
    )
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool | None):
        raise UserError(f"tokenizer_config.json: add_bos_token is {add_bos!r}; it must be true or false")
    if add_bos is not None:
        tokenizer.init_kwargs["add_bos_token"] = add_bos
    return tokenizer


def _rebuilt(folder: Path) -> PreTrainedTokenizerBase:
    """From vocab.json and merges.txt, or tokenizer.model, as transformers makes it: no tokenizer.json says more."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except _LOAD_ERRORS as error:
        raise UserError(
            f"{folder}: it holds no tokenizer.json, and its other files could not be read ({type(error).__name__}); "
            "save the tokenizer with transformers (save_pretrained), which writes one"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: not a fast tokenizer; convert it to one with a tokenizer.json")
    return tokenizer


def chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template of a folder, or several by name; None where no known file holds one.

    chat_template.jinja with additional_chat_templates/*.jinja comes first, then tokenizer_config.json, as in
    transformers; then what processors and older versions wrote: chat_template.json and processor_config.json.
    """
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    candidates: list[tuple[Any, str]] = [({name: _text(path) for name, path in files.items()}, "chat_template.jinja")]
    candidates.append((config.get("chat_template"), "tokenizer_config.json"))
    for name in ("chat_template.json", "processor_config.json"):
        content = _any_json(folder / name)
        candidates.append((content.get("chat_template") if isinstance(content, dict) else content, name))
    for value, name in candidates:
        if templates := _by_name(value, folder / name):
            return templates["default"] if set(templates) == {"default"} else templates
    return None


def _by_name(value: Any, path: Path) -> dict[str, str]:
    """Templates by name, without a byte-order mark and without empty ones. Raises UserError for another form."""
    if value is None or isinstance(value, str):
        value = {"default": value or ""}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if not isinstance(value, dict) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise UserError(f"{path}: chat_template is neither a text nor a list of named texts; copy the file again")
    found = {name: text.removeprefix("\ufeff") for name, text in value.items()}
    return {name: text for name, text in found.items() if text.strip()}


def unread_templates(folder: Path) -> list[str]:
    """Files that look like chat templates and that no rule names one."""
    known = {"chat_template.jinja"}
    return sorted(path.name for path in folder.glob("*.jinja*") if path.is_file() and path.name not in known)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); copy the file again") from error


def _any_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({one_line(error)}); copy the file again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with or without a byte-order mark; {} where there is no such file."""
    content = _any_json(path)
    if content is None and not path.is_file():
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; copy the file again")
    return content


def listed_eos(folder: Path) -> tuple[int, ...]:
    """The end-of-sequence ids that the checkpoint's files list, ascending.

    Those of generation_config.json; those of config.json where it names none (as transformers' `generate` takes them).
    """
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    for value, name in (
        (read_json(folder / "generation_config.json").get("eos_token_id"), "generation_config.json"),
        (config.get("eos_token_id"), "config.json"),
        (inner.get("eos_token_id") if isinstance(inner, dict) else None, "config.json"),
    ):
        if ids := _ids(value, folder / name):
            return tuple(sorted(ids))
    return ()


def _ids(value: Any, path: Path) -> set[int]:
    """`eos_token_id` as a configuration file gives it: nothing, an int or a list; -1 stands for none there."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in ids):
        raise UserError(f"{path}: eos_token_id is {value!r}; it must be an id or a list of ids")
    return {index for index in ids if index >= 0}


def one_line(error: BaseException) -> str:
    """An error's text, shortened."""
    return " ".join(str(error).split())[:200] or type(error).__name__
