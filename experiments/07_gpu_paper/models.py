# SPDX-License-Identifier: Apache-2.0
"""configs/models/*.toml: what is run with a model, and where its file lies."""

import fnmatch
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
READ = ("only GGUF files of the llama architecture with tensors F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
        "Q5_0 or Q5_1 are read: convert with llama.cpp's convert_hf_to_gguf.py --outtype f16")
MAX_DEPTH = 5  # folders below a root that are searched


class ConfigError(Exception):
    """One line for the user."""


@dataclass
class Model:
    id: str
    config: dict
    file: Path | None = None
    reason: str = ""                 # why there is no file

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
    """Files and folders below the root, as (path, lower-case name), links followed."""
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(folders) if depth < MAX_DEPTH else []
        for name in folders + sorted(files):
            yield Path(folder) / name, name.lower()


def locate(model, roots):
    """Sets model.file, or model.reason."""
    found = [entry for root in roots if root.is_dir() for entry in walk(root)]
    for pattern in model.config["files"]:
        for path, name in found:
            if fnmatch.fnmatchcase(name, pattern) and path.is_file():
                model.file = path
                return
    for pattern in model.config["other_forms"]:
        for path, name in found:
            stem = Path(name).stem if name.endswith(WEIGHTS) else name
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(stem, pattern):
                model.reason = f"found {path}, but {READ}"
                return
    where = " or ".join(map(str, roots))
    model.reason = (f"no weights: no file below {where} is named like {model.config['files'][0]}; "
                    "set MILLION_MODELS to the folder that has one")


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
