# SPDX-License-Identifier: Apache-2.0
"""configs/models/*.toml: what is run with a model, and where its weights lie."""

import fnmatch
import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

KEYS = {
    "": {"base", "name", "trained_context", "batch", "files", "other_forms", "calibration",
         "perplexity", "speed", "emulated"},
    "calibration": {"tokens", "context"},
    "perplexity": {"context", "windows", "methods", "paper_protocol"},
    "speed": {"contexts", "steps", "repeats", "methods", "not_run"},
    "emulated": {"calibration", "perplexity", "speed"},
}
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
READ = ("read are GGUF files, and folders with config.json, tokenizer.json and *.safetensors in "
        "F32, F16 or BF16: convert with llama.cpp's convert_hf_to_gguf.py --outtype f16")
QUANTIZED = ("its weights are quantized to few bits, which would add their own loss to every row: "
             "give a GGUF file in F16 or BF16, or a folder with safetensors")
INDEX = "model.safetensors.index.json"
MAX_DEPTH = 5  # folders below a root that are searched


class ConfigError(Exception):
    """One line for the user."""


@dataclass
class Model:
    id: str
    config: dict
    file: Path | None = None         # a GGUF file or a folder
    reason: str = ""                 # why there is none

    @property
    def name(self):
        return self.config["name"]


def check_keys(table, where, path):
    unknown = set(table) - KEYS[where]
    if unknown:
        raise ConfigError(f"{path}: unknown key {sorted(unknown)[0]!r}"
                          f"{f' in [{where}]' if where else ''}, expected one of "
                          f"{', '.join(sorted(KEYS[where]))}")
    for name, value in table.items():
        if name in KEYS and isinstance(value, dict):
            check_keys(value, name, path)


def read_config(path):
    """The file over the one that its `base` names."""
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    check_keys(config, "", path)
    base = config.pop("base", None)
    if base:
        config = {**read_config(path.with_name(base + ".toml")), **config}
    missing = KEYS[""] - {"base", "emulated"} - set(config)
    if missing:
        raise ConfigError(f"{path}: no {sorted(missing)[0]!r}, here or in its base")
    if config["batch"] != 1:
        raise ConfigError(f"{path}: batch is {config['batch']}, kv-decode has one sequence")
    return config


def walk(root):
    """Files and folders below the root, as (path, lower-case name), links followed. Hidden folders
    are left out: beside models, the Hugging Face cache has one with locks of the same names."""
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        seen = sorted(name for name in folders if not name.startswith("."))
        folders[:] = seen if depth < MAX_DEPTH else []
        for name in seen + sorted(files):
            yield Path(folder) / name, name.lower()


def checkout(folder):
    """The folder itself; of a repository in the Hugging Face cache what its branch main holds."""
    ref = folder / "refs" / "main"
    return folder / "snapshots" / ref.read_text().strip() if ref.is_file() else folder


def shards(folder):
    """Names of the files that hold the weights, as the programs choose them; may be missing."""
    if (folder / INDEX).is_file():
        try:
            return sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return [INDEX + " with a weight_map"]
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    found = [path.name for path in folder.glob("*.safetensors")]
    return found if len(found) == 1 else ["model.safetensors"]


def parts(path):
    """Files that a GGUF file or a folder is read from, those of a folder by name."""
    if not path.is_dir():
        return [path]
    return [path / name for name in sorted(["config.json", "tokenizer.json"] + shards(path))]


def usable(path, name):
    """What a program is given for this entry, or None."""
    if path.is_dir():
        folder = checkout(path)
        return folder if all(part.is_file() for part in parts(folder)) else None
    return path if name.endswith(".gguf") and path.is_file() else None


def why_not(path, name):
    """The reason for an entry that is named like the model and not taken."""
    if usable(path, name):
        return f"found {path}, but {QUANTIZED}"
    if not path.is_dir():
        return f"found {path}, but {READ}"
    folder = checkout(path)
    lacks = [part.name for part in parts(folder) if not part.is_file()]
    return f"found {folder}, but it has no {', no '.join(lacks)}; {READ}"


def locate(model, roots):
    """Sets model.file, or model.reason."""
    found = [entry for root in roots if root.is_dir() for entry in walk(root)]
    for pattern in model.config["files"]:
        for path, name in found:
            if fnmatch.fnmatchcase(name, pattern) and (file := usable(path, name)):
                model.file = file
                return
    for pattern in model.config["other_forms"] + model.config["files"]:
        for path, name in found:
            stem = Path(name).stem if name.endswith(WEIGHTS) else name
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(stem, pattern):
                model.reason = why_not(path, name)
                return
    where = " or ".join(map(str, roots))
    model.reason = (f"no weights: nothing below {where} is named like {model.config['files'][0]}; "
                    "set MILLION_MODELS to the folder that has it")


def emulated_config(config):
    """The sizes of an emulated run, or None where the model has none."""
    if "emulated" not in config:
        return None
    return {**config, **{name: {**config[name], **table}
                         for name, table in config["emulated"].items()}}


def load(folder, roots, emulated):
    """All models of the folder: the paper's first, the one without a place in it last."""
    models = []
    for path in sorted(Path(folder).glob("*.toml")):
        config = read_config(path)
        model = Model(path.stem, config)
        if emulated:
            small = emulated_config(config)
            if small is None:
                model.reason = "emulated run: the default model only"
                models.append(model)
                continue
            model.config = small
            model.config["speed"]["not_run"] = []
        locate(model, roots)
        models.append(model)
    if not models:
        raise ConfigError(f"{folder}: no *.toml")
    return sorted(models, key=lambda m: "emulated" in m.config)
